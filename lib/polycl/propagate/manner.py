"""The manner in which an object is outlined where it was annotated, to be kept up on other slices.

Those who outline differ: one counts the pixels in which an organ ends as its own, the other does not; one outlines a
kidney with what it encloses, the other leaves that out. An annotated slice shows which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.appearance import Appearance
from polycl.propagate.contour import appearance_of, wider_by
from polycl.propagate.edges import box_around

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]
SPECKS = 0.01
"""Share of an outline's area: with holes of no more in all it is taken for solid, as a brush leaves pixels out."""
BARELY = 0.01
"""Log-odds of what is filled: whatever else claims it has it."""


class Example(NamedTuple):
    """HU and mask of an annotated slice, [X, Y]; and the mask as it was drawn, if that is another, as in haste."""

    hu: NDArray[Any]
    mask: Mask
    drawn: Mask | None = None

    @property
    def solid(self) -> bool:
        """Whether it was drawn without holes to speak of: moving an outline opens and closes some."""
        drawn = self.mask if self.drawn is None else self.drawn
        return bool(holes(drawn).sum() <= SPECKS * drawn.sum())


@dataclass(frozen=True, eq=False)
class Manner:
    """How an object is outlined.

    Attributes:
        look: what HU tell of it, if they do.
        wider: log-odds by which it is outlined wider than they tell.
        solid: whether it is outlined without holes.
    """

    look: Appearance | None
    wider: float
    solid: bool

    @classmethod
    def of(
        cls, near: Sequence[Example], drawn: Sequence[Example], spacing: tuple[float, float], count: float
    ) -> Manner:
        """By annotated slices.

        Args:
            near: those that tell how the object looks, be it by points.
            drawn: those that somebody outlined.
            spacing: mm between pixels.
            count: what HU count, as `contour` has it; 0 is nothing.
        """
        look = appearance_of([one[:2] for one in near], spacing) if count else None
        wider = 0.0 if look is None else wider_by([one[:2] for one in drawn], spacing, look, count)
        return cls(look, wider, bool(drawn) and all(one.solid for one in drawn))


def holes(mask: Mask) -> Mask:
    """What a mask [X, Y] encloses; sides count as its border, corners do not."""
    found = np.zeros_like(mask)
    if (part := box_around(mask, 0)) is not None:
        found[part] = ndimage.binary_fill_holes(mask[part]) & ~mask[part]
    return found


def filled(logits: Plane, most: float) -> Plane:
    """Logits [X, Y] without holes, but for those of over the share `most` of the object's area."""
    mask = logits > 0
    components, count = ndimage.label(holes(mask))
    if not count:
        return logits
    small = np.bincount(components.ravel()) <= most * mask.sum()
    small[0] = False
    full: Plane = np.where(small[components], np.float32(BARELY), logits)
    return full
