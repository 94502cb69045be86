"""DICOM SEG and other programs: what they say of ours, and what is read of theirs."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from scattered_seg import IDENTITY, SHAPE, SPACING, labels, other_seg, series, write

from polycl.dicomseg import Segment, SourceSeries, make_seg, read_seg
from polycl.volume import Volume, read_volume

pytestmark = pytest.mark.unit


def test_dciodvfy_finds_no_error(written: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    said = subprocess.run(["dciodvfy", "-new", written], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert "Error" not in said


def test_highdicom_reads_it(written: Path, source: SourceSeries) -> None:
    seg = highdicom.seg.segread(written)
    uids = [frame.sop_uid for frame in source.frames]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels[..., 0].astype(bool), labels().T == 2)
    np.testing.assert_array_equal(pixels[..., 1].astype(bool), labels().T == 5)


@pytest.mark.parametrize("oblique", [False, True])
def test_dcmqi_reads_it_and_we_read_dcmqi(tmp_path: Path, oblique: bool) -> None:
    programs = [shutil.which(name, path=search_path()) for name in ("segimage2itkimage", "itkimage2segimage")]
    if None in programs:
        pytest.skip("needs dcmqi (segimage2itkimage and itkimage2segimage)")
    source = series(tmp_path / "ct", decreasing=True, oblique=oblique)
    path = write(tmp_path, source, source.grid.with_voxels(labels()), {"spleen": 2, "left kidney": 5})
    command = [programs[0], "-t", "nrrd", "--outputDirectory", tmp_path, "--inputDICOM", path, "-p", "out"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    for number, value in ((1, 2), (2, 5)):
        theirs = read_volume(tmp_path / f"out-{number}.nrrd", kind="label")
        painted = Volume(labels()[:, :, 1:], source.grid.affine).canonical().voxels == value  # none on the first slice
        np.testing.assert_array_equal(theirs.canonical().voxels > 0, painted)
    command = [programs[1], "--inputDICOMDirectory", tmp_path / "ct", "--outputDICOM", tmp_path / "theirs.dcm"]
    command += ["--inputImageList", f"{tmp_path}/out-1.nrrd,{tmp_path}/out-2.nrrd"]
    command += ["--inputMetadata", tmp_path / "out-meta.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if not (tmp_path / "theirs.dcm").is_file():
        pytest.skip(f"dcmqi did not write: {done.stderr[-200:]}")
    back = read_seg(tmp_path / "theirs.dcm", source)
    np.testing.assert_array_equal(back.label.voxels, np.searchsorted([0, 2, 5], labels()))
    assert back.names == {1: "spleen", 2: "left kidney"}


def search_path() -> str:
    import os
    import sys

    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])


def test_a_seg_without_references_or_our_values(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    def strip(seg: Any) -> None:
        del seg.ReferencedSeriesSequence
        for item in seg.SegmentSequence:
            del item[0x0077, 0x1001]
        for frame in seg.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence

    back = read_seg(other_seg(written, tmp_path / "other.dcm", strip), source)
    np.testing.assert_array_equal(back.label.voxels, np.searchsorted([0, 2, 5], labels()))
    assert back.names == {1: "spleen", 2: "left kidney"}


def test_a_box_in_other_axes_of_the_same_grid(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    """As a program that cuts to what is painted, and turns rows about, would write."""
    columns, rows = slice(2, 10), slice(1, 11)

    def cut(seg: Any) -> None:
        pixels = seg.pixel_array[:, rows, columns][:, :, ::-1]
        shared = seg.SharedFunctionalGroupsSequence[0]
        row = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)[:3]
        column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)[3:]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*(-row), *column]
        for frame in seg.PerFrameFunctionalGroupsSequence:
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            position = position + row * SPACING[0] * (columns.stop - 1) + column * SPACING[1] * rows.start
            frame.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in position]
        seg.Rows, seg.Columns = pixels.shape[1:]
        seg.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()

    expected = np.zeros(SHAPE, np.uint8)
    expected[columns, rows] = labels()[columns, rows]
    back = read_seg(other_seg(written, tmp_path / "other.dcm", cut), source)
    np.testing.assert_array_equal(back.label.voxels, expected)


def test_fractional_and_overlapping(source: SourceSeries, tmp_path: Path) -> None:
    headers = [pydicom.dcmread(frame.path) for frame in source.frames]
    pixels = np.zeros((SHAPE[2], SHAPE[1], SHAPE[0], 2))
    pixels[2, 3:7, 2:6, 0] = 0.9
    pixels[2, 5:9, 4:8, 1] = 0.6
    pixels[3, 0, 0, 1] = 0.2
    described = [make_seg(source.grid.with_voxels(labels()), [Segment("a", 2), Segment("b", 5)], source, IDENTITY)]
    seg = highdicom.seg.Segmentation(
        headers, pixels, "FRACTIONAL", described[0].SegmentSequence, "1.2.9", 1, "1.2.10", 1, "x", "y", "z", "0"
    )
    seg.save_as(tmp_path / "fractional.dcm")
    back = read_seg(tmp_path / "fractional.dcm", source)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:6, 3:7, 2] = 2
    expected[4:8, 5:9, 2] = 5
    np.testing.assert_array_equal(back.label.voxels, expected)
    assert back.overlapping == 4
