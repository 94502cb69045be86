"""Painted masks that come again and again: which slices are seeds, by what was replied before.

A client like 3D Slicer sends the whole structure each time: what it got from us, and what its user changed since. What
differs from a reply is a correction, and the seeds of that reply stay. Of the last replies the one that differs least
counts, so that undoing takes a correction back. A client like OHIF sends the painted slices alone: then they are all
the seeds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polycl.propagate.seeds import Found, Seed, from_labels
from polycl.volume import Volume

REPLIES = 6
"""That can be gone back to."""
LEAST_KEPT = 2
"""Slices of a reply, other than its seeds, that a mask made from it still holds: one may be a painted slice by itself.
"""
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


@dataclass(frozen=True, eq=False)
class _Reply:
    found: Found
    mask: _Bits


class History:
    """The last replies about one structure of one image to one client."""

    def __init__(self) -> None:
        self._replies: deque[_Reply] = deque(maxlen=REPLIES)
        self._more: _Bits | None = None
        self._less: _Bits | None = None

    def seeds(self, painted: Painted, volume: Volume) -> tuple[Found, list[int]]:
        """The seeds of label `OBJECT` that `painted` on `volume` (any axis order) means, and the slices corrected.

        Raises InputError where nothing is painted.
        """
        base, mask, changed = self._nearest(painted)
        if base is None:
            labels = volume.with_voxels(np.zeros(volume.shape, np.uint8))
            labels.canonical().voxels[mask] = OBJECT
            return from_labels(labels), []
        seeds = dict(base.found.seeds[OBJECT])
        seeds |= {z: Seed(np.array(mask[:, :, z])) for z in changed}
        also = {}
        for label, part in base.found.painted.items():
            also[label] = part.copy()
            also[label][:, :, changed] = False
        return Found({OBJECT: seeds}, also, base.found.notes), changed

    def replied(self, painted: Painted, found: Found, mask: NDArray[np.bool_]) -> None:
        """Remember that `mask` [X, Y, Z], canonical, was the reply to `painted`, from the seeds `found`."""
        self._replies.append(_Reply(found, _Bits.of(mask)))
        self._more = None if painted.more is None else _Bits.of(painted.more)
        self._less = None if painted.less is None else _Bits.of(painted.less)

    def _nearest(self, painted: Painted) -> tuple[_Reply | None, NDArray[np.bool_], list[int]]:
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
        for reply in reversed(self._replies):
            replied = reply.mask.full()
            now = np.where(hidden, replied, drawn)
            different = now != replied
            if painted.covered is not None:
                different &= ~painted.covered
            changed = np.flatnonzero(different.any(axis=(0, 1))).tolist()
            carried = set(np.flatnonzero(replied.any(axis=(0, 1))).tolist()) - set(reply.found.seeds[OBJECT])
            kept = len(carried.difference(changed))
            painted_on = carried and (kept >= LEAST_KEPT or kept == len(carried))
            if painted_on and (best is None or len(changed) < len(fewest)):
                best, mask, fewest = reply, now, changed
        return best, mask, fewest


def _all_of(painted: Painted) -> NDArray[np.bool_]:
    """The structure with all scribbles."""
    mask = painted.mask.copy()
    if painted.more is not None:
        mask |= painted.more
    if painted.less is not None:
        mask &= ~painted.less
    return mask


@dataclass(frozen=True, eq=False)
class _Bits:
    """A mask in few bytes: the bits of its bounding box."""

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    sides: tuple[int, ...]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> _Bits:
        box = []
        for axis in range(mask.ndim):
            others = tuple(other for other in range(mask.ndim) if other != axis)
            there = np.flatnonzero(mask.any(axis=others))
            box.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0))
        part = mask[tuple(box)]
        return cls(mask.shape, tuple(box), part.shape, np.packbits(part))

    def full(self) -> NDArray[np.bool_]:
        mask = np.zeros(self.shape, dtype=bool)
        count = int(np.prod(self.sides))
        mask[self.box] = np.unpackbits(self.bits, count=count).reshape(self.sides).astype(bool)
        return mask
