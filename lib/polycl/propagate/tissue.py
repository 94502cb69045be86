"""What an object is made of, and what that says about the next slice.

A network that knows few organs makes a mask a little smaller on each slice, and soon nothing is left of it. Where an
object's tissue was the object one slice before, it most likely still is, and other tissue at that place is not. That
holds as far as the object differs from what is around it where it was annotated: a kidney lies in fat, a brainstem in
brain, about which its HU tells nothing.

Most objects are of one kind of tissue, with HU about a median. Others are of several, as a bone of its dense rim and
its marrow: where one median tells nothing, it is counted how often each HU is found within and around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.appearance import Appearance
from polycl.propagate.engine import Lean

Mask = NDArray[np.bool_]
Values = NDArray[np.floating[Any]]
ALIKE, UNLIKE = 2.0, 3.0
"""Deviations from the median: within the first a pixel of the last mask still looks like the object, beyond the second
it does not."""
CLOSE, APART = 1.0, 2.5
"""The same for a pixel just outside of it. It must look more like the object to join it, and less so to be kept out."""
LIKELY, LIKELIER = 0.5, 1.0
"""The same two by what was counted: log-odds, and as many below 0 for what does not look like the object."""
LEAST = 8.0
"""HU of the deviation, at least: CT is that noisy."""
NEAR, FAR = 1, 3
"""Pixels of masks from the outline: between these lies what the object is compared with."""
BLENDS = 0.3
"""From this share on that looks like the object around it, its tissue tells nothing."""
JOINS, KEPT_OUT = 0.5, 1.5
"""What these count, beside a pixel of the last mask: objects grow less often than they stay, and what grew into a
neighbour of like HU stays there."""
SWOLLEN = 1.5
"""Times its annotated area; what is larger may have run into something else of the same tissue."""


class Likeness(NamedTuple):
    """Pixels that look like an object and those that do not; and those that do so to join it or be kept out."""

    alike: Mask
    unlike: Mask
    joins: Mask
    kept_out: Mask


@dataclass(frozen=True)
class OneKind:
    """HU about a median, of tissue of one kind."""

    median: float
    deviation: float

    @classmethod
    def of(cls, inside: Values) -> OneKind:
        """Of finite HU within an object, any shape but empty."""
        median = float(np.median(inside))
        deviation = 1.4826 * float(np.median(np.abs(inside - median)))  # that of a normal distribution
        return cls(median, max(LEAST, deviation))

    def likeness(self, values: Values) -> Likeness:
        """Of HU; NaN is neither like it nor unlike."""
        off = np.abs(values - self.median) / self.deviation
        return Likeness(off < ALIKE, off > UNLIKE, off < CLOSE, off > APART)


@dataclass(frozen=True)
class Counted:
    """How often each HU is found within an object and around it."""

    look: Appearance

    def likeness(self, values: Values) -> Likeness:
        """Of HU; NaN is neither like it nor unlike."""
        odds = self.look.odds(values)
        return Likeness(odds > LIKELY, odds < -LIKELY, odds > LIKELIER, odds < -LIKELIER)


@dataclass(frozen=True)
class Tissue:
    """What an object looks like where it was annotated.

    Attributes:
        kind: what its HU are like.
        distinct: how much they differ from those around it, 0 to 1.
        area: pixels of the mask.
    """

    kind: OneKind | Counted
    distinct: float
    area: int

    @classmethod
    def of(cls, values: Values, mask: Mask) -> Tissue | None:
        """Of HU [s, s] within a mask; None where these tell nothing. NaN is left out."""
        seen = np.isfinite(values)
        inner = ndimage.binary_erosion(mask)
        inside = values[(inner if inner.any() else mask) & seen]
        ring = ndimage.binary_dilation(mask, iterations=FAR) & ~ndimage.binary_dilation(mask, iterations=NEAR)
        around = values[ring & seen]
        if not len(inside) or not len(around):
            return None
        one = OneKind.of(inside)
        if (distinct := _differs(one, around)) > 0:
            return cls(one, distinct, int(mask.sum()))
        inside = values[mask & seen]  # its rim may be of another kind
        counted = Counted(Appearance.of(inside, around))
        distinct = _differs(counted, around) * float(counted.likeness(inside).alike.mean())
        return cls(counted, distinct, int(mask.sum())) if distinct > 0 else None

    def lean(self, values: Values, last: Mask, most: float) -> Lean:
        """What HU [s, s] of a slice say, where the object was `last` one slice before; at most `most` log-odds."""
        looks = self.kind.likeness(values)
        rim = ndimage.binary_dilation(last) & ~last
        odds = np.zeros(values.shape, np.float32)
        odds[last & looks.alike] = 1
        odds[last & looks.unlike] = -1
        odds[rim & looks.joins] = JOINS
        odds[rim & looks.kept_out] = -KEPT_OUT
        return Lean(most * self.distinct * odds)

    def stays(self, values: Values, last: Mask) -> float:
        """How much HU [s, s] of a slice say that the object is still there, where it was `last` one slice before.

        From 0 to `distinct`, by the pixels of `last` that look like it, as a share of that and of the annotated area:
        less where the object tapers off. Nothing of what has swollen.
        """
        area = int(last.sum())
        if not 0 < area <= SWOLLEN * self.area:
            return 0.0
        alike = self.kind.likeness(values).alike & last
        return self.distinct * float(alike.sum()) / max(area, self.area)


def _differs(kind: OneKind | Counted, around: Values) -> float:
    """How little of what is around an object looks like it: 1 if nothing does, 0 or less from `BLENDS` on."""
    return 1 - float(kind.likeness(around).alike.mean()) / BLENDS
