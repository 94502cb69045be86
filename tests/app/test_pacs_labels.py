"""Labels and the PACS: kept here first, sent as DICOM SEG until the PACS has them, and never trained on unasked."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake_pacs import FakePacs, fake_pacs
from monailabel.interfaces.utils.app import app_instance
from replies import refused
from starlette.testclient import TestClient

import waiting
from polycl.dicomseg import Algorithm, Identity, Segment, SourceSeries, make_seg, read_seg
from polycl.labels.library import final_labels
from polycl.monailabel import outbox, pacs
from polycl.monailabel.pacs import PacsStore
from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import Volume, read_segments, read_volume, write_volume

eventually = partial(waiting.until, seconds=15)

pytestmark = [pytest.mark.app, pytest.mark.timeout(60)]

KNOWN = {"liver": 1, "spleen": 2}
DOWN = (503, "text/plain", b"of patient X")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakePacs]:
    with fake_pacs() as server:
        yield server


@pytest.fixture(scope="module")
def studies(fake: FakePacs) -> str:
    return fake.address


@pytest.fixture(autouse=True)
def quick(fake: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.answers.clear()
    fake.stored.clear()
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.4)
    monkeypatch.setattr(pacs, "LIST_SECONDS", 60.0)


@pytest.fixture(params=[False, True], ids=["increasing", "decreasing"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """A series of its own for each test, numbered upwards and downwards."""
    seed = abs(hash(request.node.name)) % 100_000
    image = make_phantom(0, shape=(36, 28, 5), spacing=(10.0, 10.0, 20.0)).image
    return write_dicom_series(image, tmp_path / "ct", seed=seed, decreasing=request.param)


def painted(client: TestClient, uid: str, folder: Path, value: int = 2) -> Volume:
    """A spleen on the grid of the image as the server gives it."""
    (folder / "image.nii.gz").write_bytes(client.get("/datastore/image", params={"image": uid}).content)
    grid = read_volume(folder / "image.nii.gz")
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[4:9, 5:11, 1:3] = value
    voxels[20, 3, 4] = value
    return grid.with_voxels(voxels)


def save(client: TestClient, uid: str, label: Volume, folder: Path, **params: Any) -> Any:
    """As Slicer submits: the liver's segment is empty."""
    write_volume(label, folder / "label.nrrd")
    files = {"label": ("label.nrrd", (folder / "label.nrrd").read_bytes())}
    given = {"label_info": [{"name": "liver"}, {"name": "spleen"}], "client_id": "user-xyz", **params}
    return client.put("/datastore/label", params={"image": uid}, files=files, data={"params": json.dumps(given)})


def test_a_final_label_is_kept_and_sent(client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    label = painted(client, uid, tmp_path)
    answer = save(client, uid, label, tmp_path)
    assert answer.status_code == 200, answer.text
    assert not [note for note in answer.json()["notes"] if "PACS" in note]
    (seg,) = fake.stored
    assert [(item.SegmentLabel, item.SegmentAlgorithmType) for item in seg.SegmentSequence] == [("spleen", "MANUAL")]
    assert seg.ContentCreatorName == "user-xyz^"
    seg.save_as(tmp_path / "seg.dcm", write_like_original=False)
    back = read_seg(tmp_path / "seg.dcm", SourceSeries.read(files))
    np.testing.assert_array_equal(back.label.canonical().voxels, label.canonical().voxels)
    assert back.names == {2: "spleen"}
    info = client.get(f"/datastore/label/info?label={uid}&tag=final").json()
    assert info["SeriesInstanceUID"] == str(seg.SeriesInstanceUID)
    assert list(info["record"]["known"]) == ["spleen"]
    assert client.get("/datastore/?output=train").json()[-1]["label"].endswith(f"{uid}.nrrd")
    assert client.get("/info/").json()["datastore"]["completed"] >= 1


def test_a_reply_that_was_kept_names_its_model(
    client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path
) -> None:
    uid = fake.have(files)
    reply = client.post("/infer/tiny", params={"image": uid, "output": "image"}).content
    (tmp_path / "reply.nrrd").write_bytes(reply)
    sent = {"label": ("label.nii.gz", reply)}
    params = json.dumps({"label_info": [{"name": "liver"}, {"name": "spleen"}]})
    answer = client.put("/datastore/label", params={"image": uid}, files=sent, data={"params": params})
    assert answer.status_code == 200, answer.text
    (seg,) = fake.stored
    for item in seg.SegmentSequence:
        assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "tiny")
        assert len(item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion) == 16


