"""RTSTRUCT: outlines that, filled, are the voxels they were made of."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from scipy.spatial.transform import Rotation

from polycl.dicomseg import Identity, Segment, SourceSeries, write_rtstruct
from polycl.errors import InputError
from polycl.phantom import write_dicom_series
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (14, 12, 5)
NAMES = [Segment("liver", 1), Segment("left kidney", 4), Segment("empty", 9)]


def labels() -> np.ndarray:
    """Two structures with holes, islands, corners that touch, and voxels at the border of the image."""
    voxels = np.random.default_rng(0).choice(np.array([0, 1, 4], np.uint8), SHAPE)
    voxels[2:9, 2:9, 1] = 1
    voxels[4:7, 4:7, 1] = 0
    voxels[5, 5, 1] = 1
    voxels[:, :, 4] = 0
    return voxels


@pytest.fixture(params=[False, True], ids=["increasing", "decreasing"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> SourceSeries:
    affine = np.diag([-1.5, -2.0, 5.0, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -8, 25], degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (40.5, -17.25, 300.0)
    write_dicom_series(Volume(np.zeros(SHAPE, np.int16), affine), tmp_path / "ct", seed=1, decreasing=request.param)
    return SourceSeries.read(tmp_path / "ct")


def test_filled_outlines_are_the_voxels(source: SourceSeries, tmp_path: Path) -> None:
    write_rtstruct(source.grid.with_voxels(labels()), NAMES, source, tmp_path / "rs.dcm", Identity.of("rt"))
    dataset = pydicom.dcmread(tmp_path / "rs.dcm")
    assert [item.ROIName for item in dataset.StructureSetROISequence] == ["liver", "left kidney", "empty"]
    assert "ContourSequence" not in dataset.ROIContourSequence[2]
    instances = [frame.sop_uid for frame in source.frames]
    to_index = np.linalg.inv(source.grid.affine)
    centres = np.stack(np.meshgrid(*map(np.arange, SHAPE[:2]), indexing="ij"), axis=-1).reshape(-1, 2)
    for segment, item in zip(NAMES[:2], dataset.ROIContourSequence[:2], strict=True):
        filled = np.zeros(SHAPE, bool)
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1)
            index = np.c_[points, np.ones(len(points))] @ to_index.T
            k = instances.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            np.testing.assert_allclose(index[:, 2], k, atol=1e-3)
            inside = Polygon(index[[*range(len(index)), 0], :2], closed=True).contains_points(centres)
            filled[:, :, k] ^= inside.reshape(SHAPE[:2])
        np.testing.assert_array_equal(filled, labels() == segment.value)


def test_dciodvfy_finds_no_error(source: SourceSeries, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    write_rtstruct(source.grid.with_voxels(labels()), NAMES, source, tmp_path / "rs.dcm", Identity.of("rt"))
    said = subprocess.run(["dciodvfy", "-new", tmp_path / "rs.dcm"], capture_output=True, text=True, check=False).stderr
    assert "RTStructureSet" in said
    assert "Error" not in said, said


def test_a_label_elsewhere_is_refused(source: SourceSeries, tmp_path: Path) -> None:
    moved = Volume(labels(), source.grid.affine @ np.diag([1, 1, 1.5, 1]))
    with pytest.raises(InputError, match="not on the grid"):
        write_rtstruct(moved, NAMES, source, tmp_path / "rs.dcm", Identity.of("rt"))
    assert not (tmp_path / "rs.dcm").exists()
