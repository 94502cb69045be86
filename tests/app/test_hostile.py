"""What a careless or hostile client sends: refused before anything is kept, and nothing is left behind."""

import io
import json
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_images import AFFINES, SHAPE, ct

from polycl.monailabel.store import IMAGE_PATTERNS, LocalStore
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.app

DEEP = '{"a":' + "[" * 150 + "]" * 150 + "}"
QUOTING = """
import logging, pathlib, sys
from polycl.server.environment import log_to
log_to(pathlib.Path(sys.argv[1]))
theirs = logging.getLogger("monailabel.datastore.local")
theirs.error("+++ Failed to load datastore => input_value='Jane'")
theirs.error("Failed to start File watcher. ")
"""
NOT_TO_KEEP = ['{"a": "\\ud800"}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", DEEP]


def reason(response: Any, status: int) -> str:
    """The reason of a refusal with this status, which names no file of the server."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert "/tmp" not in detail
    assert tempfile.gettempprefix() not in detail
    return detail


def encoded(volume: Volume, folder: Path, name: str) -> bytes:
    write_volume(volume, folder / name)
    return (folder / name).read_bytes()


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    voxels = np.zeros(shape, np.uint8)
    voxels[3:7, 2:9, 1:3] = 1
    return voxels


def kept(folder: Path) -> dict[str, bytes]:
    """Every file but MONAI Label's index, which notes times, and scores, which servers compute when they please."""
    files = [path for path in folder.rglob("*") if "acquisition" not in path.parts and path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.name not in ("datastore_v2.json", ".lock")}


def save(client: TestClient, data: bytes, name: str, image: str = "lps", **query: str) -> Any:
    return client.put("/datastore/label", params={"image": image, **query}, files={"label": (name, data)})


def add(client: TestClient, data: bytes, name: str, image: str | None = None, **form: str) -> Any:
    query = {} if image is None else {"image": image}
    return client.put("/datastore/image", params=query, files={"file": (name, data)}, data=form)


@pytest.fixture(autouse=True)
def _nothing_is_left(client: TestClient, settings: Settings) -> Any:
    folders = Path(tempfile.gettempdir()), settings.cache / "results"
    before = [set(folder.iterdir()) for folder in folders]
    yield
    assert client.get("/datastore/?output=all").status_code == 200
    assert [set(folder.iterdir()) for folder in folders] == before


@pytest.mark.parametrize("text", NOT_TO_KEEP, ids=lambda text: text[:12])
def test_what_cannot_be_kept_as_json(client: TestClient, tmp_path: Path, text: str) -> None:
    data = encoded(Volume(labels(), AFFINES["lps"]), tmp_path, "label.nii.gz")
    query, files = {"image": "lps"}, {"label": ("label.nii.gz", data)}
    assert "params" in reason(client.put("/datastore/label", params=query, files=files, data={"params": text}), 400)
    assert "info" in reason(client.put("/datastore/image/info", params=query, data={"info": text}), 400)
    image = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert "params" in reason(add(client, image, "j.nii.gz", "j", params=text), 400)


@pytest.mark.parametrize("text", ['{"client_id": "\\ud800"}', '{"client_id": NaN}', DEEP])
def test_who_asks_for_the_next_image_is_kept_too(client: TestClient, text: str) -> None:
    json_body = {"Content-Type": "application/json"}
    reason(client.post("/activelearning/first", content=text, headers=json_body), 400)


@pytest.mark.parametrize("content", [b'{"name": ', b'{"a": NaN}', b"\xff\xfe", b""])
def test_a_damaged_index_is_put_aside_and_made_anew(tmp_path: Path, content: bytes) -> None:
    write_volume(Volume(ct(0), AFFINES["lps"]), tmp_path / "a.nii.gz")
    index = tmp_path / "datastore_v2.json"
    index.write_bytes(content)
    assert LocalStore(str(tmp_path), extensions=IMAGE_PATTERNS).list_images() == ["a"]
    (aside,) = tmp_path.glob("datastore_v2.json.damaged-*")
    assert aside.read_bytes() == content
    assert "a" in json.loads(index.read_bytes())["objects"]


def test_an_index_damaged_while_in_use_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_volume(Volume(ct(0), AFFINES["lps"]), tmp_path / "a.nii.gz")
    store = LocalStore(str(tmp_path), extensions=IMAGE_PATTERNS)
    (tmp_path / "datastore_v2.json").write_text('{"name": "Jane Doe"')
    store.refresh()
    assert store.list_images() == ["a"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("polycl")]
    assert any("damaged" in message for message in ours)
    assert not any("Jane" in message for message in ours)


def test_the_log_does_not_quote_an_index(tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUOTING, str(tmp_path)]
    assert "Jane" not in subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "Jane" not in (tmp_path / "app.log").read_text()
    assert "watcher" in (tmp_path / "app.log").read_text()


@pytest.mark.parametrize("tag", ["../../x", "a/b", "..", 3, ["final"], "x" * 201])
def test_a_tag_in_the_params_is_a_name(
    client: TestClient, studies: Path, tag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Segmenter, "segment", None)  # refused before
    before, params = kept(studies.parent), json.dumps({"save_label": True, "label_tag": tag})
    assert "label_tag" in reason(client.post("/infer/tiny?image=lps", data={"params": params}), 400)
    reason(client.post("/batch/infer/tiny", json={"label_tag": tag}), 400)
    assert kept(studies.parent) == before


def test_an_empty_tag_is_the_usual_one(client: TestClient, studies: Path) -> None:
    params = json.dumps({"save_label": True, "label_tag": "", "result_extension": ".nrrd"})
    assert client.post("/infer/tiny?image=ras", data={"params": params}).status_code == 200
    assert (studies / "labels" / "original" / "ras.nrrd").is_file()
    assert not (studies / "labels" / "ras.nrrd").exists()


def test_no_result_is_left_when_it_cannot_be_saved(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStore, "save_label", fail)
    reason(client.post("/infer/tiny?image=ras", data={"params": '{"save_label": true}'}), 507)


def test_dicom_seg_is_refused_before_the_inference(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "segment", None)
    assert "DICOMweb" in reason(client.post("/infer/tiny?image=ras&output=dicom_seg"), 400)


SHIFTED = AFFINES["lps"] + np.pad(np.array([[2.0], [0], [0]]), ((0, 1), (3, 0)))
BAD_LABELS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "program": ("label.exe", lambda _: b"data"),
    "no image": ("label.nii.gz", lambda _: b"data"),
    "truncated": ("label.nii", lambda at: encoded(Volume(labels(), AFFINES["lps"]), at, "l.nii")[:-500]),
    "CT": ("label.nii.gz", lambda at: encoded(Volume(ct(0), AFFINES["lps"]), at, "l.nii.gz")),
    "other shape": ("l.nrrd", lambda at: encoded(Volume(labels((36, 28, 6)), AFFINES["lps"]), at, "l.nrrd")),
    "other place": ("l.nii.gz", lambda at: encoded(Volume(labels(), SHIFTED), at, "l.nii.gz")),
    "mirrored": ("l.nii.gz", lambda at: encoded(Volume(labels(), AFFINES["ras"]), at, "l.nii.gz")),
    "box, not Slicer's": ("l.nrrd", lambda at: encoded(box(), at, "l.nrrd")),
    "box off the lattice": ("l.seg.nrrd", lambda at: encoded(box(0.5), at, "l.nrrd")),
    "box outside": ("l.seg.nrrd", lambda at: encoded(box(30), at, "l.nrrd")),
}


