"""A person who annotates, played from reference labels: what is asked for is outlined at once and without a fault.

How long it takes is a model, not a measurement: see `Effort`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polycl.acquisition.selection import Candidate, Pick
from polycl.dataset import Case, LabelledSlice, Target, labelled_slices
from polycl.errors import InputError
from polycl.metrics import dice
from polycl.volume import Volume

Reveal = Literal["slices", "volumes", "propagated", "checked"]
"""What is labelled where a slice of an image is asked for: that slice, all slices, or that slice, from which
propagation fills the volume. `checked`: the slice on which the image's structures are widest, from which propagation
fills the volume between the slices where, as the person says, each outlined structure begins and ends; what went
plainly wrong is thrown away."""
OPEN_MINUTES = 1.0
"""To open a volume and scroll to the slice."""
OUTLINE_MINUTES = 1.0
"""To outline one structure on one slice."""
CHECK_MINUTES = 1.0
"""To wait for a propagation, and to look through what it found; nothing is mended."""
END_MINUTES = 0.5
"""To say where one structure begins and ends."""
BELIEVED = 0.5
"""How far from the outlined slice a propagation is learned from that nobody bounded, in diameters of the structure
there: it errs more the further it goes, and a structure changes over distances like its own size."""
WRONG = 0.5
"""Dice of a structure's propagation with what it should be, below which a person sees at a glance that it is wrong."""

Ends = Mapping[int, tuple[int, int]]
"""First and last slice of structures, by id."""
Fill = Callable[[str, int, Ends], NDArray[np.uint8]]
"""Fills a case from the reference on one of its slices: ids [X, Y, Z]. Without ends nothing is known of where
structures begin and end."""


@dataclass(frozen=True)
class Effort:
    """What a person did. `slices` counts annotated slices, also those that turned out to hold nothing."""

    opened: int = 0
    slices: int = 0
    outlines: int = 0
    checked: int = 0
    bounded: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.opened + other.opened,
            self.slices + other.slices,
            self.outlines + other.outlines,
            self.checked + other.checked,
            self.bounded + other.bounded,
        )

    @property
    def minutes(self) -> float:
        """By the constants of this module; a slice without any structure takes no time of its own."""
        seen = self.opened * OPEN_MINUTES + self.checked * CHECK_MINUTES
        return seen + self.outlines * OUTLINE_MINUTES + self.bounded * END_MINUTES


class Pool:
    """Cases to annotate, in memory: canonical images, and the reference label of each slice."""

    def __init__(self, cases: Sequence[Case], targets: Sequence[Target]) -> None:
        self.images: dict[str, Volume] = {case.name: case.read()[0] for case in cases}
        self.slices: dict[str, list[LabelledSlice]] = {name: [] for name in self.images}
        for one in labelled_slices(cases, targets):
            self.slices[one.case].append(one)
        self.holding = {
            name: np.array([one.classes.any() for one in all_], dtype=bool) for name, all_ in self.slices.items()
        }
        """Which slices hold any structure."""

    def unscored(self, known: Knowledge) -> list[Candidate]:
        """What is left to annotate, for strategies that ask no model: people see on which slices there is something."""
        left = []
        for name, holding in self.holding.items():
            numbers = known.left(name, len(holding))
            if len(numbers):
                left.append(Candidate.unscored(name, numbers, holding[numbers]))
        return left


@dataclass
class Knowledge:
    """What is annotated so far: labelled slices, by image which of them, and what it took."""

    reveal: Reveal
    slices: list[LabelledSlice]
    numbers: dict[str, set[int]]
    effort: Effort

    @classmethod
    def of(cls, picks: Iterable[Sequence[Pick]], pool: Pool, reveal: Reveal, fill: Fill | None) -> Knowledge:
        """What picks gave, round by round. InputError where volumes are to be filled without `fill`."""
        known = cls(reveal, [], {}, Effort())
        for few in picks:
            for pick in few:
                known._annotate(pick, pool, fill)
        return known

    def left(self, name: str, count: int) -> NDArray[np.int64]:
        """Numbers of the slices of an image of `count` that may still be asked for: none once it was a whole volume."""
        numbers = self.numbers.get(name, set())
        if numbers and self.reveal != "slices":
            return np.zeros(0, np.int64)
        return np.array([z for z in range(count) if z not in numbers], dtype=np.int64)

    def count(self, name: str) -> int:
        """How many slices of an image are annotated."""
        return len(self.numbers.get(name, ()))

    def covered(self, name: str, count: int) -> NDArray[np.bool_] | None:
        """Which of its slices are annotated, as `polycl.acquisition.selection.coverage` takes it; None for all."""
        if name in self.numbers and self.reveal != "slices":
            return None
        return np.isin(np.arange(count), list(self.numbers.get(name, ())))

    def _annotate(self, pick: Pick, pool: Pool, fill: Fill | None) -> None:
        all_ = pool.slices[pick.image]
        checked = bounded = 0
        if self.reveal == "slices":
            chosen = outlined = [all_[pick.slice]]
        elif self.reveal == "volumes":
            chosen, outlined = all_, [one for one in all_ if one.classes.any()]
        elif self.reveal == "propagated":
            z = _nearest(pool.holding[pick.image], pick.slice)
            outlined = [all_[z]]
            chosen = _filled(all_, z, pool.images[pick.image].spacing[2], fill)
        else:
            z = _widest(all_)
            outlined = [all_[z]]
            bounded = len(_structures(all_[z]))
            chosen = _filled_between(all_, z, fill)
        if self.reveal in ("propagated", "checked"):
            checked = int(outlined[0].classes.any())
        self.slices += chosen
        self.numbers.setdefault(pick.image, set()).update(one.index for one in chosen)
        outlines = sum(len(_structures(one)) for one in outlined)
        self.effort += Effort(1, len(outlined), outlines, checked, bounded)


