"""What MONAI Label Reviewer, the other module of 3D Slicer's plugin, notes of labels and saves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replies import refused
from starlette.testclient import TestClient

from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.app

IMAGE = "oblique"
INFO = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
JUDGED = {"status": "flagged", "level": "hard", "approvedBy": "dr", "comment": "the tail is missing", "editTime": 1}
BOX = (slice(10, 20), slice(8, 18), slice(2, 5))


@pytest.fixture
def label(client: TestClient, studies: Path, tmp_path: Path) -> Volume:
    """A final label as the annotator's panel sends it, and nothing else."""
    for tag in ("final", "version_1"):
        client.delete("/datastore/label", params={"id": IMAGE, "tag": tag})
    image = read_volume(studies / f"{IMAGE}.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[BOX], voxels[12:15, 10:12, 3] = 1, 2
    write_volume(image.with_voxels(voxels), tmp_path / "label.nii.gz")
    assert save(client, tmp_path / "label.nii.gz", "final").status_code == 200
    return image.with_voxels(voxels)


def save(client: TestClient, file: Path, tag: str, **more: Any) -> Any:
    return client.put(
        "/datastore/label",
        params={"image": IMAGE, "tag": tag},
        data={"params": json.dumps(INFO | more)},
        files={"label": (file.name, file.read_bytes())},
    )


def judge(client: TestClient, tag: str, judged: dict[str, Any]) -> Any:
    form = {"params": json.dumps({"segmentationMeta": judged})}
    return client.put("/datastore/updatelabelinfo", params={"label": IMAGE, "tag": tag}, data=form)


def noted(client: TestClient) -> dict[str, Any]:
    """By tag, what the store says of the labels."""
    labels = client.get("/datastore/", params={"output": "all"}).json()["objects"][IMAGE]["labels"]
    return {tag: label["info"] for tag, label in labels.items()}


def test_a_judgement_is_noted_until_the_label_changes(client: TestClient, label: Volume, tmp_path: Path) -> None:
    before = noted(client)["final"]
    assert judge(client, "final", JUDGED).status_code == 200
    after = noted(client)["final"]
    assert {key: after[key] for key in (*before, "segmentationMeta")} == before | {"segmentationMeta": JUDGED}
    assert client.get("/datastore/label/info", params={"label": IMAGE, "tag": "final"}).json()["segmentationMeta"]
    write_volume(label, tmp_path / "again.nii.gz")
    assert save(client, tmp_path / "again.nii.gz", "final").status_code == 200
    assert "segmentationMeta" not in noted(client)["final"], "it is to be reviewed again"


def test_a_judgement_of_no_label(client: TestClient, label: Volume) -> None:
    refused(judge(client, "version_1", JUDGED), 404, "label")


def test_a_version_is_found_under_the_name_of_the_final_label(
    client: TestClient, label: Volume, tmp_path: Path
) -> None:
    """The module saves a segmentation as .nrrd, cropped and without names, and reads all by the final label's name."""
    shift = np.eye(4)
    shift[:3, 3] = [part.start for part in BOX]
    cropped = Volume(np.where(label.voxels == 2, 0, label.voxels)[BOX], label.affine @ shift)
    write_volume(cropped, tmp_path / "x.seg.nrrd", names={"Segment_1": 1})
    (tmp_path / "x.seg.nrrd").rename(tmp_path / f"{IMAGE}.nrrd")
    answer = save(client, tmp_path / f"{IMAGE}.nrrd", "version_1", segmentationMeta=JUDGED)
    assert answer.status_code == 200, answer.text
    assert answer.json()["voxels"] == {"liver": int((cropped.voxels == 1).sum()), "spleen": 0}
    info = noted(client)
    assert info["version_1"]["name"] == info["final"]["name"] == f"{IMAGE}.nii.gz"
    assert info["version_1"]["segmentationMeta"] == JUDGED
    stored = client.get("/datastore/label", params={"label": IMAGE, "tag": "version_1"})
    (tmp_path / info["final"]["name"]).write_bytes(stored.content)
    voxels = read_volume(tmp_path / info["final"]["name"], kind="label").voxels
    np.testing.assert_array_equal(voxels, np.where(label.voxels == 2, 0, label.voxels))
    assert client.delete("/datastore/label", params={"id": IMAGE, "tag": "version_1"}).status_code == 200
    assert noted(client).keys() == {"final"}