def box(start: float = 3, flip: bool = False) -> Volume:
    """Labels on a part of the grid of the image lps, `start` voxels from its corner along the first axis."""
    shift = np.eye(4)
    shift[:3, 3] = (start, 2, 1)
    volume = Volume(np.ones((8, 9, 3), np.uint8), AFFINES["lps"] @ shift)
    return volume.canonical() if flip else volume


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_a_label_that_does_not_fit(client: TestClient, studies: Path, tmp_path: Path, kind: str) -> None:
    name, make = BAD_LABELS[kind]
    before = kept(studies)
    assert "label" in reason(save(client, make(tmp_path), name), 422)
    assert kept(studies) == before


@pytest.mark.parametrize("name", ["oblique", "swapped"])
def test_a_label_in_another_axis_order(client: TestClient, studies: Path, tmp_path: Path, name: str) -> None:
    label = Volume(labels(), AFFINES[name])
    data = encoded(label.canonical(), tmp_path, "label.nii.gz")
    assert save(client, data, "label.nii.gz", name, tag="turned").status_code == 200
    stored = read_volume(studies / "labels" / "turned" / f"{name}.nii.gz", kind="label")
    assert label.same_grid(stored)
    assert (stored.voxels == label.voxels).all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_segmentation_that_slicer_cropped(client: TestClient, tmp_path: Path, flip: bool) -> None:
    data = encoded(box(flip=flip), tmp_path, "label.nrrd")
    assert save(client, data, "Segmentation.seg.nrrd", tag="cropped").status_code == 200