def _structures(one: LabelledSlice) -> list[int]:
    """Ids of what is on a slice."""
    return [int(index) for index in np.unique(one.classes) if index]


def _widest(slices: Sequence[LabelledSlice]) -> int:
    """The slice on which structures are widest, all together, each as a share of its own widest."""
    areas = np.array([np.bincount(one.classes.ravel(), minlength=256)[1:] for one in slices], dtype=np.float64)
    return int((areas / np.maximum(areas.max(axis=0), 1)).sum(axis=1).argmax())


def _nearest(holding: NDArray[np.bool_], z: int) -> int:
    """Of the slices that hold something, so that there is something to propagate, the one that is nearest to `z`."""
    where = np.flatnonzero(holding)
    return int(where[np.abs(where - z).argmin()]) if len(where) else z


def _filled(slices: Sequence[LabelledSlice], z: int, thickness: float, fill: Fill | None) -> list[LabelledSlice]:
    """Slice `z` as it was outlined, and those that propagation from it labels, each known as far as it was painted.

    What is not on a slice stays unknown there. What is not on `z` is unknown everywhere else.
    """
    here = slices[z]
    reach = {index: BELIEVED * _diameter(here, index) / thickness for index in _structures(here)}
    found = _asked(fill, here, {}) if reach else None
    filled = []
    for one in slices:
        near = [index for index, far in reach.items() if abs(one.index - z) <= far]
        filled += [here] if one is here else [] if found is None else _known(one, found, near)
    return filled


def _filled_between(slices: Sequence[LabelledSlice], z: int, fill: Fill | None) -> list[LabelledSlice]:
    """Slice `z` as it was outlined, and what propagation from it gives between the ends of each structure on it.

    Beyond its ends a structure is known to be absent. Where propagation found nothing of it before, or went wrong, it
    is unknown; as is everywhere else what is not on `z`.
    """
    here = slices[z]
    ends = {index: _ends(slices, index) for index in _structures(here)}
    if not ends:
        return [here]
    found = _asked(fill, here, ends)
    right = [index for index in ends if _likeness(found, slices, index) >= WRONG]
    filled = []
    for one in slices:
        beyond = [index for index, (first, last) in ends.items() if not first <= one.index <= last]
        filled += [here] if one is here else _known(one, found, right, beyond)
    return filled


def _asked(fill: Fill | None, here: LabelledSlice, ends: Ends) -> NDArray[np.uint8]:
    if fill is None:
        raise InputError("filling volumes needs a model that propagates")
    return fill(here.case, here.index, ends)


def _known(
    one: LabelledSlice, found: NDArray[np.uint8], believed: Sequence[int], absent: Sequence[int] = ()
) -> list[LabelledSlice]:
    """A slice with what was found of the structures `believed`, known where they are; none if nothing is known."""
    plane = found[:, :, one.index]
    classes = np.ascontiguousarray(np.where(np.isin(plane, believed), plane, 0), dtype=np.uint8)
    known = tuple(sorted({*_structures(replace(one, classes=classes)), *absent}))
    return [replace(one, classes=classes, known=known)] if known else []


def _ends(slices: Sequence[LabelledSlice], index: int) -> tuple[int, int]:
    """First and last slice of a structure."""
    there = [one.index for one in slices if (one.classes == index).any()]
    return there[0], there[-1]


def _likeness(found: NDArray[np.uint8], slices: Sequence[LabelledSlice], index: int) -> float:
    """Dice of what was found of a structure with what it should be."""
    return dice(found == index, np.stack([one.classes for one in slices], axis=2) == index) or 0.0


def _diameter(one: LabelledSlice, index: int) -> float:
    """Of a disc as large as a structure on a slice, mm."""
    area = np.count_nonzero(one.classes == index) * one.spacing[0] * one.spacing[1]
    return 2 * float(np.sqrt(area / np.pi))
