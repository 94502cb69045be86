"""A PACS that answers wrongly, late or not at all: the client is told, quickly, and the server goes on."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from monailabel.interfaces.utils.app import app_instance
from replies import refused
from starlette.testclient import TestClient

import fake_sam
from polycl.errors import InputError, PolyclError
from polycl.monailabel import pacs
from polycl.monailabel.pacs import PacsStore
from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import read_volume, write_volume
from polycl.window import Window

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
    assert Path(app.datastore()._datastore_path).is_relative_to(settings.store)


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


def test_the_window_of_the_series_comes_along(client: TestClient, fake: FakePacs, ct_files: list[Path]) -> None:
    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    params = {"refine": "sam-vit-b", "window": "header"}
    response = client.post("/infer/tiny", params={"image": uid}, data={"params": json.dumps(params)})
    assert response.status_code == 200
    assert read_volume(app_instance().datastore().place(uid)).window == Window(level=39.5, width=399)


def test_a_series_that_ohif_shows_is_fetched_for_clicks(
    client: TestClient, fake: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_phantom(1, shape=(36, 28, 5), spacing=(10.0, 10.0, 20.0)).image
    files = write_dicom_series(image, tmp_path, seed=77)
    uid, other = uid_of(files), "1.2.77"
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in files])
    fake.answers[f"/studies/{STUDY}/series/{uid}/instances/1.5/frames/1"] = (200, "image/x", b"pixels")
    fake.answers[f"/studies/{STUDY}/series/{other}/instances/1.5/frames/1"] = (200, "image/x", b"pixels")
    monkeypatch.setattr("polycl.monailabel.engines.default_engine", lambda settings: "sam-vit-b")
    for series in (uid, other):
        path = f"/proxy/dicom/wado/studies/{STUDY}/series/{series}/instances/1.5/frames/1"
        assert client.get(path).status_code == 200
    fake_sam.nothing_left_ahead()
    assert fake.asked.count(f"/studies/{STUDY}/series/{uid}") == 1
    assert app_instance().datastore().place(uid).is_file()
    assert f"/studies/{STUDY}/series/{other}" not in fake.asked, "it is no image of this server"


@pytest.fixture
def seg_writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, Any]]:
    """The program that makes DICOM SEG is there, and a PACS takes what it makes; the list has what it was given."""
    program = tmp_path / "bin" / pacs.SEG_WRITER
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    given: list[tuple[str, str, Any]] = []

    def written(series: str, label: str, names: Any) -> str:
        given.append((series, label, names))
        (tmp_path / "seg.dcm").write_bytes(b"seg")
        return str(tmp_path / "seg.dcm")

    monkeypatch.setattr(pacs, "nifti_to_dicom_seg", written)
    monkeypatch.setattr(pacs, "dicom_web_upload_dcm", lambda file, client: "1.2.77")
    return given


def save(client: TestClient, uid: str, folder: Path, value: int) -> Any:
    """A label whose only structure is the spleen, in DICOM order; the liver's segment is empty."""
    image = client.get("/datastore/image", params={"image": uid}).content
    (folder / "image.nii.gz").write_bytes(image)
    grid = read_volume(folder / "image.nii.gz")
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[4:9, 5:9, value] = 2
    write_volume(grid.with_voxels(voxels), folder / "label.nrrd")
    params = {"label_info": [{"name": "liver"}, {"name": "spleen"}]}
    files = {"label": ("label.nrrd", (folder / "label.nrrd").read_bytes())}
    return client.put("/datastore/label", params={"image": uid}, files=files, data={"params": json.dumps(params)})


def test_a_final_label_is_kept_and_sent(
    client: TestClient, fake: FakePacs, ct_files: list[Path], tmp_path: Path, seg_writer: list[tuple[str, str, Any]]
) -> None:
    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    answer = save(client, uid, tmp_path, 1)
    assert answer.status_code == 200, answer.text
    ((series, label, names),) = seg_writer
    assert sorted(path.name for path in Path(series).iterdir()) == [f"{n:06d}.dcm" for n in range(len(ct_files))]
    assert names == [{"name": "spleen"}]  # named by position among the values that occur
    assert set(np.unique(read_volume(label, kind="label").voxels)) == {0, 2}
    assert not (tmp_path / "seg.dcm").exists()
    info = client.get(f"/datastore/label/info?label={uid}&tag=final").json()
    assert info["SeriesInstanceUID"] == "1.2.77"
    assert info["record"]["known"] == {"spleen": [[1, 2]]}
    assert client.get("/datastore/?output=train").json()[0]["label"].endswith(f"{uid}.nrrd")  # not deleted by the list
    assert client.get(f"/datastore/label?label={uid}&tag=final").status_code == 200
    assert client.get("/info/").json()["datastore"]["completed"] == 1


def test_a_pacs_that_does_not_take_a_label_loses_none(
    client: TestClient,
    fake: FakePacs,
    ct_files: list[Path],
    tmp_path: Path,
    seg_writer: list[tuple[str, str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down(file: str, client: Any) -> str:
        raise requests.ConnectionError("no route to host")

    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    monkeypatch.setattr(pacs, "dicom_web_upload_dcm", down)
    answer = save(client, uid, tmp_path, 3)
    record = client.get(f"/datastore/label/info?label={uid}&tag=final").json()["record"]
    refused(answer, 502, f"version {record['version']}", "save it again")
    assert record["known"] == {"spleen": [[3, 4]]}
    assert not (tmp_path / "seg.dcm").exists()
