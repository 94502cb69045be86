"""CT as without contrast medium, made of CT with it, for training.

Medium brightens vessels, organs and kidneys, these most; without it they lie close together, and a kidney may be darker
than the liver that it outshines otherwise. Rough, as it need be: dense bone stays, being brighter than `BONE_HU` away
from labels, and marrow and the rims of bone lose some of their brightness with the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KNEE_HU = (20.0, 50.0)
"""What is darker than this holds no medium."""
LEFT = (0.05, 0.6)
"""Share that stays of what is above."""
OFFSET_HU = (-25.0, 10.0)
"""By which each label then differs from what the curve makes of it."""
NOISE_HU = 12.0
"""Standard deviation of the noise that the curve takes away with the medium, and that comes back."""
BONE_HU = 180.0
RIM = 2.0
"""Pixels: the standard deviation by which labels are widened, so that no bright rim is left around them."""
SOFT = 0.7
"""The same for the offset's edge."""


def unenhanced(hu: NDArray[np.float32], classes: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
    """HU `[C, X, Y]` of a slice and those beside it as a scan without medium, or with little, might have them.

    Args:
        hu: the slice first.
        classes: ids `[X, Y]` of what is labelled on it, 0 for the rest.
        random: draws how much medium is left, and how each label looks.
    """
    knee, left = random.uniform(*KNEE_HU), random.uniform(*LEFT)
    near = ndimage.gaussian_filter((classes > 0).astype(np.float32), RIM) > 0.05
    soft = (hu > knee) & (near | (hu < BONE_HU))
    noise = (1 - left) * NOISE_HU * random.standard_normal(hu.shape, dtype=np.float32)
    curve = np.where(soft, knee + left * (hu - knee) + noise, hu)
    for index in np.unique(classes[classes > 0]):
        inside = ndimage.gaussian_filter((classes == index).astype(np.float32), SOFT)
        curve = curve + np.float32((1 - left) * random.uniform(*OFFSET_HU)) * inside
    result: NDArray[np.float32] = curve.astype(np.float32)
    return result
