"""Segmenters that know what is being propagated, and then have a say in it.

Each is asked about the annotated slices alone, which costs little. If one of its labels is what was annotated there,
whatever that is called and however sure it is of it, it is asked about the whole volume, and how likely it finds each
pixel is blended into what the network finds on each slice, before that is remembered. Where an annotated slice
contradicts it, as a correction does, it loses its say in the runs from there.

Its share was chosen on the validation patients of OpenKBP, where 0.6 to 0.75 at most are nearly as good; thin bones
would like it higher, glands lower. On the livers of LiTS 0.3 to 0.7 make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from polycl.metrics import dice
from polycl.odds import unpacked
from polycl.propagate.engine import Hint
from polycl.propagate.runs import Mark

if TYPE_CHECKING:
    from polycl.corrector.inference import Corrector
    from polycl.segmenter import Segmenter
    from polycl.volume import Volume

Mask = NDArray[np.bool_]
Odds = NDArray[np.float32]
STRANGER, FRIEND = 0.6, 0.8
"""Dice on annotated slices: up to the first a segmenter has no say, from the second on its full share."""
SUSPECTED = 0.4
"""The same for an object to be recognised by who can correct itself by the annotated slices. On validation and test
patients of OpenKBP other structures than the one that was annotated have less than 0.3."""
SHARE = 0.7
"""What a segmenter's log-odds count at most, beside those of the network."""
YIELDS = 0.5
"""Part of that share which is the network's where nothing like the object is around it: it does well there."""
SUREST = 4.0
"""Log-odds beyond which a segmenter is not believed to be surer where the object's own tissue tells all, twice that
where it tells nothing: it says as much of what it never saw."""
SHIFTS = np.arange(-4.0, 4.01, 0.5)
"""Of a guide's log-odds, tried on annotated slices: how much more, or less, than it would was taken for the object."""
SHOWN = 3
"""Annotated slices that a segmenter is asked about at most."""
TRIED = 2
"""Labels that are looked for in the volume at most."""
ANSWERS = 2
"""About one object that are kept, for who takes a redrawn slice back."""
SHIFT_COST = 0.03
"""Dice that a unit of shift must gain for an object to be recognised by it."""
AS_GOOD = 0.01
"""Dice that a smaller shift may lose there."""
SHIFTED = 0.5
"""Share of the shift found there that is expected on other slices; all of it where so much is not enough."""


class Guide(Protocol):
    """What finds structures in one volume, canonical [X, Y, Z]."""

    @property
    def name(self) -> str:
        """Who is asked."""

    def on_slice(self, z: int) -> Mapping[str, NDArray[np.int8]]:
        """How likely each pixel of one slice is to be what, by its own labels: [X, Y], as `polycl.odds` packs it."""

    def everywhere(self, label: str, check: Callable[[], None]) -> NDArray[np.int8]:
        """How likely each voxel is to be `label`, [X, Y, Z], as `polycl.odds` packs it.

        `check` is called now and then, and may raise to stop.
        """

    def corrects(self, label: str) -> bool:
        """Whether it can make better what it finds of `label` by how slices were annotated."""

    def corrected(
        self, label: str, found: NDArray[np.int8], annotated: Mapping[int, Mask], check: Callable[[], None]
    ) -> NDArray[np.int8]:
        """What `everywhere` found of `label`, once that is known: masks [X, Y] by slice. As it was if it cannot.

        `check` is as for `everywhere`.
        """


