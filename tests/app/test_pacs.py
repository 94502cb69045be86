"""A PACS that answers wrongly, late or not at all: the client is told, quickly, and the server goes on."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake_pacs import MULTIPART, STUDY, Answer, FakePacs, fake_pacs
from monailabel.interfaces.utils.app import app_instance
from replies import refused
from starlette.testclient import TestClient

import fake_sam
from polycl.errors import InputError, PolyclError
from polycl.monailabel import pacs, pacs_client, pacs_room
from polycl.monailabel.pacs import PacsStore
from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import read_volume, write_volume
from polycl.window import Window

pytestmark = [pytest.mark.app, pytest.mark.timeout(25)]  # MONAI Label's client tries for half a minute


@pytest.fixture(scope="module")
def fake() -> Iterator[FakePacs]:
    with fake_pacs() as server:
        yield server


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


def test_a_series_that_was_still_arriving_is_fetched_again(
    client: TestClient, fake: FakePacs, tmp_path: Path, ct_files: list[Path]
) -> None:
    image = make_phantom(4, shape=(36, 28, 5), spacing=(10.0, 10.0, 20.0)).image
    files = write_dicom_series(image, tmp_path / "ct", seed=4)
    uid = uid_of(files)

    def slices(arrived: int) -> int:
        fake.answers.clear()
        fake.offer(uid, images=arrived)
        fake.send(uid, [file.read_bytes() for file in files[:arrived]])
        assert client.get("/info/").status_code == 200  # which lists the series
        assert infer(client, uid).status_code == 200
        return read_volume(app_instance().datastore().place(uid)).shape[2]

    assert [slices(arrived) for arrived in (2, 4, 4)] == [2, 4, 4]
    assert fake.asked.count(f"/studies/{STUDY}/series/{uid}") == 2
    kept = read_volume(app_instance().datastore().place(uid))
    write_volume(kept.with_voxels(np.ones(kept.shape, np.uint8)), tmp_path / "label.nii.gz")
    label = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
    assert client.put(f"/datastore/label?image={uid}&tag=draft", files=label).status_code == 200
    assert slices(5) == 4, "its label lies on the slices that it had"


def test_a_series_the_pacs_does_not_have(client: TestClient) -> None:
    refused(infer(client, "1.8"), 404, "1.8")
    refused(client.get("/datastore/image", params={"image": "1.8"}), 404, "1.8")


@pytest.mark.parametrize("uid", ["undefined", "1..2", "01.x", "9" * 65])
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

    monkeypatch.setattr(pacs_client, "SILENT_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = PacsStore(f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web", tmp_path)
        with pytest.raises(Exception) as raised:  # noqa: PT011
            store.get_image_uri("1.2")
    assert to_http(raised.value).status_code == 504


def test_what_was_fetched_is_served_without_the_pacs(fake: FakePacs, ct_files: list[Path], tmp_path: Path) -> None:
    uid = uid_of(ct_files)
    fake.offer(uid)
    fake.send(uid, [file.read_bytes() for file in ct_files])
    kept = PacsStore(fake.address, tmp_path).get_image_uri(uid)
    fake.answers.clear()
    again = PacsStore(fake.address, tmp_path)
    assert again.get_image_uri(uid) == kept
    assert again.list_images() == [uid]
    assert again.status()["total"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(kept).parent.name]


@pytest.mark.parametrize("url", ["http://", "http:///dicom-web"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DICOMweb address"):
        PacsStore(url, tmp_path)


def test_refusals_are_ours() -> None:
    assert issubclass(pacs_client.PacsError, PolyclError)
    assert pacs_client.PacsError.status == 502


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


def test_series_used_long_ago_make_room(
    client: TestClient, fake: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = app_instance().datastore()
    fetched = []
    for seed in (11, 12):
        image = make_phantom(seed, shape=(36, 28, 5), spacing=(10.0, 10.0, 20.0)).image
        files = write_dicom_series(image, tmp_path / str(seed), seed=seed)
        fetched.append(uid_of(files))
        fake.offer(fetched[-1])
        fake.send(fetched[-1], [file.read_bytes() for file in files])
    old, new = fetched
    place = Path(store.get_image_uri(old))
    monkeypatch.setattr(store, "_room", 1)
    os.utime(place.with_name(old), (1, 1))
    watching = threading.Thread(target=store.refresh)

    def unlinked(path: Path, missing_ok: bool = False, unlink: Callable[..., None] = Path.unlink) -> None:
        if path == place:  # whoever watches the folder looks at the worst of moments
            watching.start()
            watching.join(0.1)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinked)
    store.get_image_uri(new)
    watching.join()
    assert not place.exists()
    assert not place.with_name(old).exists()
    assert old not in store._datastore.objects
    assert infer(client, old).status_code == 200, "it comes again"
    assert place.exists()
    assert Path(store.get_image_uri(new)).exists(), "it may be in use"


def test_a_series_with_a_label_stays(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"1.{number}.nii.gz").write_bytes(bytes(10))
        (tmp_path / f"1.{number}").mkdir()
        os.utime(tmp_path / f"1.{number}", (number, number))
    asked: list[str] = []
    assert pacs_room.make_room(tmp_path, 15, lambda uid: asked.append(uid) or uid != "1.0") == ["1.1", "1.2"]
    assert asked == ["1.0", "1.1", "1.2"]
    assert pacs_room.make_room(tmp_path, 30, pytest.fail) == []
    pacs_room.used(tmp_path / "1.0.nii.gz")
    assert pacs_room.make_room(tmp_path, 0, lambda uid: uid != "1.0") == ["1.1", "1.2"]
