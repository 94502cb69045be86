"""Which slices are visited from which seeds, in which direction, and what each looks back at. No numbers, no network.

Seeds cut the slices into stretches. Beyond the outermost seeds a run goes outward until the organ ends; between two
seeds one run starts from either, and where they overlap the results are blended. A run remembers the seeds at the ends
of its stretch and nothing of others: so its result depends on them alone, and a correction can change no other stretch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polycl.propagate.engine import Memory, Recall


@dataclass(frozen=True)
class Mark:
    """One seed of one label, as far as a run is concerned.

    Attributes:
        z: its slice.
        version: another number for another seed on the same slice, the same for the same.
        present: whether the object is there at all; a slice that the user emptied is a seed too.
        is_end: whether the object, which is not there, is known to be on all slices up to this one.
    """

    z: int
    version: int
    present: bool = True
    is_end: bool = False


@dataclass(frozen=True)
class Run:
    """Slices after `start`, in direction `step` (1 or -1), up to but without `end`.

    Two runs that are equal have equal results.

    Attributes:
        label: the object.
        start: the seed it starts from.
        other: the next seed in its direction, if the object is known to go on to there.
        step: 1 towards higher slices, -1 towards lower ones.
        end: the first slice not visited.
    """

    label: int
    start: Mark
    other: Mark | None
    step: int
    end: int

    @property
    def slices(self) -> range:
        """The slices visited, in order."""
        return range(self.start.z + self.step, self.end, self.step)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The seeds that it remembers; where the object ends there is nothing to remember."""
        return (self.start,) if self.other is None or self.other.is_end else (self.start, self.other)

    @property
    def bounded(self) -> bool:
        """Whether the object is known to go on to where the run ends: it stops nowhere before."""
        return self.other is not None

    @property
    def to_end(self) -> bool:
        """Whether the object is known to be on all slices of the run, and to end where that ends."""
        return self.other is not None and self.other.is_end


def plan(label: int, marks: Sequence[Mark], low: int, high: int, *, meet: float = 1.0) -> list[Run]:
    """The runs that reach all slices `low` to `high` (left out) that seeds of `label` can reach.

    Of the slices between two seeds, each of the two runs visits the share `meet` that is nearer to its own, at least
    half: the network knows both seeds, and near one seed what came all the way from the other is worth little.

    Nothing starts from a slice where the object is known to be absent, and nothing goes past it. Up to there all is as
    if nothing were known of it: where between the two the object ends, it does not tell.
    """
    ordered = sorted(marks, key=lambda mark: mark.z)
    runs: list[Run] = []
    if not ordered:
        return runs
    runs += _outward(label, ordered[0], -1, low - 1)
    for before, after in itertools.pairwise(ordered):
        between = after.z - before.z - 1
        both = before.present and after.present
        reach = math.ceil(max(0.5, meet) * between) if both else between
        if before.present:
            runs.append(Run(label, before, _ahead(after), 1, min(before.z + reach + 1, high)))
        if after.present:
            runs.append(Run(label, after, _ahead(before), -1, max(after.z - reach - 1, low - 1)))
    runs += _outward(label, ordered[-1], 1, high)
    return [run for run in runs if len(run.slices)]


def facing(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs that go to one another: from the lower of two seeds that both show the object, and the higher."""
    between = [run for run in runs if run.other is not None and run.other.present]
    down = {(run.label, run.start): run for run in between if run.step < 0}
    to = {run: (run.label, run.other) for run in between if run.step > 0 and run.other is not None}
    return [(up, down[key]) for up, key in to.items() if key in down]


def stretches(marks: Iterable[Mark]) -> list[tuple[int, int]]:
    """First and last slice of each stretch between two neighbouring seeds that both show the object."""
    ordered = sorted(marks, key=lambda mark: mark.z)
    return [(one.z, other.z) for one, other in itertools.pairwise(ordered) if one.present and other.present]


def beside(z: int, marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """The seeds that show the object next to slice `z`, below and above it; its own if there is one there.

    What is told of a slice by these alone no seed changes beyond the next one.
    """
    there = sorted((mark for mark in marks if mark.present), key=lambda mark: mark.z)
    below, above = [mark for mark in there if mark.z <= z], [mark for mark in there if mark.z >= z]
    return tuple(sorted({*below[-1:], *above[:1]}, key=lambda mark: mark.z))


def _ahead(mark: Mark) -> Mark | None:
    """The next seed as a run to it sees it: an emptied slice is a wall, no more."""
    return mark if mark.present or mark.is_end else None


def _outward(label: int, mark: Mark, step: int, end: int) -> list[Run]:
    return [Run(label, mark, None, step, end)] if mark.present else []


def recall(
    run: Run, z: int, seeds: Mapping[Mark, Memory], last: Mapping[int, Memory], *, slots: int, pointers: int, depth: int
) -> Recall:
    """What slice `z` of `run` looks back at, as SAM 2 has it: its seeds, and the last slices in its direction.

    Args:
        run: the run.
        z: a slice of it.
        seeds: memories of its seeds.
        last: memories of slices that it visited before, by slice.
        slots: how many memories the network takes, one of them for seeds.
        pointers: how many pointers it takes.
        depth: slices in all.
    """
    spatial = [(0, seeds[mark]) for mark in run.marks]
    for slot in range(1, slots):
        if (memory := last.get(z - run.step * (slots - slot))) is not None:
            spatial.append((slot, memory))
    reach = min(depth, pointers)
    # A seed ahead has no pointer: distances to it would be negative, which the network saw in training only.
    pointed = [(abs(z - mark.z), seeds[mark]) for mark in run.marks if (z - mark.z) * run.step > 0]
    for back in range(1, reach):
        if (memory := last.get(z - run.step * back)) is not None:
            pointed.append((back, memory))
    return Recall(tuple(spatial), tuple(pointed), reach)
