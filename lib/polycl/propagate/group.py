"""Objects that share one region of the slices, and so the image features: their seeds, runs and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polycl.propagate.compose import agreement, blend, bridged, keep_connected, without_regrown
from polycl.propagate.ending import Ending, Looks, in_one_piece, one_object
from polycl.propagate.engine import LARGEST, FramePrompt, Tracked
from polycl.propagate.features import Scene, SliceFeatures
from polycl.propagate.frames import Box, FrameGrid, Region
from polycl.propagate.guides import Say
from polycl.propagate.haste import placed
from polycl.propagate.outlines import Annotated, Outline, Outliner
from polycl.propagate.runs import Mark, Run, facing, plan, stretches
from polycl.propagate.seeds import Seed, union
from polycl.propagate.sweep import Found, Lane, Outcome, Sweep
from polycl.propagate.tissue import Tissue

MEET = 0.7
"""Mean Dice of what two runs to one another find where they overlap, from which on they follow one object. Of 39 pairs
of liver lesions, taken for one, the highest had 0.65; long organs of TotalSegmentator have over 0.8, or under 0.63."""
APART = 2.0
"""Diameters of the larger of two seeds: so far apart, at most, they are taken to be of one object."""


class Group:
    """Objects of one region.

    Attributes:
        region: what frames show; it grows when an object grows out of it, and then all is done again.
        seeds: by label, then by mark.
    """

    def __init__(self, scene: Scene, region: Region, span: tuple[int, int], *, fixed: bool = False) -> None:
        """`span` is the first slice that may be visited and the one after the last; a `fixed` region never grows."""
        self.scene, self.span, self.fixed = scene, span, fixed
        self.seeds: dict[int, dict[Mark, Seed]] = {}
        self._taken: dict[tuple[int, Mark], Seed] = {}
        self._prompted: dict[tuple[int, Mark], Tracked] = {}
        self._results: dict[Run, Outcome] = {}
        self._alone: dict[Run, Outcome] = {}
        self._look_at(region)

    def _look_at(self, region: Region) -> None:
        """Show `region` from now on; what was found in another one is void."""
        self.region = region
        self.grid = FrameGrid(region, self.scene.engine.size, self.scene.plane)
        self.features = SliceFeatures(self.scene, self.grid)
        self._outliner = Outliner(self.scene, self.grid)
        self._prompted.clear()
        self._results.clear()
        self._alone.clear()

    def takes(self, box: Box, own: Region) -> bool:
        """Whether an object within `box`, whose own region would be `own`, is seen well enough together with these.

        If so, and nothing was found yet, the region is made to fit all of them.
        """
        if self._results:
            fits = self.region.holds(own, self.grid.shape)
            return fits and self.region.side(self.scene.volume) <= self.scene.how.share * own.side(self.scene.volume)
        together = Region.around(self.scene.volume, union([box, *self._extents()]), self.scene.frames)
        smaller = min(own.side(self.scene.volume), self.region.side(self.scene.volume))
        if together.side(self.scene.volume) > self.scene.how.share * smaller:
            return False
        self._look_at(together)
        return True

    def cover(self, box: Box) -> None:
        """Show a region that holds `box` with room around it, unless this one holds it already."""
        if not self.region.contains(box):
            self._look_at(self.region.larger(self.scene.volume, union([box, *self._extents()]), 1.0, self.scene.frames))

    def put(self, label: int, mark: Mark, seed: Seed) -> None:
        """Another seed; one on the same slice gives way."""
        self.remove(label, mark.z)
        self.seeds.setdefault(label, {})[mark] = seed

    def remove(self, label: int, z: int) -> None:
        """Forget the seed of `label` on slice `z`, if there is one."""
        for mark in [mark for mark in self.seeds.get(label, {}) if mark.z == z]:
            del self.seeds[label][mark]
            self._prompted.pop((label, mark), None)
            self._taken.pop((label, mark), None)
        if not self.seeds.get(label):
            self.seeds.pop(label, None)
            self._outliner.forget(label)

    def pending(self) -> list[Run]:
        """Runs without a result; results of runs that are no longer wanted are dropped."""
        wanted = self._plan()
        self._keep(wanted.__contains__)
        return [run for run in wanted if run not in self._results]

    def _keep(self, wanted: Callable[[Run], bool]) -> None:
        """Drop the results of all other runs."""
        self._results, self._alone = (
            {run: outcome for run, outcome in results.items() if wanted(run)}
            for results in (self._results, self._alone)
        )

    def prepare(self, visited: Callable[[int], None]) -> None:
        """Show the network the seeds, and ask who knows the objects; then more may be `pending` than before."""
        self._prompt(visited)
        self._ask_guides(lambda: visited(0))

    def run(self, visited: Callable[[int], None]) -> bool:
        """Carry out what is pending, once that is prepared.

        False if there is more to do: an object grew out of the region, which is larger now, or two runs that lost it
        begin again.
        """
        pending = self.pending()
        first_time = [run for run in pending if run not in self._alone]
        lanes = [self._lane(run) for run in first_time or pending]
        rim = self.grid.rim(self._side) & (not self.fixed and bool(first_time))
        sweep = Sweep(self.scene.engine, self.features, self.scene.volume.shape[2], self._find, self._values, rim)
        outgrown = sweep.run(lanes, visited)
        if outgrown is None:
            self._results.update({lane.run: lane.outcome for lane in lanes})
            return len(lanes) == len(pending) and not self._joined()
        self._grow(outgrown)
        return False

    def _joined(self) -> bool:
        """Have runs between two seeds begin again that lost the object; whether there are any.

        Then it is taken to be there all the way, and it was if both find much the same where they overlap; else, as
        for two lesions, what they found at first stays.
        """
        again = False
        for pair in facing(self._plan()):
            up, down = pair
            one, other = (self._results[run].found for run in pair)
            shared = set(up.slices) & set(down.slices)
            lost = len(one) < len(up.slices) or len(other) < len(down.slices)
            if up in self._alone:
                kept = self._results if agreement(one, other, shared) >= MEET else self._alone
                outcomes = {run: kept[run] for run in pair}
                self._results |= outcomes
                self._alone |= outcomes
            elif lost and shared and not self._is_between(up):
                self._alone |= {run: self._results.pop(run) for run in pair}
                again = True
        return again

    def outlines(self, check: Callable[[], None]) -> dict[int, dict[int, Outline]]:
        """The results as they are, by label and slice; `check` may raise to stop."""
        made = {}
        for label, seeds in self.seeds.items():
            runs = [(run, self._results[run]) for run in self._plan() if run.label == label and run in self._results]
            found = blend((run, outcome.found) for run, outcome in runs)
            found |= {mark.z: self._prompted[label, mark].logits.cpu() for mark in seeds if mark.present}
            if self.scene.how.connected:
                found = keep_connected(found, [mark.z for mark in seeds if mark.present], self._reach)
            found = self._without_regrown(label, found)
            longest = int(self.scene.how.bridge / self.scene.volume.spacing[2])
            found = bridged(found, stretches(seeds), longest, self.scene.how.overlap)
            as_given = {mark.z for mark, seed in seeds.items() if seed.mask is not None}
            shares = {
                z: outcome.say.share
                for run, outcome in runs
                if outcome.say is not None
                for z in (run.start.z, *outcome.found)
                if z not in as_given
            }
            made[label] = self._outliner.outlines(label, found, self._annotated(label), shares, check)
        return made

    def _without_regrown(self, label: int, found: Found) -> Found:
        """`found` without what grows again on a side to which it is not said where the object ends."""
        seeds = self.seeds[label]
        there, ends = [mark.z for mark in seeds if mark.present], [mark.z for mark in seeds if mark.is_end]
        if not there:
            return found
        first, last = min(there), max(there)
        is_open = {-1: min(ends, default=first) >= first, 1: max(ends, default=last) <= last}
        return without_regrown(found, first, last, [step for step, free in is_open.items() if free])

    def _annotated(self, label: int) -> dict[Mark, Annotated]:
        """Slices that show the object by a seed: as outlined, or as the network has them by points."""
        taken = {mark: self._take(label, mark) for mark in self.seeds[label] if mark.present}
        return {
            mark: Annotated(
                self._prompted_plane(label, mark) if seed.mask is None else seed.mask,
                self.seeds[label][mark].mask,
                self._say(label, (mark,)),
            )
            for mark, seed in taken.items()
        }

    def _shown_planes(self, label: int) -> dict[int, NDArray[np.bool_]]:
        """Masks [X, Y] of annotated slices that show anything: the network may find nothing at a point."""
        return {mark.z: one.mask for mark, one in self._annotated(label).items() if one.mask.any()}

    def _take(self, label: int, mark: Mark) -> Seed:
        """A seed as the network is shown it: a mask may be drawn in haste."""
        if (label, mark) not in self._taken:
            seed, volume = self.seeds[label][mark], self.scene.volume
            if seed.mask is not None and mark.present and self.scene.how.haste:
                seed = replace(seed, mask=placed(seed.mask, volume.voxels[:, :, mark.z], volume.spacing[:2]))
            self._taken[label, mark] = seed
        return self._taken[label, mark]

    def _prompted_plane(self, label: int, mark: Mark) -> NDArray[np.bool_]:
        """What the network made of a seed, [X, Y]."""
        plane = np.zeros(self.grid.shape, dtype=bool)
        x0, x1, y0, y1 = self.grid.box
        plane[x0:x1, y0:y1] = self.grid.restore(self._prompted[label, mark].logits[None].float().cpu())[0] > 0
        return plane

    @property
    def _side(self) -> int:
        """Pixels a side of masks."""
        return self.scene.engine.size // 4

    @property
    def _small(self) -> FrameGrid:
        """The grid of masks: what frames show, at the pixels of masks."""
        return FrameGrid(self.region, self._side, self.grid.shape)

    @property
    def _reach(self) -> int:
        """Pixels that a tube at 45 degrees moves from one slice to the next, not more than a tenth of the region."""
        return int(min(round(self.scene.volume.spacing[2] / self._pixel), self._side // 10))

    @property
    def _pixel(self) -> float:
        """Millimetres between pixels of masks."""
        return self.region.side(self.scene.volume) / self._side

    def _plan(self) -> list[Run]:
        return [
            run
            for label, seeds in self.seeds.items()
            for run in plan(label, list(seeds), *self.span, meet=self.scene.how.meet)
        ]

    def _lane(self, run: Run) -> Lane:
        tracked = {mark: self._prompted[run.label, mark] for mark in run.marks}
        start: NDArray[np.bool_] = (tracked[run.start].logits > 0).cpu().numpy()
        values = self._values(run.start.z)
        looks = Looks.of(values, start)
        tissue = Tissue.of(values, start) if self.scene.how.tissue else None
        distinct = 0.0 if tissue is None else tissue.distinct
        ending = Ending(self.scene.how, self.scene.volume.spacing[2], start, self._reach, run.bounded, looks, distinct)
        memories = {mark: one.memory for mark, one in tracked.items()}
        return Lane(
            run,
            ending,
            tracked[run.start].logits.half().cpu(),
            memories,
            run.to_end or run in self._alone or self._is_between(run),
            self._say(run.label, run.marks),
            tissue,
        )

    def _is_between(self, run: Run) -> bool:
        """Whether a run goes to another seed of one object with its own, which is there all the way.

        It is one if one seed lies on the other, not far away, or if a segmenter that is heard finds it in one piece.
        Others may be two lesions.
        """
        if run.other is None or not run.other.present:
            return False
        ordered = sorted((run.start, run.other), key=lambda mark: mark.z)  # the same for both directions
        low, high = (self._mask(run.label, mark) for mark in ordered)
        diameter = 2 * np.sqrt(max(low.sum(), high.sum()) / np.pi) * self._pixel
        apart = (ordered[1].z - ordered[0].z) * self.scene.volume.spacing[2]
        if apart <= APART * diameter and one_object(low, high, self.scene.how.overlap, self._reach):
            return True
        if (say := self._say(run.label, run.marks)) is None:
            return False
        known = [self._find(run.label, z) for z in range(ordered[0].z, ordered[1].z + 1)]
        return in_one_piece([odds + say.shift > 0 for odds in known if odds is not None], low, high)

    def _say(self, label: int, marks: Sequence[Mark]) -> Say | None:
        """How a segmenter is heard about a label, by how well it agrees with these seeds of it."""
        found = {mark: self._find(label, mark.z) for mark in marks}
        return Say.of([(odds, self._mask(label, mark)) for mark, odds in found.items() if odds is not None])

    def _mask(self, label: int, mark: Mark) -> NDArray[np.bool_]:
        """A seed as the network took it, over the frame."""
        mask: NDArray[np.bool_] = (self._prompted[label, mark].logits > 0).cpu().numpy()
        return mask

    def _ask_guides(self, check: Callable[[], None]) -> None:
        for label, seeds in self.seeds.items():
            seen = {mark: self._mask(label, mark) for mark in seeds if mark.present}
            if self.scene.guides.ask(label, seen, self._shown, partial(self._shown_planes, label), check):
                self._keep(lambda run, changed=label: run.label != changed)  # type: ignore[misc]

    def _prompt(self, visited: Callable[[int], None]) -> None:
        """Ask the network about seeds that it has not seen, slice by slice."""
        waiting: dict[int, list[tuple[int, Mark]]] = {}
        for label, seeds in self.seeds.items():
            for mark in seeds:
                if mark.present and (label, mark) not in self._prompted:
                    waiting.setdefault(mark.z, []).append((label, mark))
        slices = sorted(waiting)
        for z in slices:
            features = self.features.get([z], (later for later in slices if later > z))[z]
            prompts = [self.frame_prompt(self._take(label, mark)) for label, mark in waiting[z]]
            self._prompted.update(zip(waiting[z], self.scene.engine.prompt(features, prompts), strict=True))
            visited(0)

    def frame_prompt(self, seed: Seed) -> FramePrompt:
        """A seed in frame pixels."""
        if seed.mask is not None:
            return FramePrompt(mask=self.grid.masks(seed.mask[None])[0, 0])
        box = None
        if seed.box is not None:
            x0, x1, y0, y1 = seed.box
            corners = self.grid.points([[x0 - 0.5, y0 - 0.5], [x1 - 0.5, y1 - 0.5]])
            box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        points = self.grid.points(seed.points) if len(seed.points) else None
        return FramePrompt(points=points, labels=seed.labels if points is not None else None, box=box)

    def _find(self, label: int, z: int) -> NDArray[np.float32] | None:
        """How likely a segmenter finds a label on a slice, over the frame, log-odds; None if none knows it."""
        plane = self.scene.guides.find(label, z)
        if plane is None:
            return None
        return self._shown(plane)

    def _shown(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-odds of a slice over the frame."""
        return self._small.shown(plane, outside=-LARGEST)

    def _values(self, z: int) -> NDArray[np.float32]:
        """HU of a slice at the pixels of masks."""
        return self._small.values(self.scene.volume, z)

    def _grow(self, outgrown: NDArray[np.bool_]) -> None:
        box = self.grid.extent(outgrown)
        assert box is not None  # it touches the rim, so it is not empty
        everything = union([box, *self._extents()])
        self._look_at(self.region.larger(self.scene.volume, everything, self.scene.how.grow, self.scene.frames))

    def _extents(self) -> list[Box]:
        return [extent for seeds in self.seeds.values() for seed in seeds.values() if (extent := seed.extent)]