@dataclass(eq=False)
class SegmenterGuide:
    """A segmenter of ours, and those that learned to correct it. What it found is kept."""

    segmenter: Segmenter
    name: str
    volume: Volume
    correctors: Sequence[Corrector] = ()
    _slices: dict[int, Mapping[str, NDArray[np.int8]]] = field(default_factory=dict)
    _whole: dict[str, NDArray[np.int8]] = field(default_factory=dict)

    def on_slice(self, z: int) -> Mapping[str, NDArray[np.int8]]:
        """See `Guide`."""
        if z not in self._slices:
            self._slices[z] = self.segmenter.likelihoods(self.volume, z)
        return self._slices[z]

    def everywhere(self, label: str, check: Callable[[], None]) -> NDArray[np.int8]:
        """See `Guide`."""
        if label not in self._whole:
            self._whole[label] = self.segmenter.likelihood(self.volume, label, lambda done, total: check())
        return self._whole[label]

    def corrected(
        self, label: str, found: NDArray[np.int8], annotated: Mapping[int, Mask], check: Callable[[], None]
    ) -> NDArray[np.int8]:
        """See `Guide`."""
        corrector = self._corrector(label)
        return found if corrector is None else corrector.corrected(self.volume, found, annotated, check)

    def corrects(self, label: str) -> bool:
        """See `Guide`."""
        return self._corrector(label) is not None

    def _corrector(self, label: str) -> Corrector | None:
        return next((one for one in self.correctors if one.knows(self.name, label)), None)


@dataclass(frozen=True, eq=False)
class Recognised:
    """An object that a guide knows by the name `label`, and how likely each voxel is to be that, [X, Y, Z].

    `by` are the seeds that it was recognised by, and corrected.
    """

    guide: str
    label: str
    likelihood: NDArray[np.int8]
    by: frozenset[Mark]

    def same(self, other: Recognised) -> bool:
        """Whether it tells the same."""
        named = (self.guide, self.label) == (other.guide, other.label)
        return named and np.array_equal(self.likelihood, other.likelihood)


class Guides:
    """Those of one volume, and which of them knows which object. One call at a time."""

    def __init__(self, guides: Sequence[Guide] = ()) -> None:
        self._guides = tuple(guides)
        self.recognised: dict[int, Recognised] = {}
        self._answers: dict[int, list[Recognised]] = {}
        self._unknown: dict[int, Mapping[Mark, bytes]] = {}

    def ask(
        self,
        label: int,
        seen: Mapping[Mark, Mask],
        on_frame: Callable[[Odds], Odds],
        planes: Callable[[], Mapping[int, Mask]],
        check: Callable[[], None],
    ) -> bool:
        """Find out who knows the object `label`, unless that is known; whether anything else is known of it now.

        Who finds it on one of the annotated slices, of which the largest are shown, must still do so once it has seen
        the volume: a bladder may look like a liver to who does not see the liver. What it finds is then corrected by
        how the slices were annotated. If one of those was taken back or redrawn since, all is asked anew; who undoes
        that has the answer from before again.

        Args:
            label: the object.
            seen: its masks over a frame on annotated slices; empty ones tell nothing.
            on_frame: a plane [X, Y] as that frame shows it.
            planes: gives the same masks as whole planes [X, Y], but for empty ones.
            check: may raise to stop.
        """
        before = self.recognised.get(label)
        holds = next((one for one in self._answers.get(label, ()) if one.by <= seen.keys()), None)
        if holds is not None:
            self.recognised[label] = holds
            return before is None or not before.same(holds)
        largest = sorted(seen, key=lambda mark: -int(seen[mark].sum()))[:SHOWN]
        shown = {mark: seen[mark] for mark in largest if seen[mark].any()}
        question = {mark: mask.tobytes() for mark, mask in shown.items()}
        if before is None and (not shown or self._unknown.get(label) == question):
            return False
        answer = next(self._who_knows(shown, on_frame, check), None) if shown else None
        if answer is None:
            self.recognised.pop(label, None)
            self._unknown[label] = question
            return before is not None
        guide, name, likelihood = answer
        by = frozenset(mark for mark, mask in seen.items() if mask.any())
        found = Recognised(guide.name, name, guide.corrected(name, likelihood, planes(), check), by)
        self.recognised[label] = found
        self._answers[label] = [*self._answers.get(label, ()), found][-ANSWERS:]
        return before is None or not before.same(found)

    def _who_knows(
        self, shown: Mapping[Mark, Mask], on_frame: Callable[[Odds], Odds], check: Callable[[], None]
    ) -> Iterator[tuple[Guide, str, NDArray[np.int8]]]:
        """Guides with the label that is what is `shown`, and what they find of it in the volume, the best first."""

        def compared(planes: Mapping[Mark, NDArray[np.int8]]) -> list[tuple[Odds, Mask]]:
            return [(on_frame(unpacked(planes[mark])), mask) for mark, mask in shown.items()]

        candidates: list[tuple[float, Guide, str, bool]] = []
        for guide in self._guides:
            found = {mark: guide.on_slice(mark.z) for mark in shown}
            check()
            for name in next(iter(found.values())):
                score = _recognition(compared({mark: found[mark][name] for mark in shown}))
                candidates.append((score, guide, name, guide.corrects(name)))
        candidates.sort(key=lambda one: -one[0])
        for score, guide, name, corrects in candidates[:TRIED]:
            if score > (SUSPECTED if corrects else STRANGER):
                likelihood = guide.everywhere(name, check)
                check()
                still = compared({mark: likelihood[:, :, mark.z] for mark in shown})
                heard = any(Say.of([one]) is not None for one in still)
                if heard or (corrects and _recognition(still) > SUSPECTED):
                    yield guide, name, likelihood

    def forget(self, labels: Collection[int]) -> None:
        """Other objects than these have no seeds any more."""
        self.recognised = {label: known for label, known in self.recognised.items() if label in labels}
        self._answers = {label: known for label, known in self._answers.items() if label in labels}
        self._unknown = {label: asked for label, asked in self._unknown.items() if label in labels}

    def find(self, label: int, z: int) -> Odds | None:
        """Log-odds of each pixel of a slice to be the object, [X, Y]; None if nobody knows it."""
        known = self.recognised.get(label)
        return None if known is None else unpacked(known.likelihood[:, :, z])


