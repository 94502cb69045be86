"""A small series, labels scattered over it, and DICOM SEGs of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from scipy.spatial.transform import Rotation

from polycl.dicomseg import Algorithm, Identity, Segment, SourceSeries, write_seg
from polycl.phantom import write_dicom_series
from polycl.volume import Volume

SHAPE = (13, 11, 6)  # 143 pixels a frame: frames do not begin at whole bytes
SPACING = (1.5, 2.0, 5.0)
IDENTITY = Identity.of("test", creator="user-xyz")
MODEL = Algorithm("AUTOMATIC", "polycl-liver", "0123abcd")


def affine(oblique: bool = False, down: bool = False) -> np.ndarray:
    matrix = np.diag([-SPACING[0], -SPACING[1], -SPACING[2] if down else SPACING[2], 1.0])
    if oblique:
        matrix[:3, :3] = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix() @ matrix[:3, :3]
    matrix[:3, 3] = (31.25, -17.5, 402.125)
    return matrix


def labels(seed: int = 0) -> np.ndarray:
    """Values 0, 2 and 5, scattered, with nothing on the first slice and no 5 on the last two."""
    voxels = np.random.default_rng(seed).choice(np.array([0, 2, 5], np.uint8), SHAPE)
    voxels[:, :, 0] = 0
    voxels[:, :, -2:] = np.where(voxels[:, :, -2:] == 5, 0, voxels[:, :, -2:])
    return voxels


def series(folder: Path, *, seed: int = 1, decreasing: bool = False, **geometry: bool) -> SourceSeries:
    grid = Volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine(**geometry))
    write_dicom_series(grid, folder, seed=seed, decreasing=decreasing)
    return SourceSeries.read(folder)


def write(folder: Path, source: SourceSeries, label: Volume, names: Mapping[str, int]) -> Path:
    path = folder / "seg.dcm"
    write_seg(label, [Segment(name, value, MODEL) for name, value in names.items()], source, path, IDENTITY)
    return path


def other_seg(written: Path, path: Path, change: Any) -> Path:
    seg = pydicom.dcmread(written)
    change(seg)
    seg.save_as(path)
    return path
