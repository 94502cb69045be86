"""A round organ on a slice of noise, and outlines of it."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
SHAPE, SPACING = (96, 90), (0.8, 0.9)
X, Y = np.indices(SHAPE)


def disc(radius_mm: float, at: tuple[float, float] = (45.0, 46.0)) -> Mask:
    """Pixels within `radius_mm` of a pixel."""
    return np.asarray(np.hypot((X - at[0]) * SPACING[0], (Y - at[1]) * SPACING[1]) < radius_mm)


ORGAN = disc(20)


def ct(organ: Mask = ORGAN, hu: float = 150.0, *, around: float = 20.0, noise: float = 15.0) -> NDArray[np.float32]:
    """HU of an organ and what is around it, with the same noise each time."""
    values = np.where(organ, hu, around) + np.random.default_rng(0).normal(0, noise, SHAPE)
    return values.astype(np.float32)
