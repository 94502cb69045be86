"""`polycl seg`: out and in, and what is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from conftest import Run
from polycl.phantom import write_dicom_series
from polycl.volume import Volume, read_segments, read_volume, write_volume

pytestmark = pytest.mark.unit

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def labels() -> np.ndarray:
    return np.random.default_rng(3).choice(np.array([0, 1, 4], np.uint8), (9, 8, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dicom_series(Volume(np.zeros((9, 8, 4), np.int16), AFFINE), tmp_path / "ct", seed=1)
    write_volume(Volume(labels(), AFFINE).canonical(), tmp_path / "label.nii.gz")
    return tmp_path


def test_out_and_in(folder: Path, run: Run) -> None:
    seg, back = folder / "seg.dcm", folder / "back.seg.nrrd"
    names = ["--name", "4=spleen", "--model", "polycl-liver@3"]
    code, said, _ = run("seg", "export", folder / "label.nii.gz", "--series", folder / "ct", "-o", seg, *names)
    assert (code, "label_1, spleen" in said) == (0, True)
    made = pydicom.dcmread(seg).SegmentSequence[1]
    assert (made.SegmentLabel, made.SegmentAlgorithmName) == ("spleen", "polycl-liver")
    _, said, _ = run("seg", "import", seg, "--series", folder / "ct", "-o", back, "--json")
    found = json.loads(said)
    assert found["labels"] == {"label_1": 1, "spleen": 4}
    assert found["made_by"]["spleen"] == {"kind": "AUTOMATIC", "name": "polycl-liver", "version": "3"}
    assert read_segments(back) == {"label_1": 1, "spleen": 4}
    np.testing.assert_array_equal(
        read_volume(back, kind="label").canonical().voxels, Volume(labels(), AFFINE).canonical().voxels
    )
    again = folder / "again.dcm"
    assert run("seg", "export", back, "--series", folder / "ct", "-o", again)[0] == 0
    assert [item.SegmentLabel for item in pydicom.dcmread(again).SegmentSequence] == ["label_1", "spleen"]


def test_outlines(folder: Path, run: Run) -> None:
    target = folder / "rs.dcm"
    code, _, _ = run("seg", "export", folder / "label.nii.gz", "--series", folder / "ct", "-o", target, "--rtstruct")
    assert code == 0
    assert pydicom.dcmread(target).Modality == "RTSTRUCT"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "label.nii.gz", "-o", "seg.nii.gz"], ".dcm"),
        (["export", "label.nii.gz", "-o", "seg.dcm", "--name", "liver"], "VALUE=NAME"),
        (["import", "label.nii.gz", "-o", "back.nii.gz"], "no DICOM file"),
        (["import", "ct/CT0001.dcm", "-o", "back.nii.gz"], "no DICOM SEG"),
        (["import", "ct/CT0001.dcm", "-o", "back.txt"], ".nii.gz"),
        (["export", "label.nii.gz", "-o", "seg.dcm", "--uid", "1.2"], "no series 1.2"),
    ],
)
def test_what_is_refused(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(folder)
    code, _, said = run("seg", *arguments, "--series", "ct")
    assert code == 1
    assert words in said
    assert said.count("\n") == 1
