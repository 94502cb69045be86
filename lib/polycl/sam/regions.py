"""The part of a slice that a network sees, where it was trained on parts, and prompts and masks there and back.

Slices are images [H, W] as SAM sees them; see `polycl.sam.prompts`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from polycl.sam.engine import Masks, Sight
from polycl.sam.prompts import Prompts

Region = tuple[slice, slice]
"""Rows and columns of a slice's image."""
Bounds = tuple[float, float, float, float]
"""left, top, right, bottom in pixels."""
SNAP = 4
"""A region around a point has its centre on a grid of this share of its side, so that further clicks see the same."""
OUTSIDE = -32.0
"""The logit where a network saw nothing."""


def region_around(bounds: Bounds, side: float, shape: tuple[int, int], spacing: tuple[float, float]) -> Region:
    """The square of `side` mm around `bounds`, moved into the image as far as it fits, and cut where it does not.

    Args:
        bounds: in pixels.
        side: mm.
        shape: (H, W) of the image.
        spacing: mm between rows and between columns.
    """
    left, top, right, bottom = bounds
    parts = []
    for middle, count, mm in zip(((top + bottom) / 2, (left + right) / 2), shape, spacing, strict=True):
        length = min(count, max(1, round(side / mm)))
        start = min(max(round(middle + 0.5 - length / 2), 0), count - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1]


def region_for(sight: Sight, prompts: Prompts, shape: tuple[int, int], spacing: tuple[float, float]) -> Region:
    """What a network of that sight shall see of an image to answer `prompts`: all that they say is inside, and more."""
    inside = prompts.points[prompts.labels == 1]
    bounds = _bounds(prompts, inside)
    mm = np.array([spacing[1], spacing[0]])
    longest = float(max((bounds[2] - bounds[0] + 1) * mm[0], (bounds[3] - bounds[1] + 1) * mm[1]))
    if prompts.box is not None or not len(inside):
        return region_around(bounds, max(sight.coverage * longest, sight.least), shape, spacing)
    step = sight.guess / SNAP / mm
    column, row = (np.floor(inside[0] / step) + 0.5) * step
    region = region_around((column, row, column, row), sight.guess, shape, spacing)
    if _holds(region, bounds):
        return region
    return region_around(bounds, max(sight.coverage * longest, sight.guess), shape, spacing)


def prompts_in(prompts: Prompts, region: Region) -> Prompts:
    """Prompts on an image as prompts on a region of it; points beyond it, which are outside the object, are left out.

    A mask prompt must be of the region already.
    """
    top, left = (part.start or 0 for part in region)
    far = np.array([region[1].stop - left, region[0].stop - top]) - 0.5
    points = prompts.points - (left, top)
    seen = ((points >= -0.5) & (points <= far)).all(axis=1)
    box = None if prompts.box is None else prompts.box - (left, top, left, top)
    return replace(prompts, points=points[seen], labels=prompts.labels[seen], box=box)


def masks_on(masks: Masks, region: Region, shape: tuple[int, int]) -> Masks:
    """Masks of a region on the whole image of `shape`; outside where nothing was seen."""
    logits = np.full((len(masks.logits), *shape), OUTSIDE, dtype=np.float32)
    logits[:, *region] = masks.logits
    return replace(masks, logits=logits)


def _bounds(prompts: Prompts, inside: NDArray[np.float64]) -> Bounds:
    corners = [inside] if prompts.box is None else [inside, prompts.box.reshape(2, 2)]
    points = np.concatenate(corners) if sum(map(len, corners)) else prompts.points
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _holds(region: Region, bounds: Bounds) -> bool:
    rows, columns = region
    left, top, right, bottom = bounds
    within = rows.start <= top and bottom <= rows.stop - 1 and columns.start <= left and right <= columns.stop - 1
    return bool(within)
