"""Scans of two balls in a box, one of them labelled with a lesion in it, as objects to follow."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from polycl.propagate.training.clips import ClipRules, Clips
from polycl.propagate.training.store import ObjectStore
from polycl.propagate.training.views import View
from polycl.volume import Volume, write_volume

SPACING = (3.0, 3.0, 5.0)
RULES = ClipRules(length=3, far_slices=(2, 4), least_pixels=10, ending=0.0)


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Voxels of a 48 x 48 x 16 grid within `radius` mm."""
    axes = np.meshgrid(*(np.arange(n) * mm for n, mm in zip((48, 48, 16), SPACING, strict=True)), indexing="ij")
    return sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) <= radius**2


def patient(seed: int) -> tuple[Volume, Volume]:
    """A body with a bright ball (1) that holds a dark one (2), and another bright ball without a label."""
    random = np.random.default_rng(seed)
    hu = np.full((48, 48, 16), -1000.0)
    hu[4:44, 4:44] = 0.0
    organ, lesion, other = ball((60, 72, 40), 24), ball((60, 72, 40), 9), ball((110, 72, 40), 18)
    hu[organ | other] = 150.0
    hu[lesion] = 60.0
    hu += random.normal(0, 8, hu.shape)
    labels = organ.astype(np.uint8)
    labels[lesion] = 2
    affine = np.diag([*SPACING, 1.0])
    return Volume(hu.astype(np.int16), affine), Volume(labels, affine)


def write_balls(folder: Path) -> Path:
    """A data set of two patients, called one and two."""
    for name, seed in (("one", 1), ("two", 2)):
        image, label = patient(seed)
        for part, volume in (("images", image), ("labels", label)):
            (folder / part).mkdir(exist_ok=True)
            write_volume(volume, folder / part / f"{name}.nii.gz")
    return folder


def clips(store: ObjectStore, **rules: object) -> Clips:
    return Clips(store, replace(RULES, **rules), View(size=64), batches=40, batch=2, seed=7)  # type: ignore[arg-type]
