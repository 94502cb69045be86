"""Thin labels outlined by what they are made of, where pixels are too large for SAM to see them.

A jaw at 4 mm a pixel is two or three pixels thick: no SAM tells its edge, but each voxel of bone tells that it is bone.
How often each HU is found in the mask and around it, on the slices near, says how likely a voxel is to be of it; beside
that counts how far within or outside of the mask it lies. All of it comes from the mask itself, so that it need not be
known what is outlined.
It is done only where the mask is uneven through the plane, as those of few labels are, and where HU tell the two apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.appearance import AROUND_MM, Appearance, moved, odds_by_slice
from polycl.components import touching
from polycl.metrics import dice
from polycl.refinement.votes import share_of_change

Mask = NDArray[np.bool_]
TOUCHING = np.ones((3, 3, 3), dtype=bool)
NEAR_MM = 20.0
"""Standard deviation of the Gaussian by which slices count that tell what HU mean: teeth are beside a jaw here only."""
PER_MM = 0.48
"""Log-odds that each mm from the outline counts for it, beside HU."""
SMOOTH_MM = 2.0
"""Standard deviation of the Gaussian that averages the log-odds."""
UNEVEN = 0.03
"""Of what changes from slice to slice, more than this jumps forth and back in masks of few labels."""
DISTINCT = 0.35
"""How much the histograms of the mask and of what is around it share, at most, to tell them apart."""
LEAST_DICE = 0.6
"""With the mask, and of a component the share that stays; what comes out as something else is not kept."""
AT_REST = 0.94
"""Dice with the mask; what hardly changes was as good before, as are masks of models that learned much."""
CRUMB = 0.1
"""Of the largest component; what is smaller says nothing of the others, and stays as it is."""
FEWEST_VOXELS = 500
"""Of a mask from which a histogram can be told."""


def outline(
    hu: NDArray[Any], labels: NDArray[np.uint8], label: int, spacing: tuple[float, float, float], count: float
) -> bool:
    """Outline `label` of the canonical map `labels` [X, Y, Z] anew, in place; whether that was done.

    Nothing comes onto a slice without it, or onto another label, and no slice loses it. It stays as it is if it is even
    through the plane, too small, not distinct from what is around it, or beside values that are no numbers, where it
    would hardly change, and where memory does not suffice. So does a component that would be another.

    Args:
        hu: the CT, of the same shape.
        labels: the map.
        label: one of its values.
        spacing: mm between voxels.
        count: how much HU count, beside the mask; 1 is as likely as they make it.
    """
    boxes = ndimage.find_objects((labels == label).view(np.uint8))
    if not boxes:
        return False
    near = tuple(
        slice(max(0, side.start - pad), side.stop + pad)
        for side, pad in zip(boxes[0], (int(np.ceil(AROUND_MM / mm)) for mm in spacing), strict=True)
    )
    part = labels[near]
    mask = _without_crumbs(part == label)
    if np.count_nonzero(mask) < FEWEST_VOXELS or share_of_change(mask) <= UNEVEN:
        return False
    try:
        found = _outlined(np.asarray(hu[near], dtype=np.float32), mask, part == 0, spacing, count)
    except MemoryError:
        return False  # what came of it so far is worth keeping
    if found is None or not LEAST_DICE <= (dice(found, mask) or 0.0) <= AT_REST:
        return False
    part[mask] = 0
    part[found] = label
    return True


def _outlined(
    values: NDArray[np.float32], mask: Mask, free: Mask, spacing: tuple[float, float, float], count: float
) -> Mask | None:
    """What a mask becomes by its HU; it may grow where it is `free`. None if they do not tell."""
    if not np.isfinite(values).all():
        return None
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    around = ~mask & (outside < AROUND_MM)
    if Appearance.of(values[mask], values[around]).shared > DISTINCT:
        return None
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    deviations = [SMOOTH_MM / mm for mm in spacing]
    look = odds_by_slice(values, mask, around, NEAR_MM / spacing[2])
    odds = moved(count * look, inside, outside, max(spacing[:2]) / 2, PER_MM, deviations)
    found = (odds > 0) & (mask | (around & free)) & mask.any(axis=(0, 1))
    return _same_parts(found, mask)


def _same_parts(found: Mask, mask: Mask) -> Mask:
    """`found` without what touches nothing of `mask`, and with all of such parts of that as would be lost.

    These are a component that would lose too much, and the mask on a slice where nothing was found.
    """
    kept = touching(found, mask)
    components, number = ndimage.label(mask, TOUCHING)
    had = np.bincount(components.ravel(), minlength=number + 1)
    has = np.bincount(components[kept], minlength=number + 1)
    kept |= mask & np.isin(components, np.flatnonzero(has < LEAST_DICE * had))
    return kept | (mask & ~kept.any(axis=(0, 1)))


def _without_crumbs(mask: Mask) -> Mask:
    """The components of a mask that are no crumbs beside its largest."""
    components, _ = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.isin(components, np.flatnonzero(sizes >= CRUMB * sizes.max()))
