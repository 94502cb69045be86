"""Runs carried out side by side: at each tick every run that goes on takes its next slice, all in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.propagate.ending import Ending
from polycl.propagate.engine import Hint, Lean, Memory, Recall, Tracked, VideoEngine
from polycl.propagate.features import SliceFeatures
from polycl.propagate.guides import Say
from polycl.propagate.runs import Mark, Run, recall
from polycl.propagate.tissue import Tissue

Known = Callable[[int, int], NDArray[np.float32] | None]
"""How likely a segmenter finds a label on a slice, over the frame, log-odds [s, s]; None if it does not know it."""
Found = dict[int, torch.Tensor]
"""Logits [s, s] in float16 by slice, of the slices where an object is."""


class Outcome(NamedTuple):
    """What a run found, and how a segmenter was heard in it."""

    found: Found
    say: Say | None


@dataclass
class Lane:
    """One run under way. `there`: the object is known to be on all of its slices."""

    run: Run
    ending: Ending
    start: torch.Tensor
    seeds: Mapping[Mark, Memory]
    there: bool = False
    say: Say | None = None
    tissue: Tissue | None = None
    done: int = 0
    last: dict[int, Memory] = field(default_factory=dict)
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def z(self) -> int:
        """The next slice."""
        return self.run.slices[self.done]

    def hint(self, known: NDArray[np.float32] | None) -> Hint | None:
        """Log-odds [s, s] that a segmenter finds, with as much of a say as it has here; None if it has none.

        It has none where it finds nothing of an object that is known to be there.
        """
        if known is None or self.say is None:
            return None
        hint = self.say.hint(known, 0.0 if self.tissue is None else self.tissue.distinct)
        return None if self.there and not (hint.odds > 0).any() else hint

    def lean(self, values: NDArray[np.float32]) -> Lean | None:
        """What the HU [s, s] of the next slice say, if they say anything."""
        if self.tissue is None:
            return None
        return self.tissue.lean(values, self.ending.last, self.ending.how.tissue)

    def recall(self, engine: VideoEngine, depth: int, hint: Hint | None, values: NDArray[np.float32]) -> Recall:
        """What the next slice looks back at, and what it is told beside: by a segmenter first, then by its tissue."""
        hints = tuple(one for one in (hint, self.lean(values)) if one is not None)
        looks = recall(
            self.run, self.z, self.seeds, self.last, slots=engine.memories, pointers=engine.pointers, depth=depth
        )
        previous = self.logits[-1] if self.logits else self.start
        stays = 0.0 if self.tissue is None else self.tissue.stays(values, self.ending.last)
        presence = self.ending.how.presence * stays
        return replace(looks, previous=previous, hints=hints, there=self.there, presence=presence)

    def take(self, result: Tracked, remembered: int, hint: Hint | None, values: NDArray[np.float32]) -> bool:
        """Keep the next slice's result, and what the last `remembered` slices left; whether the run goes on.

        A segmenter that gave a hint has a say in where the object ends, too.
        """
        logits = result.logits.float().cpu()
        self.last[self.z] = result.memory
        self.last.pop(self.z - remembered * self.run.step, None)
        self.logits.append(logits.half())
        self.done += 1
        mask: NDArray[np.bool_] = (logits > 0).numpy()
        known = None if hint is None else hint.odds > 0
        return self.ending.goes_on(mask, known, values) and self.done < len(self.run.slices)

    @property
    def outcome(self) -> Outcome:
        """The slices that count."""
        results = zip(self.run.slices, self.logits, self.ending.kept, strict=False)
        return Outcome({z: logits for z, logits, kept in results if kept}, self.say)


@dataclass(frozen=True)
class Sweep:
    """What lanes of one region have in common.

    Attributes:
        engine: the network.
        features: the region's slices.
        depth: slices of the volume.
        known: what a segmenter finds.
        values: HU of a slice over the frame.
        rim: where a mask touches a border of the region that is none of the slice; bool [s, s].
    """

    engine: VideoEngine
    features: SliceFeatures
    depth: int
    known: Known
    values: Callable[[int], NDArray[np.float32]]
    rim: NDArray[np.bool_]

    def run(self, lanes: list[Lane], visited: Callable[[int], None]) -> NDArray[np.bool_] | None:
        """Carry out `lanes`; the mask [s, s] of an object that grew out of the region, None if none did.

        `visited` is called at each tick with the number of slices visited or left out in it, and may raise to stop.
        """
        active = list(lanes)
        while active:
            features = self.features.get([lane.z for lane in active], self._later(active))
            hints = [lane.hint(self.known(lane.run.label, lane.z)) for lane in active]
            values = [self.values(lane.z) for lane in active]
            recalls = [
                lane.recall(self.engine, self.depth, hint, seen)
                for lane, hint, seen in zip(active, hints, values, strict=True)
            ]
            results = self.engine.track([features[lane.z] for lane in active], recalls)
            count, going = 0, []
            for lane, result, hint, seen in zip(active, results, hints, values, strict=True):
                goes_on = lane.take(result, self._remembered, hint, seen)
                if lane.ending.kept[-1] and (lane.ending.last & self.rim).any():
                    return lane.ending.last
                count += 1 if goes_on else 1 + len(lane.run.slices) - lane.done
                going += [lane] if goes_on else []
            active = going
            visited(count)
        return None

    @property
    def _remembered(self) -> int:
        return max(self.engine.memories, self.engine.pointers)

    def _later(self, lanes: list[Lane]) -> Iterator[int]:
        """The slices that come after the next, nearest first; as many of each lane as fill a batch together."""
        each = max(1, self.features.ahead // len({lane.z for lane in lanes}))
        for tick in zip_longest(*(lane.run.slices[lane.done + 1 : lane.done + each] for lane in lanes)):
            yield from (z for z in tick if z is not None)
