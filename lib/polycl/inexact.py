"""Outlines that are off by some mm, as those of users in haste are: to learn from, and to measure what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


def tighter(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """A mask [X, Y] without what lies within `mm` of pixels outside; `spacing` is mm between pixels."""
    return np.asarray(_away_from(~mask, spacing) > mm)


def wider(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """A mask with all that lies within `mm` of it."""
    return np.asarray(_away_from(mask, spacing) <= mm)


def shifted(mask: Mask, spacing: Sequence[float], mm: float, angle: float) -> Mask:
    """A mask moved by `mm`, also by parts of pixels, in the direction `angle` (radians, from the first axis on)."""
    pixels = mm * np.array([np.cos(angle), np.sin(angle)]) / spacing
    return np.asarray(ndimage.shift(mask.astype(np.float32), pixels, order=1) > 0.5)


def _away_from(mask: Mask, spacing: Sequence[float]) -> NDArray[np.floating[Any]]:
    """Millimetres from each pixel to the mask; infinite without one, which the transform alone does not say."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask, list(spacing)))
