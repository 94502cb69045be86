"""MONAI Label's client, and the copy of it that the 3D Slicer plugin brings, unmodified, against a running server."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.client, pytest.mark.slow]

JSON = {"Content-Type": "application/json"}
IMAGES = ["axial", "oblique"]


@pytest.fixture(scope="session")
def segmenter(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")


def expected(segmenter: Segmenter, images: Path, name: str) -> np.ndarray:
    voxels = segmenter.segment(read_volume(images / f"{name}.nii.gz")).voxels
    assert set(np.unique(voxels)) == {0, 1, 2}
    return voxels


def test_info(client: Any) -> None:
    info = client.info()
    assert info["models"]["tiny"]["labels"] == {"liver": 1, "spleen": 2}
    assert info["models"]["tiny"]["type"] == "segmentation"


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_next_sample(client: Any, strategy: str) -> None:
    sample = client.next_sample(strategy, {})
    assert sample["id"] in IMAGES
    assert Path(sample["path"]).is_file()


@pytest.mark.parametrize("name", IMAGES)
def test_infer_as_slicer_does(client: Any, segmenter: Segmenter, images: Path, name: str) -> None:
    file, params = client.infer("tiny", name, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    voxels, header = nrrd.read(file)
    np.testing.assert_array_equal(voxels, expected(segmenter, images, name))
    assert header["space"] == "left-posterior-superior"
    directions = np.diag([-1, -1, 1]) @ np.array(header["space directions"]).T
    np.testing.assert_allclose(directions, nibabel.load(images / f"{name}.nii.gz").affine[:3, :3], atol=1e-4)
    assert params["label_names"] == {"liver": 1, "spleen": 2}
    assert params["volumes_ml"]["liver"] > 0


def test_infer_as_nifti(client: Any, segmenter: Segmenter, images: Path) -> None:
    file, _ = client.infer("tiny", "oblique", {})
    np.testing.assert_array_equal(nibabel.load(file).dataobj, expected(segmenter, images, "oblique"))


def test_an_image_in_a_session(client: Any, segmenter: Segmenter, images: Path) -> None:
    session = client.create_session(str(images / "oblique.nii.gz"))["session_id"]
    assert client.get_session(session)["image"].endswith("oblique.nii.gz")
    file, _ = client.infer("tiny", "", {"result_extension": ".nrrd"}, session_id=session)
    np.testing.assert_array_equal(nrrd.read(file)[0], expected(segmenter, images, "oblique"))
    client.remove_session(session)


def test_save_label(client: Any, images: Path) -> None:
    name = "saved"
    client.upload_image(str(images / "axial.nii.gz"), name)
    file, _ = client.infer("tiny", name, {"result_extension": ".nrrd"})
    info = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    assert client.save_label(name, file, params=info)["label"] == name
    saved = client.datastore()["objects"][name]["labels"]["final"]
    assert saved["info"]["label_info"] == info["label_info"]
    stored = client.download_label(name, "final")
    np.testing.assert_array_equal(nrrd.read(stored)[0], nrrd.read(file)[0])


def test_a_label_sent_again_is_another_version(client: Any, images: Path, tmp_path: Path) -> None:
    name = "versions"
    client.upload_image(str(images / "oblique.nii.gz"), name)
    image = read_volume(images / "oblique.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[20:30, 20:30, 3:5], voxels[40:44, 20:30, 4] = 1, 2
    info = {"label_info": [{"name": "spleen", "idx": 5}, {"name": "cyst", "idx": 9}]}
    told = []
    for label in (voxels, np.where(voxels == 1, voxels, 0).astype(np.uint8)):
        write_volume(image.with_voxels(label), tmp_path / "label.nrrd")
        told.append(client.save_label(name, str(tmp_path / "label.nrrd"), params=info))
    assert told[1]["version"] == told[0]["version"] + 1
    assert told[0]["labels"] == {"spleen": 2, "cyst": 3}
    assert told[0]["known"] == {"spleen": [[3, 5]], "cyst": [[4, 5]]}
    assert told[1]["unknown"] == ["cyst"]
    stored, header = nrrd.read(client.download_label(name, "final"))
    np.testing.assert_array_equal(stored, np.where(voxels == 1, 2, 0))
    assert header["space"] == "left-posterior-superior"
    saved = client.datastore()["objects"][name]["labels"]["final"]["info"]
    assert [entry["name"] for entry in saved["label_info"]] == ["liver", "spleen", "cyst"]
    assert saved["client_id"] == "user-xyz"


def test_a_segmentation_that_slicer_cropped(client: Any, images: Path, tmp_path: Path) -> None:
    name = "cropped"
    client.upload_image(str(images / "oblique.nii.gz"), name)
    image = read_volume(images / "oblique.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[20:30, 22:30, 3:5] = 4
    shift = np.eye(4)
    shift[:3, 3] = (20, 22, 3)
    box = Volume(voxels[20:30, 22:30, 3:5], image.affine @ shift)
    write_volume(box, tmp_path / "label.seg.nrrd", names={"liver": 4})
    params = {"label_info": [{"name": "liver", "idx": 1}]}
    client.save_label(name, str(tmp_path / "label.seg.nrrd"), params=params)
    np.testing.assert_array_equal(nrrd.read(client.download_label(name, "final"))[0], voxels // 4)


def test_an_empty_label_is_refused(client: Any, images: Path, tmp_path: Path) -> None:
    client.upload_image(str(images / "axial.nii.gz"), "empty")
    image = read_volume(images / "axial.nii.gz")
    write_volume(image.with_voxels(np.zeros(image.shape, np.uint8)), tmp_path / "label.nrrd")
    save = client.save_label
    with pytest.raises(save.__globals__["MONAILabelClientException"], match=r"Status: 422.*complete"):
        save("empty", str(tmp_path / "label.nrrd"), params={"label_info": [{"name": "liver"}]})
    told = save("empty", str(tmp_path / "label.nrrd"), params={"label_info": [{"name": "liver"}, {"name": "complete"}]})
    assert told["known"] == {"liver": "all"}


@pytest.mark.parametrize(
    ("model", "image", "status", "word"),
    [("nothing", "axial", 404, "tiny"), ("tiny", "undefined", 404, "undefined"), ("tiny", "", 400, "image")],
)
def test_refusals_have_a_reason(client: Any, model: str, image: str, status: int, word: str) -> None:
    with pytest.raises(client.infer.__globals__["MONAILabelClientException"]) as raised:
        client.infer(model, image, {})
    assert f"Status: {status}" in raised.value.msg
    assert word in json.loads(raised.value.msg.partition("Response: ")[2])["detail"]


def test_batch_inference_runs_in_its_subprocess(server: str) -> None:
    def call(method: str, path: str) -> Any:
        request = urllib.request.Request(f"{server}{path}", b"{}" if method == "POST" else None, JSON, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    call("POST", "/batch/infer/tiny?images=all")
    deadline = time.monotonic() + 200
    while (task := call("GET", "/batch/infer"))["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline, task
        time.sleep(0.5)
    assert task["status"] == "DONE", task
    labels = call("GET", "/datastore/?output=all")["objects"]["axial"]["labels"]
    assert labels["original"]["info"]["params"]["label_names"] == {"liver": 1, "spleen": 2}
    for image in IMAGES:  # the other tests of this server know no such labels
        call("DELETE", f"/datastore/label?id={image}&tag=original")
