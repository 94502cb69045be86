"""Slices without a one-sided organ, made of slices with it: the half that has none is mirrored onto the other.

For data sets in which every slice holds the organ (LiTS does): the network otherwise never sees bowel or spleen where
it expects liver. Only for organs without a twin: a mirrored left kidney looks like a right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from polycl.dataset import LabelledSlice

BODY_HU = -150
"""Between air, which some data sets clip at -160, and fat."""

AIR_HU = -1000


def mirrored(slices: Iterable[LabelledSlice]) -> list[LabelledSlice]:
    """A slice without the organ for each that has it in one half of the body only; the others are left out."""
    return [made for one in slices if (made := _mirrored(one)) is not None]


def _mirrored(one: LabelledSlice) -> LabelledSlice | None:
    middle = _midline(one.hu)
    if middle is None:
        return None
    low, high = one.classes[:middle].any(), one.classes[middle:].any()
    if low == high:
        return None
    hu, *beside = (_half_twice(seen, middle, upper=bool(low)) for seen in (one.hu, *one.beside))
    return replace(one, hu=hu, classes=np.zeros_like(one.classes), beside=tuple(beside))


def _half_twice(seen: NDArray[np.int16], middle: int, *, upper: bool) -> NDArray[np.int16]:
    """The upper or lower half of a slice, and its mirror image where the other one was."""
    hu = np.full_like(seen, AIR_HU)
    width = min(middle, len(hu) - middle)
    if upper:
        hu[middle:] = seen[middle:]
        hu[middle - width : middle] = seen[middle : middle + width][::-1]
    else:
        hu[:middle] = seen[:middle]
        hu[middle : middle + width] = seen[middle - width : middle][::-1]
    return hu


def _midline(hu: NDArray[np.int16]) -> int | None:
    """The middle of the body along the first axis, right to left; None if there is none."""
    body = np.flatnonzero((hu > BODY_HU).mean(axis=1) > 0.05)
    return None if len(body) < 2 else int(body[0] + body[-1] + 1) // 2
