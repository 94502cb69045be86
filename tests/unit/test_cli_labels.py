"""`polycl labels`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polycl.labels.library import Library
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    write_volume(Volume(np.zeros((4, 4, 3), np.int16), np.eye(4)), folder / "ct.nii.gz")
    for z in (0, 2):
        voxels = np.zeros((4, 4, 3), np.uint8)
        voxels[1, 1, z] = 1
        write_volume(Volume(voxels, np.eye(4)), folder / "labels" / "final" / "ct.nii.gz")
        Library(folder, known={"liver": 1}).current("ct")
    return folder


def test_list_restore_complete(run: Run, studies: Path) -> None:
    code, out, _ = run("labels", "list", studies, "--json")
    assert code == 0
    (label,) = json.loads(out)["labels"]
    assert (label["image"], label["version"], label["known"]) == ("ct", 2, {"liver": [[2, 3]]})
    assert "liver in part" in run("labels", "list", studies)[1]
    assert len(run("labels", "list", studies, "ct")[1].splitlines()) == 2
    code, out, _ = run("labels", "restore", studies, "ct", 1)
    assert (code, "version 3" in out) == (0, True)
    assert read_volume(studies / "labels" / "final" / "ct.nii.gz", kind="label").voxels[1, 1, 0] == 1
    code, out, _ = run("labels", "complete", studies, "ct")
    assert (code, "liver complete, in version 4" in out) == (0, True)
    assert "liver all" in run("labels", "list", studies)[1]


def test_what_is_not_there(run: Run, studies: Path) -> None:
    for arguments in (
        ("restore", studies, "ct", 9),
        ("restore", studies, "nothing", 1),
        ("complete", studies, "nothing"),
        ("complete", studies, "ct", "aorta"),
        ("list", studies / "nowhere"),
    ):
        code, _, err = run("labels", *arguments)
        assert code == 1
        assert len(err.splitlines()) == 1
