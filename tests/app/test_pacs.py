"""A PACS that answers wrongly, late or not at all: the client is told, quickly, and the server goes on."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from starlette.testclient import TestClient

from polycl.errors import InputError, PolyclError
from polycl.monailabel import pacs
from polycl.monailabel.pacs import PacsStore
from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import write_volume

pytestmark = [pytest.mark.app, pytest.mark.timeout(25)]  # MONAI Label's client tries for half a minute

STUDY = "1.2.3"
MULTIPART = "multipart/related; type=application/dicom; boundary=edge"
Answer = tuple[int, str, bytes]


class FakePacs(ThreadingHTTPServer):
    """Answers a path with what `answers` has for it, and keeps the paths asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}/dicom-web"

    def offer(self, uid: str, *, modality: str = "CT") -> None:
        """List a series in answers to every search for series."""
        row = {
            "0020000D": {"vr": "UI", "Value": [STUDY]},
            "0020000E": {"vr": "UI", "Value": [uid]},
            "00080060": {"vr": "CS", "Value": [modality]},
        }
        rows = json.loads(self.answers.get("/series", (200, "", b"[]"))[2])
        self.answers["/series"] = (200, "application/dicom+json", json.dumps([*rows, row]).encode())

    def send(self, uid: str, files: list[bytes]) -> None:
        """Answer the request for a series with these files."""
        head = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
        body = b"".join(head + data + b"\r\n" for data in files) + b"--edge--\r\n"
        self.answers[f"/studies/{STUDY}/series/{uid}"] = (200, MULTIPART, body)


