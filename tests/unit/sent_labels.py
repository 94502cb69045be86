"""Labels sent for a folder of two images, and what the folder then has."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from polycl.labels.library import Library
from polycl.labels.saving import Saved, Sent, save
from polycl.volume import Volume, read_volume, write_volume

SHAPE = (8, 7, 6)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
KNOWN = {"liver": 1, "spleen": 2}


def voxels(*slices: int, value: int = 1) -> np.ndarray:
    filled = np.zeros(SHAPE, np.uint8)
    filled[2:5, 2:5, list(slices)] = value
    return filled


def send(
    store: Path,
    label: np.ndarray,
    *,
    who: str = "ann",
    image: str = "a",
    suffix: str = ".nii.gz",
    keep: int = 20,
    tag: str = "final",
    info: dict[str, Any] | None = None,
    **others: Any,
) -> Saved:
    path = store.parent / f"{who}{time.monotonic_ns()}{suffix}"
    write_volume(Volume(label, AFFINE), path, names={"liver": 1, "cyst": 5} if suffix == ".seg.nrrd" else None)
    sent = Sent.read(path, info or {"label_info": [{"name": "liver"}, {"name": "spleen"}]}, annotator=who)
    grid = read_volume(store / f"{image}.nii.gz")
    return save(Library(store, keep, KNOWN), image, tag, sent, grid, **others)


def current(store: Path, image: str = "a") -> np.ndarray:
    found = Library(store).current(image)
    assert found is not None
    assert read_volume(found.label, kind="label").same_grid(read_volume(found.image))
    return np.asarray(read_volume(found.label, kind="label").voxels)