def test_a_label_for_an_image_that_is_no_ct(client: TestClient, studies: Path, tmp_path: Path) -> None:
    data = encoded(Volume(np.abs(ct(0)) % 256, AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert add(client, data, "mr.nii.gz", params='{"allow_any_values": true}').status_code == 200
    label = encoded(Volume(labels(), AFFINES["lps"]), tmp_path, "label.nii.gz")
    assert save(client, label, "label.nii.gz", "mr").status_code == 200


def test_uploads_are_for_the_servers_eyes_only(client: TestClient, settings: Settings) -> None:
    folder = Path(tempfile.gettempdir())
    assert folder == settings.cache / "tmp"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_refused_upload_is_deleted(client: TestClient, tmp_path: Path) -> None:
    data = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    files = {"file": ("image.nii.gz", data)}
    reason(client.post("/infer/nothing", files=files), 404)  # and see _nothing_is_left
    reason(client.post("/infer/tiny", files=files, data={"params": '{"result_dtype": "int8"}'}), 422)


@pytest.mark.parametrize("name", [".", "..", "a." + "b" * 250 + ".nii.gz", "ü" * 110 + ".nii.gz", "x/.."])
def test_names_of_files(client: TestClient, tmp_path: Path, name: str) -> None:
    data = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    reason(client.put("/session/", files={"files": (name, data)}), 400)
    reason(client.post("/infer/tiny", files={"file": (name, data)}), 400)
    reason(add(client, data, name, "y"), 400)


@pytest.mark.parametrize(("method", "url", "field"), [("PUT", "/session/", "files"), ("POST", "/infer/tiny", "file")])
def test_a_name_with_a_zero_byte(client: TestClient, method: str, url: str, field: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a\0.nii.gz"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = head.encode() + b"data\r\n--x--\r\n"
    assert client.request(method, url, content=body, headers=headers).status_code == 400


def test_ids_have_a_length(client: TestClient, tmp_path: Path) -> None:
    data = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert "200" in reason(add(client, data, "image.nii.gz", "x" * 201), 400)
    assert "200" in reason(save(client, b"", "label.nii.gz", tag="x" * 201), 400)
    assert add(client, data, "image.nii.gz", "x" * 200).status_code == 200


def broken_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.nii.gz", b"voxels" * 100)
    return buffer.getvalue().replace(b"voxels", b"others", 1)


@pytest.mark.parametrize("data", [b"", b"text", broken_zip(), broken_zip()[:-30]], ids=["", "text", "crc", "cut"])
def test_an_archive_that_is_none(client: TestClient, settings: Settings, data: bytes) -> None:
    before = list(settings.sessions.iterdir())
    assert "zip" in reason(client.put("/session/?uncompress=true", files={"files": ("z.zip", data)}), 422)
    assert list(settings.sessions.iterdir()) == before


@pytest.mark.parametrize("name", ["z.zip", "Z.ZIP"])
def test_an_archive(client: TestClient, tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.nii.gz", encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz"))
    answer = client.put("/session/?uncompress=true", files={"files": (name, buffer.getvalue())})
    image = Path(answer.json()["session_info"]["image"])
    assert [path.name for path in image.iterdir()] == ["image.nii.gz"]


@pytest.mark.parametrize(
    ("method", "url", "word"),
    [
        ("POST", "/train/nothing", "trainer"),
        ("POST", "/scoring/nothing", "scoring"),
        ("POST", "/batch/infer/nothing", "tiny"),
        ("DELETE", "/datastore/label?id=lps&tag=nothing", "label"),
        ("DELETE", "/datastore/label?id=nowhere&tag=final", "label"),
        ("GET", "/datastore/label/info?label=lps&tag=nothing", "label"),
        ("GET", "/datastore/image/info?image=nowhere", "image"),
    ],
)
def test_unknown_names(client: TestClient, method: str, url: str, word: str) -> None:
    assert word in reason(client.request(method, url), 404)


def test_known_names_are_served(client: TestClient, tmp_path: Path) -> None:
    data = encoded(Volume(labels(), AFFINES["ras"]), tmp_path, "label.nii.gz")
    assert save(client, data, "label.nii.gz", "ras", tag="mine").status_code == 200
    assert client.get("/datastore/image/info?image=ras").json()["name"] == "ras.nii.gz"
    assert client.get("/datastore/label/info?label=ras&tag=mine").json()["name"] == "ras.nii.gz"
    assert client.delete("/datastore/label?id=ras&tag=mine").status_code == 200


def test_an_image_is_not_replaced(client: TestClient, studies: Path, tmp_path: Path) -> None:
    before, data = kept(studies), encoded(Volume(ct(77), AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert "lps" in reason(add(client, data, "image.nii.gz", "lps"), 409)
    assert "lps" in reason(add(client, data, "lps.nii.gz"), 409)
    assert kept(studies) == before


def test_the_same_image_again_keeps_its_labels(client: TestClient, studies: Path, tmp_path: Path) -> None:
    label = encoded(Volume(labels(), AFFINES["oblique"]), tmp_path, "label.nii.gz")
    assert save(client, label, "label.nii.gz", "oblique", tag="first").status_code == 200
    data = (studies / "oblique.nii.gz").read_bytes()
    assert add(client, data, "oblique.nii.gz", params='{"note": "again"}').json() == {"image": "oblique"}
    known = client.get("/datastore/?output=all").json()["objects"]["oblique"]
    assert known["image"]["info"]["note"] == "again"
    assert "first" in known["labels"]


@pytest.mark.parametrize(("name", "image"), [(".nii.gz", None), (".nrrd", ""), ("a.nii.gz", "a.nii.gz")])
def test_an_image_needs_an_id(client: TestClient, tmp_path: Path, name: str, image: str | None) -> None:
    data = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert "id" in reason(add(client, data, name, image), 400)


def test_an_id_may_hold_dots(client: TestClient, studies: Path, tmp_path: Path) -> None:
    data = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "image.nii.gz")
    assert add(client, data, "scan.1.NII.GZ").json() == {"image": "scan.1"}
    assert add(client, data, "scan.2.nii.gz").json() == {"image": "scan.2"}
    assert (studies / "scan.1.nii.gz").read_bytes() == data


@pytest.mark.parametrize("kind", ["text", "truncated", "no CT"])
def test_an_image_that_cannot_be_used_is_not_kept(client: TestClient, studies: Path, tmp_path: Path, kind: str) -> None:
    whole = encoded(Volume(ct(0), AFFINES["lps"]), tmp_path, "whole.nii.gz")
    other = encoded(Volume(np.abs(ct(0)) % 256, AFFINES["lps"]), tmp_path, "other.nii.gz")
    before, data = kept(studies), {"text": b"hello", "truncated": whole[:-3000], "no CT": other}[kind]
    assert "image" in reason(add(client, data, "new.nii.gz"), 422)
    assert kept(studies) == before


def test_refusals_name_no_temporary_file(client: TestClient) -> None:
    detail = reason(client.post("/infer/tiny", files={"file": ("image.nii.gz", b"hello" * 99)}), 422)
    assert detail.startswith("the image: ")
