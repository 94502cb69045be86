"""Labels of the tiny images, and what is stored of them."""

from pathlib import Path

import numpy as np
from tiny_images import SHAPE

from polycl.labels.library import Library
from polycl.volume import read_volume

LIVER_SPLEEN = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]


def painted(*slices: int, value: int = 1) -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[3:9, 2:9, list(slices)] = value
    return voxels


def stored(studies: Path, image: str = "lps", tag: str = "final") -> np.ndarray:
    found = Library(studies).current(image, tag)
    assert found is not None
    label = read_volume(studies / "labels" / tag / found.record.file, kind="label")
    assert read_volume(found.image).same_grid(label)
    return np.asarray(label.voxels)
