"""When a run has left its object: where it is absent for long enough, by several signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.metrics import dice
from polycl.propagate.parameters import PropagateParameters

SPREADS = 1.5
"""A slice's median may be so many of the seed's own spreads off, at least `drift`, and still be the object's."""
LEAST_SLICES = 2
"""One slice without the object may be a mistake; so many in a row end a run however thick they are."""

AGREEMENT = 0.5
"""Dice of a mask with what a segmenter finds on a slice, from which on both see the same object."""


@dataclass(frozen=True)
class Looks:
    """How an object looks on its seed: the median of its HU, and their spread (median distance from it)."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> Looks | None:
        """Of HU [s, s] within a mask; None without any. NaN is left out."""
        inside = values[mask & np.isfinite(values)]
        if not len(inside):
            return None
        median = float(np.median(inside))
        return cls(median, float(np.median(np.abs(inside - median))))

    def like(self, other: Looks, drift: float) -> bool:
        """Whether `other` may be the same object."""
        return abs(other.median - self.median) <= max(drift, SPREADS * self.spread)


@dataclass
class Ending:
    """Sees the masks of one run in order and says when to stop.

    A slice counts as absent where the mask is empty, has collapsed to a small share of the largest area seen, lies
    elsewhere than the last one that counted, or holds other tissue than the seed, unless the object is known to go on
    to the far end: a seed near a pole is no measure of the middle. A run stops once slices over `patience` mm, and at
    least `LEAST_SLICES`, are absent in a row.

    A segmenter that knows the object has a say too: a mask that it agrees with counts whatever it looks like; where it
    finds nothing either, absence costs twice; where it finds the object at the place of the last mask, absence costs
    nothing; and masks that it contradicts over `patience` mm end the run, and do not count. That takes up to twice as
    long the more distinct the object's tissue is, by which it is followed all the same.

    Attributes:
        how: the parameters.
        spacing: mm between slices.
        last: the seed's mask at first, then the last mask that counted; bool [s, s].
        reach: pixels that a neighbouring cross-section of an oblique tube may be off.
        bounded: whether the object is known to go on to the far end: then the run never stops.
        looks: how the object looks on its seed, if that is known.
        distinct: how distinct its tissue is from what is around it there, 0 to 1.
    """

    how: PropagateParameters
    spacing: float
    last: NDArray[np.bool_]
    reach: int = 0
    bounded: bool = False
    looks: Looks | None = None
    distinct: float = 0.0
    kept: list[bool] = field(default_factory=list)
    """For each slice seen, whether its mask counts."""
    _largest: int = 0
    _absent: int = 0
    _lost: float = 0.0
    _contradicted: int = 0

    def __post_init__(self) -> None:
        self._largest = int(self.last.sum())

    def goes_on(
        self,
        mask: NDArray[np.bool_],
        known: NDArray[np.bool_] | None = None,
        values: NDArray[np.floating[Any]] | None = None,
    ) -> bool:
        """Take the next slice's mask [s, s], what a segmenter finds there if one knows, and its HU: go on?"""
        here = _agree(mask, known) or (self._counts(mask) and self._alike(mask, values))
        self.kept.append(here)
        if not here:
            self._absent += 1
            self._lost += self._cost(known)
            return self.bounded or self._absent < LEAST_SLICES or self._lost < self.how.patience
        self.last, self._largest = mask, max(self._largest, int(mask.sum()))
        self._absent, self._lost = 0, 0.0
        self._contradicted = 0 if known is None or known.any() else self._contradicted + 1
        so_far = self._contradicted * self.spacing / (1 + self.distinct)
        if self.bounded or self._contradicted < LEAST_SLICES or so_far < self.how.patience:
            return True
        self.kept[-self._contradicted :] = [False] * self._contradicted
        return False

    def _cost(self, known: NDArray[np.bool_] | None) -> float:
        if known is None:
            return self.spacing
        if not known.any():
            return 2 * self.spacing
        return 0.0 if (known & self.last).any() else self.spacing

    def _alike(self, mask: NDArray[np.bool_], values: NDArray[np.floating[Any]] | None) -> bool:
        if self.looks is None or values is None or self.bounded:
            return True
        found = Looks.of(values, mask)
        return found is None or self.looks.like(found, self.how.drift)

    def _counts(self, mask: NDArray[np.bool_]) -> bool:
        area = int(mask.sum())
        if area == 0 or area < self.how.collapse * self._largest:
            return False
        return one_object(mask, self.last, self.how.overlap, self.reach)


def one_object(one: NDArray[np.bool_], other: NDArray[np.bool_], overlap: float, reach: int = 0) -> bool:
    """Whether two masks lie on one another to the share `overlap` of the smaller one, and at all.

    They may be `reach` pixels off.
    """
    near = ndimage.binary_dilation(other, iterations=reach) if reach else other
    shared = int((one & near).sum())
    return shared > 0 and shared >= overlap * min(int(one.sum()), int(other.sum()))


def in_one_piece(masks: Sequence[NDArray[np.bool_]], first: NDArray[np.bool_], last: NDArray[np.bool_]) -> bool:
    """Whether neighbouring slices [s, s] show one piece that lies in `first` on the first and in `last` on the last."""
    if not masks:
        return False
    pieces, _ = ndimage.label(np.stack(masks))
    return bool(np.intersect1d(pieces[0][first], pieces[-1][last]).any())


def _agree(mask: NDArray[np.bool_], known: NDArray[np.bool_] | None) -> bool:
    """Whether a segmenter finds much the same on a slice, and anything at all."""
    return known is not None and (dice(mask, known) or 0.0) >= AGREEMENT
