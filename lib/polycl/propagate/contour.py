"""Outlines that follow what the object looks like where it was annotated.

The network's masks are coarse, and drift: each slice is told by the one before. But what HU the object has, and what
lies around it, was shown on the annotated slices; where these tell the two apart, they also tell the edge elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.appearance import AROUND_MM, Appearance, moved
from polycl.components import touching
from polycl.metrics import dice
from polycl.propagate.edges import GAIN, box_around
from polycl.propagate.engine import LARGEST

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float]
PER_MM = 0.6
"""Log-odds that each mm from an outline counts for it, beside HU."""
SMOOTH_MM = 1.0
"""Standard deviation of the Gaussian that averages log-odds."""
LEAST_DICE = 0.7
"""With the outline as it was, on a slice; what comes out as something else is not believed."""
WIDER = tuple(np.arange(0, 1.51, 0.25).tolist())
"""Log-odds that are tried on annotated slices."""


def appearance_of(slices: Iterable[tuple[NDArray[Any], Mask]], spacing: Spacing) -> Appearance | None:
    """What the HU [X, Y] of annotated slices tell of an object, by its masks there; None if there is nothing to tell.

    `spacing` is in mm.
    """
    within, around = [], []
    for hu, mask in slices:
        if (part := box_around(mask, _reach(spacing))) is not None:
            values, inner = hu[part], mask[part]
            finite = np.isfinite(values)
            near = ndimage.distance_transform_edt(~inner, sampling=spacing) < AROUND_MM
            within.append(values[inner & finite])
            around.append(values[~inner & near & finite])
    if not sum(map(len, within)) or not sum(map(len, around)):
        return None
    return Appearance.of(np.concatenate(within), np.concatenate(around))


def contour(
    logits: Plane,
    hu: NDArray[Any],
    spacing: Spacing,
    look: Appearance,
    count: float,
    *,
    joins: bool = True,
    wider: float = 0.0,
) -> Plane:
    """Logits [X, Y] of an object on a slice, moved to where its outline most likely is by its `look`.

    No piece of its own comes up, and what is thinner than the average reaches stays. So does all where it would become
    something else. What joins it gives way to whatever is surer there.

    Args:
        logits: above 0 inside.
        hu: of the same part of the slice.
        spacing: mm between pixels.
        look: what HU tell.
        count: how much that counts; 1 is as likely as HU make it.
        joins: whether pixels may join.
        wider: log-odds by which the object is outlined wider than all this tells.
    """
    part = box_around(logits > 0, _reach(spacing))
    if part is None or (mask := logits[part] > 0).all():
        return logits
    odds = _odds(mask, hu[part], spacing, look, count) + wider
    found = touching((odds > 0) & (mask | joins), mask)
    hanging, throughout = _thin_parts(mask, spacing)
    found = touching(found | hanging, found | throughout)  # thin parts stay, if they hang on what was found
    if (dice(found, mask) or 0.0) < LEAST_DICE:
        return logits
    moved_logits = logits.copy()
    moved_logits[part] = np.where(found, np.where(mask, logits[part], odds), np.where(mask, -LARGEST, logits[part]))
    return moved_logits


def wider_by(slices: Iterable[tuple[NDArray[Any], Mask]], spacing: Spacing, look: Appearance, count: float) -> float:
    """Log-odds by which an object is outlined wider on annotated slices than `contour` has it; the HU, and the masks.

    So it is by who counts the pixels in which it ends as its own. Tighter outlines tell nothing: hasty ones are, too.
    """
    scores = []
    for hu, mask in slices:
        part = box_around(mask, _reach(spacing))
        if part is not None and not (inner := mask[part]).all():
            odds = _odds(inner, hu[part], spacing, look, count)
            thin = np.logical_or(*_thin_parts(inner, spacing))
            scores.append([dice((odds + more > 0) | thin, inner) or 0.0 for more in WIDER])
    if not scores:
        return 0.0
    gains = np.mean(scores, axis=0)
    best = int(np.argmax(gains))
    return WIDER[best] if gains[best] - gains[0] >= GAIN else 0.0


def _odds(mask: Mask, hu: NDArray[Any], spacing: Spacing, look: Appearance, count: float) -> NDArray[np.float64]:
    """Log-odds [X, Y] of an object that was outlined as `mask`, by its `look`; none so far off that nothing joins."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    deviations = [SMOOTH_MM / mm for mm in spacing]
    odds = moved(count * look.odds(hu), inside, outside, max(spacing) / 2, PER_MM, deviations)
    return np.where(outside < AROUND_MM, odds, -LARGEST)


def _thin_parts(mask: Mask, spacing: Spacing) -> tuple[Mask, Mask]:
    """Parts of `mask` that are too thin for the average: those that hang on what is thick, and what is thin throughout.

    Corners and bumps of what is thick are not thin.
    """
    reach = [ceil(SMOOTH_MM / mm) for mm in spacing]
    padded = np.pad(mask, [(pixels, pixels) for pixels in reach])
    thick = _widened(_narrowed(padded, reach), reach)
    thin = touching(padded & ~thick, padded & ~_widened(thick, reach))
    inner = tuple(slice(pixels, -pixels) for pixels in reach)
    return thin[inner], mask & ~touching(mask, thick[inner])


def _widened(mask: Mask, reach: list[int]) -> Mask:
    """Dilated by rectangles of `reach` pixels to each side; as filters along each axis, at a fraction of the cost."""
    wide: Mask = ndimage.maximum_filter(mask, [2 * pixels + 1 for pixels in reach], mode="constant")
    return wide


def _narrowed(mask: Mask, reach: list[int]) -> Mask:
    """Eroded in the same way."""
    narrow: Mask = ndimage.minimum_filter(mask, [2 * pixels + 1 for pixels in reach], mode="constant")
    return narrow


def _reach(spacing: Spacing) -> int:
    return ceil(AROUND_MM / min(spacing))