def test_a_pacs_that_is_down_gets_the_label_later(
    client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path
) -> None:
    uid = fake.have(files)
    label = painted(client, uid, tmp_path)
    fake.answers["POST /studies"] = DOWN
    answer = save(client, uid, label, tmp_path)
    assert answer.status_code == 200
    (note,) = [note for note in answer.json()["notes"] if "PACS" in note]
    assert "kept here" in note
    assert "503" in note
    assert "patient" not in note
    assert client.get(f"/datastore/label?label={uid}&tag=final").status_code == 200
    second = save(client, uid, label, tmp_path, client_id="user-abc")
    assert second.json()["version"] == answer.json()["version"] + 1
    assert not fake.stored
    del fake.answers["POST /studies"]
    eventually(lambda: len(fake.stored) == 2)
    assert {str(seg.ContentCreatorName) for seg in fake.stored} == {"user-xyz^", "user-abc^"}
    assert len({seg.SeriesInstanceUID for seg in fake.stored}) == 2
    eventually(lambda: not app_instance().datastore().outbox.waiting())
    assert "SeriesInstanceUID" in client.get(f"/datastore/label/info?label={uid}&tag=final").json()


def test_a_pacs_that_refuses_says_so(client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    label = painted(client, uid, tmp_path)
    for status, words in ((401, "account"), (409, "409")):
        fake.answers["POST /studies"] = (status, "text/plain", b"")
        notes = save(client, uid, label, tmp_path).json()["notes"]
        assert [note for note in notes if words in note]
    del fake.answers["POST /studies"]
    eventually(lambda: not app_instance().datastore().outbox.waiting())


def test_a_label_outlives_the_server(fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    store = PacsStore(fake.address, tmp_path / "cache")
    image = read_volume(store.get_image_uri(uid))
    voxels = np.zeros(image.shape, np.uint8)
    voxels[3:6, 3:6, 2] = 1
    write_volume(image.with_voxels(voxels), tmp_path / "label.nii.gz")
    fake.answers["POST /studies"] = DOWN
    store.keep_label(uid, "final", store.sent(tmp_path / "label.nii.gz", {"label_info": [{"name": "liver"}]}))
    store.outbox.stop()
    fake.answers.clear()  # and the PACS forgot everything else
    time.sleep(0.3)
    assert not fake.stored
    again = PacsStore(fake.address, tmp_path / "cache")
    eventually(lambda: fake.stored)
    eventually(lambda: not again.outbox.waiting())
    # A label that was kept, but not queued before the server was killed, and one that is sent twice.
    label = again.library.record(uid)
    assert label is not None
    pacs.IndexedStore.update_label_info(again, uid, "final", {"SeriesInstanceUID": "x"})
    with again._changing():
        again._labels(uid)["final"].info.pop("SeriesInstanceUID")
    third = PacsStore(fake.address, tmp_path / "cache")
    eventually(lambda: len(fake.stored) == 2)
    assert fake.stored[0].SOPInstanceUID == fake.stored[1].SOPInstanceUID
    assert third.library.record(uid) == label
    assert final_labels(third.folder)


def test_labels_that_are_not_final_stay_here(
    client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path
) -> None:
    uid = fake.have(files)
    write_volume(painted(client, uid, tmp_path), tmp_path / "label.nrrd")
    sent = {"label": ("label.nrrd", (tmp_path / "label.nrrd").read_bytes())}
    assert client.put(f"/datastore/label?image={uid}&tag=draft", files=sent).status_code == 200
    assert not fake.stored
    assert not app_instance().datastore().outbox.waiting()


def foreign(fake: FakePacs, files: list[Path], folder: Path) -> tuple[str, np.ndarray]:
    """A segmentation that somebody else sent to the PACS: its UID and label map."""
    source = SourceSeries.read(files)
    voxels = np.zeros(source.grid.shape, np.uint8)
    voxels[2:5, 6:9, 0:2] = 1
    voxels[8:12, 6:9, 1] = 7
    segments = [Segment("tumour", 1), Segment("spleen", 7, Algorithm("AUTOMATIC", "other", "1"))]
    seg = make_seg(source.grid.with_voxels(voxels), segments, source, Identity.of(folder))
    for item in seg.SegmentSequence:
        del item[0x0077, 0x1001]
    seg.save_as(folder / "foreign.dcm")
    fake.keep(b"\r\n\r\n" + (folder / "foreign.dcm").read_bytes() + b"\r\n--")
    fake.stored.clear()
    return str(seg.SeriesInstanceUID), np.searchsorted([0, 1, 7], voxels).astype(np.uint8)


def test_segmentations_of_others_are_read_but_do_not_train(
    client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path
) -> None:
    uid = fake.have(files)
    seg, voxels = foreign(fake, files, tmp_path)
    app_instance().datastore()._look_again()
    assert client.get("/info/").json()["datastore"]["completed"] >= 1  # not offered again
    client.get("/datastore/image", params={"image": uid})
    (listed,) = client.get("/datastore/image/info", params={"image": uid}).json()["segmentations"]
    assert listed["uid"] == seg
    (tmp_path / "seg.seg.nrrd").write_bytes(client.get(f"/datastore/label?label={uid}&tag={seg}").content)
    assert read_segments(tmp_path / "seg.seg.nrrd") == {"tumour": 1, "spleen": 2}
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.seg.nrrd", kind="label").voxels, voxels)
    info = client.get(f"/datastore/label/info?label={uid}&tag={seg}").json()
    assert info["label_info"] == [{"name": "tumour", "idx": 1}, {"name": "spleen", "idx": 2}]
    store = app_instance().datastore()
    assert uid not in [label.image_id for label in final_labels(store.folder)]
    assert not [row for row in client.get("/datastore/?output=train").json() if uid in row["label"]]


def test_a_reviewer_makes_one_final(client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    seg, voxels = foreign(fake, files, tmp_path)
    client.get("/datastore/image", params={"image": uid})
    url = f"/datastore/label/info?label={uid}&tag={seg}"
    refused(client.put(url, data={"info": json.dumps({"status": "approved"})}), 422, "final")
    assert client.put(url, data={"info": json.dumps({"final": True})}).status_code == 200
    store = app_instance().datastore()
    (label,) = [label for label in final_labels(store.folder) if label.image_id == uid]
    stored = read_volume(label.label, kind="label").voxels
    assert {name: int((stored == value).sum()) for name, value in label.record.labels.items()} == {
        "tumour": int((voxels == 1).sum()),
        "spleen": int((voxels == 2).sum()),
    }
    assert label.record.labels["spleen"] == KNOWN["spleen"]
    time.sleep(0.3)
    assert not fake.stored, "the PACS has it already"


def test_segmentations_that_cannot_be_read(
    client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path
) -> None:
    uid = fake.have(files)
    client.get("/datastore/image", params={"image": uid})
    refused(client.get(f"/datastore/label?label={uid}&tag=1.2.99"), 404, "1.2.99", "it has")
    seg, _ = foreign(fake, files, tmp_path)
    path = next(path for path in fake.answers if path.endswith(f"/{seg}"))
    fake.answers[path] = (404, "text/plain", b"")
    refused(client.get(f"/datastore/label?label={uid}&tag={seg}"), 404, "PACS")
    fake.send(seg, [files[0].read_bytes()])
    refused(client.get(f"/datastore/label?label={uid}&tag={seg}"), 422, "no DICOM SEG")
    broken = pydicom.dcmread(tmp_path / "foreign.dcm")
    for frame in broken.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 3
    broken.save_as(tmp_path / "broken.dcm")
    fake.send(seg, [(tmp_path / "broken.dcm").read_bytes()])
    refused(client.get(f"/datastore/label?label={uid}&tag={seg}"), 422, "not on the grid")
    fake.send(seg, [(tmp_path / "foreign.dcm").read_bytes()])
    assert client.get(f"/datastore/label?label={uid}&tag={seg}").status_code == 200


def test_a_series_that_is_removed_midway(client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    label = painted(client, uid, tmp_path)
    fake.answers.clear()
    fake.offer("1.9")
    assert client.post("/infer/tiny", params={"image": uid}).status_code == 200  # it is kept here
    assert save(client, uid, label, tmp_path).status_code == 200
    assert len(fake.stored) == 1


def test_a_reply_as_dicom_seg(client: TestClient, fake: FakePacs, files: list[Path], tmp_path: Path) -> None:
    uid = fake.have(files)
    (tmp_path / "mask.nrrd").write_bytes(
        client.post(
            "/infer/tiny",
            params={"image": uid, "output": "image"},
            data={"params": json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})},
        ).content
    )
    answer = client.post("/infer/tiny", params={"image": uid, "output": "dicom_seg"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    back = read_seg(tmp_path / "seg.dcm", SourceSeries.read(files))
    mask = read_volume(tmp_path / "mask.nrrd", kind="label")
    np.testing.assert_array_equal(back.label.canonical().voxels, mask.canonical().voxels)
    assert back.names == {1: "liver", 2: "spleen"}
    assert back.algorithms[1].name == "tiny"
    assert not fake.stored
    refused(client.post("/infer/tiny", params={"image": "1.2.3.99", "output": "dicom_seg"}), 404, "1.2.3.99")
