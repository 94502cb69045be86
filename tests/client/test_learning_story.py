"""A new user with one study and the client module of 3D Slicer: label, train, be refused, insist, roll back."""

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from starting import serving

from polycl.phantom import LABELS, make_phantom
from polycl.volume import read_volume, write_volume

pytestmark = [pytest.mark.client, pytest.mark.slow, pytest.mark.timeout(900)]

PHANTOM = make_phantom(0, shape=(48, 40, 12), spacing=(8.0, 8.0, 24.0))
SECONDS = 300


def trained(client: Any, **options: Any) -> dict[str, Any]:
    """Start training and wait for its end, as the panel does."""
    assert client.train_start("polycl", {"segmenter": "tiny", "steps": 3, **options})["status"] in (
        "SUBMITTED",
        "RUNNING",
    )
    deadline = time.monotonic() + SECONDS
    while client.train_status(check_if_running=True):
        assert time.monotonic() < deadline, "training takes too long"
        time.sleep(0.5)
    status: dict[str, Any] = client.train_status()
    return status


def version_of(client: Any, image: str) -> int:
    """The version of the model that answers."""
    _, params = client.infer("tiny", image, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    return int(params["model"]["version"])


def test_label_train_publish_and_roll_back(slicer: ModuleType, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "studies").mkdir()
    write_volume(PHANTOM.image, tmp_path / "studies" / "phantom.nii.gz")
    with serving(tmp_path, tiny_checkpoint.parent) as (address, _):
        client = slicer.MONAILabelClient(address, str(tmp_path), "ann")

        def page(part: str) -> dict[str, Any]:
            told: dict[str, Any] = httpx.get(f"{address}/polycl/api/{part}", timeout=60).raise_for_status().json()
            return told

        def tiny() -> dict[str, Any]:
            return next(model for model in page("models")["models"] if model["name"] == "tiny")

        sample = client.next_sample("first", {})
        assert sample["id"] == "phantom"
        liver = read_volume(Path(sample["path"])).with_voxels(
            (PHANTOM.labels.voxels == LABELS["liver"]).astype(np.uint8)
        )
        write_volume(liver, tmp_path / "liver.nii.gz")
        label = {"label_info": [{"name": "liver", "idx": 1}], "client_id": "ann"}
        assert client.save_label("phantom", str(tmp_path / "liver.nii.gz"), params=label)["version"] == 1
        assert [(row["annotator"], row["count"]) for row in page("labels")["rows"]] == [("ann", 1)]

        refused = trained(client)
        assert refused["status"] == "DONE"
        assert "version 1 not published: no validation patient to compare by" in refused["result"]
        assert version_of(client, "phantom") == 0
        assert "version 1 not published" in page("runs")["runs"][0]["message"]
        assert page("runs")["runs"][0]["step"] == 3

        assert "version 2 published: as requested, though" in trained(client, publish="force")["result"]
        assert version_of(client, "phantom") == tiny()["live"] == 2
        assert {one["number"] for one in tiny()["versions"]} == {1, 2}

        httpx.post(f"{address}/polycl/api/models/rollback", json={"model": "tiny"}, timeout=60).raise_for_status()
        assert version_of(client, "phantom") == tiny()["live"] == 0
