"""What an object is made of, and what that says about the next slice.

A network that knows few organs makes a mask a little smaller on each slice, and soon nothing is left of it. Where an
object's tissue was the object one slice before, it most likely still is, and other tissue at that place is not. That
holds as far as the object differs from what is around it where it was annotated: a kidney lies in fat, a brainstem in
brain, about which its HU tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.propagate.engine import Lean

Mask = NDArray[np.bool_]
Values = NDArray[np.floating[Any]]
ALIKE, UNLIKE = 2.0, 3.0
"""Deviations from the median: within the first a pixel of the last mask still looks like the object, beyond the second
it does not."""
CLOSE, APART = 1.0, 2.5
"""The same for a pixel just outside of it. It must look more like the object to join it, and less so to be kept out."""
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


@dataclass(frozen=True)
class Tissue:
    """The HU of an object where it was annotated.

    Attributes:
        median: of the HU, from the inner part.
        deviation: of the HU, likewise.
        distinct: how much they differ from those around it, 0 to 1.
        area: pixels of the mask.
    """

    median: float
    deviation: float
    distinct: float
    area: int

    @classmethod
    def of(cls, values: Values, mask: Mask) -> Tissue | None:
        """Of HU [s, s] within a mask; None where these tell nothing. NaN is left out."""
        inner = ndimage.binary_erosion(mask)
        inside = values[(inner if inner.any() else mask) & np.isfinite(values)]
        if not len(inside):
            return None
        median = float(np.median(inside))
        deviation = max(LEAST, 1.4826 * float(np.median(np.abs(inside - median))))  # that of a normal distribution
        ring = ndimage.binary_dilation(mask, iterations=FAR) & ~ndimage.binary_dilation(mask, iterations=NEAR)
        around = values[ring & np.isfinite(values)]
        shared = float(np.mean(np.abs(around - median) < ALIKE * deviation)) if len(around) else 1.0
        distinct = 1 - shared / BLENDS
        return cls(median, deviation, distinct, int(mask.sum())) if distinct > 0 else None

    def lean(self, values: Values, last: Mask, most: float) -> Lean:
        """What HU [s, s] of a slice say, where the object was `last` one slice before; at most `most` log-odds."""
        off = np.abs(values - self.median) / self.deviation
        rim = ndimage.binary_dilation(last) & ~last
        odds = np.zeros(values.shape, np.float32)
        odds[last & (off < ALIKE)] = 1
        odds[last & (off > UNLIKE)] = -1
        odds[rim & (off < CLOSE)] = JOINS
        odds[rim & (off > APART)] = -KEPT_OUT
        return Lean(most * self.distinct * odds)

    def stays(self, values: Values, last: Mask) -> float:
        """How much HU [s, s] of a slice say that the object is still there, where it was `last` one slice before.

        From 0 to `distinct`, by the pixels of `last` that look like it, as a share of that and of the annotated area:
        less where the object tapers off. Nothing of what has swollen.
        """
        area = int(last.sum())
        if not 0 < area <= SWOLLEN * self.area:
            return 0.0
        alike = (np.abs(values - self.median) < ALIKE * self.deviation) & last
        return self.distinct * float(alike.sum()) / max(area, self.area)