def likeness(one: Mask, other: Mask) -> float:
    """Dice, and 1 if both are empty."""
    score = dice(one, other)
    return 1.0 if score is None else score


@dataclass(frozen=True)
class Say:
    """How a guide is heard in a run: with which share, and how far its log-odds are shifted first."""

    share: float
    shift: float

    def hint(self, found: Odds, distinct: float = 0.0) -> Hint:
        """What it finds, as it is heard beside an object's own tissue, which is so `distinct`, 0 to 1."""
        most = SUREST * (2 - distinct)
        return Hint(np.clip(found + np.float32(self.shift), -most, most), self.share * (1 - YIELDS * distinct))

    @classmethod
    def of(cls, found: Sequence[tuple[Odds, Mask]]) -> Say | None:
        """By what it finds on annotated slices, and what was annotated there, both [s, s]; None if it has no say.

        Where the outlines there are tighter or wider than its own, some of that is expected elsewhere.
        """
        if not found:
            return None
        scores = {float(shift): _agreement(found, float(shift)) for shift in SHIFTS}
        good = [shift for shift, score in scores.items() if score >= max(scores.values()) - AS_GOOD]
        whole = min(good, key=abs)
        for shift in (SHIFTED * whole, whole):
            agreement = _agreement(found, shift)
            if agreement > STRANGER:
                return cls(SHARE * min(1.0, (agreement - STRANGER) / (FRIEND - STRANGER)), shift)
        return None


def _recognition(found: Sequence[tuple[Odds, Mask]]) -> float:
    """Dice of log-odds with masks, shifted as fits best, on the slice where it is highest; a unit of a shift costs."""
    return max(_agreement([one], float(shift)) - SHIFT_COST * abs(float(shift)) for one in found for shift in SHIFTS)


def _agreement(found: Sequence[tuple[Odds, Mask]], shift: float) -> float:
    """Mean Dice of shifted log-odds with masks."""
    return float(np.mean([likeness(odds + shift > 0, mask) for odds, mask in found]))
