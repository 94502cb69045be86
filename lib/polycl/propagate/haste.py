"""Outlines that were drawn in haste: too tight, too wide, or beside the object, by the same all along.

Such an outline is told from a good one by the CT: moved, widened or tightened as a whole it comes to lie on edges much
stronger than those under it, and the pixels that so join or leave it look like what they join. A good outline lies on
edges already, and where an object has none, as a brainstem within the brain, nothing is told and nothing moved.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.metrics import dice
from polycl.propagate.edges import box_around

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Spacing = tuple[float, float]
CONTRAST = 150.0
"""HU on each side of the object's median in which edges count."""
FAR_MM = 4.5
OFFSETS = np.array([side * mm for mm in np.arange(2.0, FAR_MM + 0.1, 0.5) for side in (-1, 1)])
"""Mm by which an outline is widened; less is a manner. What is best at `FAR_MM` is no edge but a slope."""
SHIFTS = np.array([(x, y) for x in range(-3, 4) for y in range(-3, 4) if 3 < x * x + y * y < 14], dtype=float)
"""Mm along x and y by which it is moved otherwise: who is beside the edge is not too wide as well."""
PIXELS = 0.6
"""That each of these has at least."""
EDGE_MM, CONTOUR_MM = 1.0, 1.0
"""Standard deviations of the Gaussians that smooth the HU, and the outline whose normals are taken."""
COST = 0.01
"""Share of the edge under the outline as it was drawn that each mm away from there must gain."""
STRONGER = 1.3
"""Times the mean edge under the outline as drawn that one under a better one has."""
CLEAR, STRONG = 0.5, (9.0, 10.0)
"""HU a mm that such an edge has for each of their standard deviation within the object, and at least, and enough."""
ALIKE = 0.3
"""Mean log-odds of the pixels that change sides to be of the side to which they come."""
SAME = 0.6
"""Least Dice with what was drawn."""
BIN = 10.0
"""HU of each bin of histograms."""
RARE = 0.002
"""Share that each bin has beside what is counted."""


def placed(mask: Mask, hu: NDArray[Any], spacing: Spacing) -> Mask:
    """Where the object is on a slice that was annotated as `mask`; that mask itself unless it was drawn in haste.

    Args:
        mask: as annotated, [X, Y].
        hu: of the same slice.
        spacing: mm between pixels.
    """
    part = box_around(mask, ceil(2 * FAR_MM / min(spacing)))
    if part is None:
        return mask
    drawn, values = mask[part], hu[part].astype(np.float64)
    known = values[drawn & np.isfinite(values)]
    if not len(known) or drawn.all() or min(drawn.shape) < 2:
        return mask
    median = float(np.median(known))
    seen = np.clip(np.nan_to_num(values, nan=median), median - CONTRAST, median + CONTRAST)
    depth = _depth(drawn, spacing)
    points, outward = _outline(depth, spacing)
    if not len(points):
        return mask
    widths, moves = _tried(spacing)
    strength = _edges(seen, points, outward, widths, moves, spacing)
    as_drawn = strength[0]
    best = int(np.argmax(strength - COST * as_drawn * (np.abs(widths) + np.hypot(*moves.T))))
    if strength[best] < STRONGER * as_drawn or abs(widths[best]) == FAR_MM:
        return mask
    moved = ndimage.shift(depth, moves[best] / spacing, order=1, mode="nearest") + widths[best] > 0
    if (
        (dice(moved, drawn) or 0.0) < SAME
        or strength[best] < np.clip(CLEAR * seen[drawn & moved].std(), *STRONG)
        or _alike(seen, drawn, moved, spacing) < ALIKE
    ):
        return mask
    found = mask.copy()
    found[part] = moved
    return found


def _tried(spacing: Spacing) -> tuple[Floats, Floats]:
    """Mm by which an outline is widened [N] and moved [N, 2], nothing first. No move is small beside pixels."""
    offsets = OFFSETS[np.abs(OFFSETS) > PIXELS * max(spacing)]
    shifts = SHIFTS[((SHIFTS == 0) | (np.abs(SHIFTS) > PIXELS * np.array(spacing))).all(axis=1)]
    widths = np.concatenate([[0.0], offsets, np.zeros(len(shifts))])
    return widths, np.concatenate([np.zeros((1 + len(offsets), 2)), shifts])


def _depth(mask: Mask, spacing: Spacing) -> Floats:
    """Mm from the outline of a mask [X, Y], above 0 within it."""
    half = max(spacing) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    smooth: Floats = ndimage.gaussian_filter(
        np.where(mask, inside - half, half - outside), [CONTOUR_MM / mm for mm in spacing]
    )
    return smooth


def _outline(depth: Floats, spacing: Spacing) -> tuple[Floats, Floats]:
    """Points on an outline, mm [N, 2], and its outward normals there."""
    inward = np.stack(np.gradient(depth, *spacing), axis=-1)
    inward /= np.maximum(np.linalg.norm(inward, axis=-1, keepdims=True), 1e-6)
    near = np.abs(depth) < max(spacing)
    points = np.argwhere(near) * spacing - depth[near][:, None] * inward[near]
    return points, -inward[near]


def _edges(seen: Floats, points: Floats, outward: Floats, widths: Floats, moves: Floats, spacing: Spacing) -> Floats:
    """Mean change of HU a mm across an outline, for each way to widen and move it: [N]."""
    where = points + widths[:, None, None] * outward + moves[:, None]
    at = np.moveaxis(where / spacing, -1, 0)
    across = np.zeros(at.shape[1:])
    for axis, mm in enumerate(spacing):
        order = [int(axis == other) for other in range(2)]
        slope = ndimage.gaussian_filter(seen, [max(0.7, EDGE_MM / one) for one in spacing], order=order) / mm
        across += ndimage.map_coordinates(slope, at, order=1, mode="nearest") * outward[:, axis]
    strength: Floats = np.abs(across).mean(axis=-1)
    return strength


def _alike(seen: Floats, drawn: Mask, moved: Mask, spacing: Spacing) -> float:
    """Mean log-odds of the pixels in one of two masks alone to be on the side where `moved` has them, by their HU.

    What both masks hold, and what lies just beyond either, tell the two sides.
    """
    away = ndimage.distance_transform_edt(~(drawn | moved), sampling=spacing)
    beyond, core, changed = (away > 0) & (away <= max(3.0, *spacing)), drawn & moved, drawn ^ moved
    if not (beyond.any() and changed.any()):
        return 0.0
    bins = ((seen - seen.min()) / BIN).astype(int)
    counts = [np.bincount(bins[side], minlength=bins.max() + 1) / side.sum() for side in (core, beyond)]
    inside, outside = (ndimage.gaussian_filter1d(count, 1.5) + RARE for count in counts)
    odds = np.log(inside / outside)[bins]
    return float(np.where(moved, odds, -odds)[changed].mean())
