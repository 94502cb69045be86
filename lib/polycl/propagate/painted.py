"""Painted masks that come again and again: which slices are seeds, by what was replied before.

A client like 3D Slicer sends the whole structure each time: what it got from us, and what its user changed since. What
differs from a reply is a correction, and the seeds of that reply stay. Of the last replies the one that differs least
counts, so that undoing takes a correction back. A client like OHIF sends the painted slices alone: then they are all
the seeds.

Where a segmenter made what was painted on, or it was saved whole, there is a result on every slice and a seed on none.
A correction is carried as far as `REACH_MM`; what is further away is right as it is, and holds like a seed, until it is
near to a correction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polycl.propagate.seeds import Found, Seed, from_labels
from polycl.volume import Volume

REPLIES = 6
"""That can be gone back to."""
LEAST_KEPT = 2
"""Slices of a reply, other than its seeds, that a mask made from it still holds: one may be a painted slice by itself.
"""
REACH_MM = 20.0
"""How far a correction is carried into what a segmenter found: about a finger's breadth to either side."""
OBJECT = 1
"""The one label there is here."""


@dataclass(frozen=True, eq=False)
class Painted:
    """What a client sends about one structure: bool, canonical [X, Y, Z].

    Attributes:
        mask: the structure.
        covered: where another structure is, so that nobody can tell what is under it.
        more: painted as foreground, beside the structure.
        less: painted as background.
    """

    mask: NDArray[np.bool_]
    covered: NDArray[np.bool_] | None = None
    more: NDArray[np.bool_] | None = None
    less: NDArray[np.bool_] | None = None


Saved = Callable[[], Iterable[NDArray[np.bool_]]]
"""Reads the whole structure as it was saved, if it was."""


class Meant(NamedTuple):
    """What a painted mask means.

    Attributes:
        found: the seeds of label `OBJECT`.
        changed: the slices that were corrected since the reply that it was painted on.
        kept: slices whose seed is what a segmenter found there, for want of anything that a person said; also the two
            empty ones at its ends.
    """

    found: Found
    changed: list[int]
    kept: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class _Reply:
    """`seeds` are those that a person painted; slices in `kept` hold what a segmenter found, and are no seeds here."""

    seeds: Found
    mask: Bits
    kept: frozenset[int]

    @classmethod
    def of_a_segmenter(cls, mask: NDArray[np.bool_]) -> _Reply:
        slices = np.flatnonzero(mask.any(axis=(0, 1))).tolist()
        ends = {slices[0] - 1, slices[-1] + 1} & set(range(mask.shape[2]))
        return cls(Found({OBJECT: {}}, {}), Bits.of(mask), frozenset({*slices, *ends}))


