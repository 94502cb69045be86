"""What SAM sees of the slices of a label: the same part of each, so at one scale, through one window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.refinement.parameters import RefineParameters
from polycl.refinement.pieces import EIGHT_NEIGHBOURS, Spacing
from polycl.sam.engine import Sight
from polycl.sam.regions import Region, region_around
from polycl.volume import Volume
from polycl.window import Window, seen_through

WHOLE: Region = (slice(None), slice(None))
LEVEL_STEP = 10
"""HU."""


def region_of(
    spans: Sequence[Region], shape: tuple[int, int], spacing: Spacing, how: RefineParameters, sight: Sight | None
) -> Region:
    """Rows and columns that are seen of each slice: where the pieces are, and around it.

    Args:
        spans: rows and columns of each piece.
        shape: rows and columns of a slice.
        spacing: mm between rows and between columns.
        how: the parameters.
        sight: how an engine looks that was trained on parts of slices; it sees what it is used to.
    """
    if sight is not None:
        return _within_sight(sight, spans, shape, spacing, how.reach)
    if how.crop_margin is None:
        return WHOLE
    sides = []
    for axis, length in enumerate(shape):
        low, high = min(span[axis].start for span in spans), max(span[axis].stop for span in spans)
        missing = (how.min_crop / spacing[axis] - (high - low)) / 2
        pad = round(max(how.crop_margin / spacing[axis], missing))
        sides.append(slice(max(0, low - pad), min(length, high + pad)))
    return sides[0], sides[1]


def _within_sight(
    sight: Sight, spans: Sequence[Region], shape: tuple[int, int], spacing: Spacing, reach: float
) -> Region:
    (top, bottom), (left, right) = (
        (min(span[axis].start for span in spans), max(span[axis].stop for span in spans) - 1) for axis in (0, 1)
    )
    longest = max(max((part.stop - part.start) * mm for part, mm in zip(span, spacing, strict=True)) for span in spans)
    whole = max((bottom - top + 1) * spacing[0], (right - left + 1) * spacing[1])
    side = max(sight.coverage * longest, sight.least, whole + 2 * reach)
    return region_around((left, top, right, bottom), side, shape, spacing)


def window_of(mask: NDArray[np.bool_], slices: Sequence[int], volume: Volume, how: RefineParameters) -> Window:
    """The window asked for; without one, around the middle value of the inside of `mask` [X, Y, Z] on `slices`.

    `volume` is the CT in canonical axes.
    """
    if how.window is not None:
        return seen_through(how.window, volume.window)
    inside = [
        volume.voxels[:, :, z][core if core.any() else mask[:, :, z]]
        for z in slices
        for core in [ndimage.binary_erosion(mask[:, :, z], EIGHT_NEIGHBOURS)]
    ]
    values = np.concatenate(inside) if inside else np.zeros(1)
    finite = values[np.isfinite(values)]
    level = float(np.median(finite)) if len(finite) else 0.0
    # Rounded, so that masks that hardly differ share embeddings.
    return Window(level=round(level / LEVEL_STEP) * LEVEL_STEP, width=how.contrast)