class Handler(BaseHTTPRequestHandler):
    server: FakePacs

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/dicom-web")
        self.server.asked.append(path)
        status, kind, body = self.server.answers.get(path, (404, "text/plain", b"no"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakePacs]:
    with FakePacs() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def studies(fake: FakePacs) -> str:
    return fake.address


@pytest.fixture(autouse=True)
def fresh(fake: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.answers.clear()
    fake.asked.clear()
    fake.offer("1.9")
    monkeypatch.setattr(pacs, "LIST_SECONDS", 0.0)


@pytest.fixture(scope="module")
def ct_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    image = make_phantom(0, shape=(36, 28, 5), spacing=(10.0, 10.0, 20.0)).image
    return write_dicom_series(image, tmp_path_factory.mktemp("ct"), seed=0)


def uid_of(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


def refused(response: Any, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert all(word in detail for word in words), detail
    assert "/tmp" not in detail


def infer(client: TestClient, uid: str) -> Any:
    return client.post("/infer/tiny", params={"image": uid})


def test_a_series_is_fetched_once(client: TestClient, fake: FakePacs, ct_files: list[Path]) -> None:
    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    for _ in range(2):
        assert infer(client, uid).status_code == 200
    assert fake.asked.count(f"/studies/{STUDY}/series/{uid}") == 1
    info = client.get("/datastore/image/info", params={"image": uid}).json()
    assert info["SeriesInstanceUID"] == uid
    assert "PatientID" not in info


def test_a_series_the_pacs_does_not_have(client: TestClient) -> None:
    refused(infer(client, "1.8"), 404, "1.8")
    refused(client.get("/datastore/image", params={"image": "1.8"}), 404, "1.8")


@pytest.mark.parametrize("uid", ["undefined", "1..2", ".1", "9" * 65])
def test_what_is_no_uid_is_not_asked_for(client: TestClient, fake: FakePacs, uid: str) -> None:
    refused(infer(client, uid), 404, "SeriesInstanceUID")
    assert not [path for path in fake.asked if path.startswith("/studies")]


@pytest.mark.parametrize("status", [500, 503, 401])
def test_a_pacs_that_fails(client: TestClient, fake: FakePacs, status: int) -> None:
    fake.answers["/series"] = (status, "text/html", b"<p>of patient X</p>")
    refused(infer(client, "1.9"), 502, str(status))
    assert client.get("/info/").status_code == 200  # with the last counts: what was fetched can be worked on


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>log in</html>"),
        (200, "application/dicom+json", b"{"),
        (200, "application/dicom+json", b'[{"00080060": {"vr": "CS", "Value": ["CT"]}}]'),
    ],
)
def test_a_search_answered_with_something_else(client: TestClient, fake: FakePacs, answer: Answer) -> None:
    fake.answers["/series"] = answer
    refused(infer(client, "1.9"), 502, "PACS")


@pytest.mark.parametrize("kind", [MULTIPART, "application/dicom", "text/html"])
def test_a_series_that_is_no_dicom(client: TestClient, fake: FakePacs, kind: str) -> None:
    fake.answers[f"/studies/{STUDY}/series/1.9"] = (
        200,
        kind,
        b"--edge\r\nContent-Type: text/html\r\n\r\nhm\r\n--edge--",
    )
    refused(infer(client, "1.9"), 502, "PACS")


def test_a_gantry_tilt(client: TestClient, fake: FakePacs, ct_files: list[Path], tmp_path: Path) -> None:
    sent = []
    for number, file in enumerate(ct_files):
        image = pydicom.dcmread(file)
        image.SeriesInstanceUID = "1.7"
        image.ImagePositionPatient[1] += 8 * number
        image.save_as(tmp_path / file.name)
        sent.append((tmp_path / file.name).read_bytes())
    fake.offer("1.7")
    fake.send("1.7", sent)
    refused(infer(client, "1.7"), 422, "gantry tilt")


def test_a_proxied_path_stays_below_the_dicomweb_root(client: TestClient, fake: FakePacs) -> None:
    assert client.get("/proxy/dicom/qido/series").status_code == 200
    refused(client.post("/proxy/dicom/%2e%2e/tools/shutdown"), 400, "..")
    assert fake.asked == ["/series"]


def test_segmented_series_are_not_offered_again(client: TestClient, fake: FakePacs) -> None:
    assert client.post("/activelearning/first", json={}).status_code == 404  # 1.9 is offered, but cannot be had
    fake.offer("1.10", modality="SEG")
    fake.offer("1.12", modality="SEG")  # one that the PACS cannot describe
    fake.answers[f"/studies/{STUDY}/series/1.10/metadata"] = (
        200,
        "application/dicom+json",
        b'[{"00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": ["1.9"]}}]}}]',
    )
    assert client.get("/info/").json()["datastore"]["completed"] == 1


def test_a_label_for_a_pacs_without_the_program(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_volume(make_phantom(0, shape=(24, 20, 5), spacing=(16.0, 16.0, 20.0)).labels, tmp_path / "label.nii.gz")
    files = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
    refused(client.put("/datastore/label", params={"image": "1.9"}, files=files), 501, "itkimage2segimage")
    files = {"label": ("label.nii.gz", b"data")}
    refused(client.put("/datastore/label", params={"image": "1.9"}, files=files), 422, "label")


def test_nothing_is_downloaded_at_start(
    client: TestClient, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from monailabel.interfaces.app import MONAILabelApp

    from polycl.monailabel.app import PolyclApp

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(MONAILabelApp, "_download_dcmqi_tools", lambda self: pytest.fail("downloads dcmqi"))
    app = PolyclApp(str(tmp_path), "http://127.0.0.1:9/dicom-web/", {})
    assert isinstance(app.datastore(), PacsStore)
    assert Path(app.datastore()._datastore_path).is_relative_to(settings.cache)


def test_a_pacs_that_is_down(tmp_path: Path) -> None:
    from polycl.server.problems import to_http

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = PacsStore(f"http://127.0.0.1:{port}/dicom-web", tmp_path)
    for ask in (lambda: store.get_image_uri("1.2"), store.status):
        with pytest.raises(Exception) as raised:  # noqa: PT011 (the answer made of it is what counts)
            ask()
        answer = to_http(raised.value)
        assert (answer.status_code, answer.detail) == (502, "the PACS cannot be reached")


def test_a_list_outlives_the_pacs(fake: FakePacs, tmp_path: Path) -> None:
    store = PacsStore(fake.address, tmp_path)
    assert store.list_images() == ["1.9"]
    fake.answers.clear()
    assert store.list_images() == ["1.9"]
    fake.offer("1.11")
    assert store.list_images() == ["1.11"]


def test_a_pacs_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polycl.server.problems import to_http

    monkeypatch.setattr(pacs, "SILENT_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = PacsStore(f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web", tmp_path)
        with pytest.raises(Exception) as raised:  # noqa: PT011
            store.get_image_uri("1.2")
    assert to_http(raised.value).status_code == 502


def test_what_was_fetched_is_served_without_the_pacs(fake: FakePacs, ct_files: list[Path], tmp_path: Path) -> None:
    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    kept = PacsStore(fake.address, tmp_path).get_image_uri(uid)
    fake.answers.clear()
    assert PacsStore(fake.address, tmp_path).get_image_uri(uid) == kept
    assert [path.name for path in tmp_path.iterdir()] == [Path(kept).parent.name]


@pytest.mark.parametrize("url", ["http://", "http:///dicom-web"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DICOMweb address"):
        PacsStore(url, tmp_path)


def test_refusals_are_ours() -> None:
    assert issubclass(pacs.PacsError, PolyclError)
    assert (pacs.PacsError.status, pacs.UnsupportedError.status) == (502, 501)
