"""MONAI Label's client, and the copy of it that the 3D Slicer plugin brings, unmodified, against a running server."""

import importlib.util
import json
import site
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from polycl.segmenter import Segmenter
from polycl.volume import read_volume

pytestmark = [pytest.mark.client, pytest.mark.slow]

SLICER_CLIENT = "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"
JSON = {"Content-Type": "application/json"}
IMAGES = ["axial", "oblique"]


def slicer_client() -> ModuleType:
    """The plugin's own module; the wheel's data folder is where pip or uv left it."""
    folders = [
        Path(sys.prefix),
        *(data / "data" for root in site.getsitepackages() for data in Path(root).glob("monailabel*.data")),
    ]
    found = [folder / SLICER_CLIENT for folder in folders if (folder / SLICER_CLIENT).is_file()]
    if not found:
        pytest.skip("the Slicer plugin is not among the installed files")
    spec = importlib.util.spec_from_file_location("slicer_monailabel_client", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def monailabel_client() -> ModuleType:
    return importlib.import_module("monailabel.client.client")


@pytest.fixture(params=[monailabel_client, slicer_client], ids=["monailabel", "slicer"])
def client(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Any:
    return request.param().MONAILabelClient(server, str(tmp_path), "user-xyz")


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