class History:
    """The last replies about one structure of one image to one client."""

    def __init__(self) -> None:
        self._replies: deque[_Reply] = deque(maxlen=REPLIES)
        self._more: Bits | None = None
        self._less: Bits | None = None

    def seeds(
        self, painted: Painted, volume: Volume, segmented: Iterable[NDArray[np.bool_]] = (), saved: Saved = tuple
    ) -> Meant:
        """What `painted` on `volume` (any axis order) means.

        `segmented` [X, Y, Z], canonical, are what segmenters replied about the structure: it may be painted on these,
        and if on no reply, on what `saved` gives, which counts alike. Raises InputError where nothing is painted.
        """
        base, mask, changed = self._nearest(painted, [*_whole(segmented), *self._replies])
        if base is None:
            base, mask, changed = self._nearest(painted, _whole(saved()))
        if base is None:
            labels = volume.with_voxels(np.zeros(volume.shape, np.uint8))
            labels.canonical().voxels[mask] = OBJECT
            return Meant(from_labels(labels), [])
        reach = REACH_MM / volume.canonical().spacing[2]
        kept = frozenset(z for z in base.kept if _holds(z, mask[:, :, z], changed, reach, base.kept))
        seeds = {z: Seed(np.array(mask[:, :, z])) for z in kept} | base.seeds.seeds[OBJECT]
        seeds |= {z: Seed(np.array(mask[:, :, z])) for z in changed}
        also = {}
        for label, part in base.seeds.painted.items():
            also[label] = part.copy()
            also[label][:, :, changed] = False
        return Meant(Found({OBJECT: seeds}, also, base.seeds.notes), changed, kept)

    def replied(self, painted: Painted, meant: Meant, mask: NDArray[np.bool_]) -> None:
        """Remember that `mask` [X, Y, Z], canonical, was the reply to `painted`, which meant `meant`."""
        seeds = {z: seed for z, seed in meant.found.seeds[OBJECT].items() if z not in meant.kept}
        self._replies.append(_Reply(replace(meant.found, seeds={OBJECT: seeds}), Bits.of(mask), meant.kept))
        self._more = None if painted.more is None else Bits.of(painted.more)
        self._less = None if painted.less is None else Bits.of(painted.less)

    def _nearest(self, painted: Painted, replies: list[_Reply]) -> tuple[_Reply | None, NDArray[np.bool_], list[int]]:
        """The reply that was painted on, what is painted, and the slices changed since; without a reply if on none.

        Scribbles that were there before the reply are in it, and may have been mended since: they hide what is under
        them. New ones count.
        """
        drawn, hidden = painted.mask.copy(), np.zeros_like(painted.mask)
        for scribbled, before, value in ((painted.more, self._more, True), (painted.less, self._less, False)):
            if scribbled is not None:
                old = scribbled & before.full() if before is not None else np.zeros_like(scribbled)
                drawn[scribbled & ~old] = value
                hidden |= old
        best, mask, fewest = None, _all_of(painted), []
        for reply in reversed(replies):
            replied = reply.mask.full()
            now = np.where(hidden, replied, drawn)
            different = now != replied
            if painted.covered is not None:
                different &= ~painted.covered
            changed = np.flatnonzero(different.any(axis=(0, 1))).tolist()
            carried = set(np.flatnonzero(replied.any(axis=(0, 1))).tolist()) - set(reply.seeds.seeds[OBJECT])
            kept = len(carried.difference(changed))
            painted_on = carried and (kept >= LEAST_KEPT or kept == len(carried))
            if painted_on and (best is None or len(changed) < len(fewest)):
                best, mask, fewest = reply, now, changed
        return best, mask, fewest


def _whole(masks: Iterable[NDArray[np.bool_]]) -> list[_Reply]:
    return [_Reply.of_a_segmenter(mask) for mask in masks if mask.any()]


def _holds(z: int, plane: NDArray[np.bool_], changed: list[int], reach: float, segmented: frozenset[int]) -> bool:
    """Whether what a segmenter found on slice `z` is right still: it is far from corrections, and no end that one
    lies beyond."""
    if any(abs(z - other) <= reach for other in changed):
        return False
    beyond = any(other < z for other in changed) if z == min(segmented) else any(other > z for other in changed)
    return bool(plane.any()) or not beyond


def _all_of(painted: Painted) -> NDArray[np.bool_]:
    """The structure with all scribbles."""
    mask = painted.mask.copy()
    if painted.more is not None:
        mask |= painted.more
    if painted.less is not None:
        mask &= ~painted.less
    return mask


@dataclass(frozen=True, eq=False)
class Bits:
    """A mask in few bytes: the bits of its bounding box."""

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    sides: tuple[int, ...]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Bits:
        box = []
        for axis in range(mask.ndim):
            others = tuple(other for other in range(mask.ndim) if other != axis)
            there = np.flatnonzero(mask.any(axis=others))
            box.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0))
        return cls.within(mask.shape, tuple(box), mask[tuple(box)])

    @classmethod
    def within(cls, shape: tuple[int, ...], box: tuple[slice, ...], part: NDArray[np.bool_]) -> Bits:
        """A mask of `shape` that is `part` in `box` and False elsewhere."""
        return cls(shape, box, part.shape, np.packbits(part))

    def full(self) -> NDArray[np.bool_]:
        """The whole mask."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.box] = self.part()
        return mask

    def part(self) -> NDArray[np.bool_]:
        """What is in its box."""
        count = int(np.prod(self.sides))
        return np.unpackbits(self.bits, count=count).reshape(self.sides).astype(bool)
