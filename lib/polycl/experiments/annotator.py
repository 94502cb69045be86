"""A person who annotates, played from reference labels: what is asked for is outlined at once and without a fault.

How long it takes is a model, not a measurement: see `Effort`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polycl.acquisition.selection import Candidate, Pick
from polycl.dataset import Case, LabelledSlice, Target, labelled_slices
from polycl.errors import InputError
from polycl.volume import Volume

Reveal = Literal["slices", "volumes", "propagated", "guided"]
"""What is labelled where a slice of an image is asked for: that slice, all slices, or that slice, from which
propagation fills the volume. `guided`: from the middle slice of the structure that was outlined least so far, and
with the help of the model that was learned so far, anew after each round."""
OPEN_MINUTES = 1.0
"""To open a volume and scroll to the slice."""
OUTLINE_MINUTES = 1.0
"""To outline one structure on one slice."""
CHECK_MINUTES = 1.0
"""To wait for a propagation, and to look through what it found; it is taken as it is."""
BELIEVED = 0.5
"""How far from the outlined slice a propagation is learned from, in diameters of the structure there: it errs more the
further it goes, and a structure changes over distances like its own size."""


@dataclass(frozen=True, eq=False)
class Filled:
    """What propagation made of the reference on one slice.

    Attributes:
        classes: ids `[X, Y, Z]`.
        recognised: those that a segmenter helped to follow: these are believed wherever they are, and are not.
    """

    classes: NDArray[np.uint8]
    recognised: frozenset[int] = frozenset()


Fill = Callable[[str, int], Filled]
"""Fills a case from the reference on one of its slices."""


@dataclass(frozen=True)
class Effort:
    """What a person did. `slices` counts annotated slices, also those that turned out to hold nothing."""

    opened: int = 0
    slices: int = 0
    outlines: int = 0
    checked: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.opened + other.opened,
            self.slices + other.slices,
            self.outlines + other.outlines,
            self.checked + other.checked,
        )

    @property
    def minutes(self) -> float:
        """By the three constants of this module; a slice without any structure takes no time of its own."""
        return self.opened * OPEN_MINUTES + self.outlines * OUTLINE_MINUTES + self.checked * CHECK_MINUTES


class Pool:
    """Cases to annotate, in memory: canonical images, and the reference label of each slice."""

    def __init__(self, cases: Sequence[Case], targets: Sequence[Target]) -> None:
        self.images: dict[str, Volume] = {case.name: case.read()[0] for case in cases}
        self.slices: dict[str, list[LabelledSlice]] = {name: [] for name in self.images}
        for one in labelled_slices(cases, targets):
            self.slices[one.case].append(one)
        classes = range(1, len(targets) + 1)
        self.shown = {
            name: np.array([[(one.classes == index).any() for index in classes] for one in all_])
            for name, all_ in self.slices.items()
        }
        """Which slices show which structures, by image, bool `[slices, structures]`."""
        self.holding = {name: shown.any(axis=1) for name, shown in self.shown.items()}
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
    outlined: dict[int, int] = field(default_factory=dict)
    """On how many slices each structure was outlined."""

    @classmethod
    def of(cls, picks: Iterable[Sequence[Pick]], pool: Pool, reveal: Reveal, fill: Fill | None) -> Knowledge:
        """What picks gave, round by round. InputError for `propagated` without `fill`."""
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
        if self.reveal == "slices":
            chosen, checked = [all_[pick.slice]], 0
            outlined = chosen
        elif self.reveal == "volumes":
            chosen, checked = all_, 0
            outlined = [one for one in all_ if one.classes.any()]
        else:
            shown = pool.shown[pick.image]
            guided = self.reveal == "guided" and bool(shown.any())
            z = self._best(shown) if guided else _nearest(pool.holding[pick.image], pick.slice)
            outlined, checked = [all_[z]], 1
            chosen = _filled(all_, z, pool.images[pick.image].spacing[2], fill)
        seen = [int(index) for one in outlined for index in _structures(one)]
        for index in seen:
            self.outlined[index] = self.outlined.get(index, 0) + 1
        self.slices += chosen
        self.numbers.setdefault(pick.image, set()).update(one.index for one in chosen)
        self.effort += Effort(1, len(outlined), len(seen), checked)

    def _best(self, shown: NDArray[np.bool_]) -> int:
        """The middle slice of the structure that was outlined least."""
        least = min(np.flatnonzero(shown.any(axis=0)), key=lambda index: self.outlined.get(int(index) + 1, 0))
        slices = np.flatnonzero(shown[:, least])
        return int(slices[len(slices) // 2])


def _structures(one: LabelledSlice) -> NDArray[np.uint8]:
    """Ids of what is on a slice."""
    return np.unique(one.classes[one.classes > 0])


def _nearest(holding: NDArray[np.bool_], z: int) -> int:
    """Of the slices that hold something, so that there is something to propagate, the one that is nearest to `z`."""
    where = np.flatnonzero(holding)
    return int(where[np.abs(where - z).argmin()]) if len(where) else z


def _filled(slices: Sequence[LabelledSlice], z: int, thickness: float, fill: Fill | None) -> list[LabelledSlice]:
    """Slice `z` as it was outlined, and those that propagation from it labels, each known as far as it was painted.

    As on the server: what is not on a slice stays unknown there, but for what was recognised. What is not on `z` is
    unknown everywhere else.
    """
    if fill is None:
        raise InputError("filling volumes needs a model that propagates")
    here = slices[z]
    reach = {
        int(index): BELIEVED * _diameter(here, int(index)) / thickness for index in np.unique(here.classes) if index
    }
    if not reach:
        return [here]
    found = fill(here.case, z)
    filled = []
    for one in slices:
        plane = found.classes[:, :, one.index]
        near = [index for index, far in reach.items() if abs(one.index - z) <= far or index in found.recognised]
        classes = np.where(np.isin(plane, near), plane, 0).astype(np.uint8)
        known = tuple(sorted({int(index) for index in np.unique(classes) if index} | found.recognised))
        if one is here:
            filled.append(here)
        elif known:
            filled.append(replace(one, classes=np.ascontiguousarray(classes), known=known))
    return filled


def _diameter(one: LabelledSlice, index: int) -> float:
    """Of a disc as large as a structure on a slice, mm."""
    area = np.count_nonzero(one.classes == index) * one.spacing[0] * one.spacing[1]
    return 2 * float(np.sqrt(area / np.pi))
