"""Outlines in the voxels of slices, from what was found over coarse frames, and the label map that they make.

What the CT shows moves an outline: its edges, and the HU that the object has where it was annotated. A slice learns of
that from the annotated slices next to it on either side, so an annotation changes nothing beyond the next one; what it
does not change is not outlined again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.components import touching
from polycl.propagate.contour import contour
from polycl.propagate.edges import Edges, Trial, Tried, box_around, choose, inexact, tried
from polycl.propagate.engine import LARGEST
from polycl.propagate.features import Scene
from polycl.propagate.frames import Box, FrameGrid
from polycl.propagate.guides import Recognised, Say
from polycl.propagate.manner import Example, Manner, filled
from polycl.propagate.runs import Mark, beside
from polycl.propagate.sweep import Found

SLICES_AT_A_TIME = 16
TRIALS_AT_A_TIME = 4
TAPERS = 0.5
"""Of the area on an annotated slice: with less the object ends near there, if it has not yet, and nothing joins it."""

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Outline(NamedTuple):
    """Logits of an object on a slice, float16 [x1 - x0, y1 - y0]; outside of `box` it is not."""

    box: Box
    logits: NDArray[np.float16]


class Annotated(NamedTuple):
    """A slice that shows the object by a seed.

    Attributes:
        mask: [X, Y], where the object is by an outline, which may be hasty, or as the network has it by points.
        drawn: that outline, as it was drawn; None for points.
        say: how a segmenter is heard that knows the object, by this slice.
    """

    mask: Mask
    drawn: Mask | None
    say: Say | None


@dataclass(frozen=True, eq=False)
class Source:
    """All that the outline of a slice is made of, beside its HU.

    Attributes:
        logits: over the frame.
        edges: how it follows those of the CT, if it does.
        manner: how the object is outlined on the annotated slices next to it.
        joins: whether pixels may join by their looks.
        share: what a segmenter counts that sees the slice in finer pixels than the network; 0 if none is heard.
    """

    logits: torch.Tensor
    edges: Edges | None
    manner: Manner
    joins: bool
    share: float

    def same(self, other: Source) -> bool:
        """Whether the outline is the same, too."""
        return (
            (self.edges, self.joins, self.share) == (other.edges, other.joins, other.share)
            and self.manner is other.manner
            and torch.equal(self.logits, other.logits)
        )


class Outliner:
    """Makes the outlines of objects of one region, and keeps them: each is made once.

    Those that would take more memory than a session may have are made again each time. Threads do what needs no torch,
    which would start threads of its own in each of them.
    """

    def __init__(self, scene: Scene, grid: FrameGrid) -> None:
        self.scene, self._grid = scene, grid
        self._small = FrameGrid(grid.region, scene.engine.size // 4, grid.shape)
        self._tried: dict[tuple[int, Mark], Tried | None] = {}
        self._manners: dict[tuple[int, tuple[Mark, ...], tuple[Mark, ...]], Manner] = {}
        self._recognised: dict[int, Recognised | None] = {}
        self._made: dict[int, dict[int, tuple[Source, Outline | None]]] = {}

    def outlines(
        self,
        label: int,
        found: Found,
        annotated: Mapping[Mark, Annotated],
        shares: Mapping[int, float],
        check: Callable[[], None],
    ) -> dict[int, Outline]:
        """Those of one object, by slice.

        Args:
            label: the object.
            found: logits over frames by slice.
            annotated: the slices that show it by seeds.
            shares: of a segmenter that is heard in finer pixels, by slice.
            check: called now and then; may raise to stop, and what was made by then is kept.
        """
        self._forget_others(label)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self._learn(label, found, annotated, pool, check)
            sources = {z: self._source(label, z, found, annotated, shares.get(z, 0.0)) for z in found}
            before = self._made.get(label, {})
            kept = (z for z, one in sources.items() if z in before and before[z][0].same(one))
            made = self._made[label] = {z: before[z] for z in kept}
            missing = sorted(z for z in sources if z not in made)
            for start in range(0, len(missing), SLICES_AT_A_TIME):
                check()
                part = {z: sources[z] for z in missing[start : start + SLICES_AT_A_TIME]}
                drawn = pool.map(self._outline, part, part.values(), self._restored(label, part))
                made.update({z: (part[z], one) for z, one in zip(part, drawn, strict=True)})
        result = {z: one for z, (_, one) in made.items() if one is not None}
        self._make_room(label)
        return result

    def forget(self, label: int) -> None:
        """Drop all that is kept of an object."""
        self._tried = {key: one for key, one in self._tried.items() if key[0] != label}
        self._manners = {key: one for key, one in self._manners.items() if key[0] != label}
        self._recognised.pop(label, None)
        self._made.pop(label, None)

    def _make_room(self, label: int) -> None:
        """Keep no more outlines of an object than there is memory for, beside those of others."""
        room = self.scene.how.state_mib << 20
        room -= sum(_bytes(one) for other, made in self._made.items() if other != label for _, one in made.values())
        for z, (_, one) in list(self._made[label].items()):
            room -= _bytes(one)
            if room < 0:
                del self._made[label][z]

    def _forget_others(self, label: int) -> None:
        """Drop what was made with another segmenter's help than who knows the object now."""
        known = self.scene.guides.recognised.get(label)
        if known is not self._recognised.get(label):
            self._recognised[label] = known
            self._made.pop(label, None)
            self._tried = {key: one for key, one in self._tried.items() if key[0] != label}

    def _learn(
        self,
        label: int,
        found: Found,
        annotated: Mapping[Mark, Annotated],
        pool: Executor,
        check: Callable[[], None],
    ) -> None:
        """Try how outlines follow edges, on annotated slices beside others; what is known of gone ones is dropped."""
        self._tried = {key: one for key, one in self._tried.items() if key[0] != label or key[1] in annotated}
        self._manners = {
            key: one for key, one in self._manners.items() if key[0] != label or annotated.keys() >= {*key[1], *key[2]}
        }
        if not self.scene.how.edges:
            return
        wanted = dict.fromkeys(mark for z in sorted(found) for mark in _teachers(z, annotated))
        waiting = [mark for mark in wanted if (label, mark) not in self._tried]
        attempt = partial(tried, self._grid.box, self.scene.volume.spacing[0])
        for start in range(0, len(waiting), TRIALS_AT_A_TIME):
            check()
            part = waiting[start : start + TRIALS_AT_A_TIME]
            trials = [self._trial(label, mark, annotated[mark]) for mark in part]
            masks = [inexact(self._grid, self._small.size, trial.mask) for trial in trials]
            for mark, one in zip(part, pool.map(attempt, trials, masks), strict=True):
                self._tried[label, mark] = one

    def _trial(self, label: int, mark: Mark, annotated: Annotated) -> Trial:
        """An annotated slice, with what a segmenter would say on one like it."""
        hu, plane = self.scene.volume.voxels[:, :, mark.z], self.scene.guides.find(label, mark.z)
        if plane is None or annotated.say is None:
            return Trial(hu, annotated.mask)
        x0, x1, y0, y1 = self._grid.box
        hint = annotated.say.hint(plane[x0:x1, y0:y1])
        return Trial(hu, annotated.mask, lambda logits: (1 - hint.share) * logits + hint.share * hint.odds)

    def _source(self, label: int, z: int, found: Found, annotated: Mapping[Mark, Annotated], share: float) -> Source:
        near, teachers = beside(z, annotated), _teachers(z, annotated)
        known = [one for mark in teachers if (one := self._tried.get((label, mark))) is not None]
        largest = max((_area(found, mark.z) for mark in near), default=0)
        look_at = () if z in {mark.z for mark in near} else near
        manner = self._manner(label, look_at, teachers, annotated)
        return Source(found[z], choose(known), manner, _area(found, z) >= TAPERS * largest, share)

    def _manner(
        self, label: int, near: tuple[Mark, ...], teachers: tuple[Mark, ...], annotated: Mapping[Mark, Annotated]
    ) -> Manner:
        """How an object is outlined on the annotated slices `teachers`, that looks as on the slices `near`."""
        if (key := (label, near, teachers)) not in self._manners:
            volume = self.scene.volume
            shown = {
                mark: Example(volume.voxels[:, :, mark.z], annotated[mark].mask, annotated[mark].drawn)
                for mark in (*near, *teachers)
            }
            looks, drawn = ([shown[mark] for mark in marks] for marks in (near, teachers))
            self._manners[key] = Manner.of(looks, drawn, volume.spacing[:2], self.scene.how.appearance)
        return self._manners[key]

    def _restored(self, label: int, sources: Mapping[int, Source]) -> list[tuple[Plane, Plane | None]]:
        """Logits of slices in the plane's own voxels, each with what a segmenter tells beside that, if it is heard."""
        smooth = self._grid.restore(torch.stack([one.logits.float() for one in sources.values()]))
        finer = self._finer(label, {z: one.share for z, one in sources.items() if one.share})
        return [(plane, finer.get(z)) for z, plane in zip(sources, smooth, strict=True)]

    def _outline(self, z: int, source: Source, restored: tuple[Plane, Plane | None]) -> Outline | None:
        """The outline of a slice from what `_restored` gives of it; None if nothing is there."""
        x0, x1, y0, y1 = self._grid.box
        volume, (plane, finer) = self.scene.volume, restored
        hu = volume.voxels[x0:x1, y0:y1, z]
        if finer is not None:
            plane = _sharpened(plane, finer)
        if source.edges is not None:
            plane = source.edges.follow(plane, hu, volume.spacing[0])
        if (look := source.manner.look) is not None:
            count, wider = self.scene.how.appearance, source.manner.wider
            plane = contour(plane, hu, volume.spacing[:2], look, count, joins=source.joins, wider=wider)
        if source.manner.solid:
            plane = filled(plane, self.scene.how.fill)
        part = box_around(plane > 0, 0)
        if part is None:
            return None
        x, y = part
        return Outline((x0 + x.start, x0 + x.stop, y0 + y.start, y0 + y.stop), plane[part].astype(np.float16))

    def _finer(self, label: int, shares: Mapping[int, float]) -> dict[int, Plane]:
        """What a segmenter tells about the voxels of slices that the pixels of masks were too coarse for."""
        planes = {z: plane for z in shares if (plane := self.scene.guides.find(label, z)) is not None}
        if not planes:
            return {}
        x0, x1, y0, y1 = self._grid.box
        shown = [torch.from_numpy(self._small.shown(plane, outside=-LARGEST)) for plane in planes.values()]
        coarse = self._grid.restore(torch.stack(shown))
        return {
            z: shares[z] * (plane[x0:x1, y0:y1] - smooth)
            for (z, plane), smooth in zip(planes.items(), coarse, strict=True)
        }


def paint(objects: Iterable[tuple[int, Mapping[int, Outline]]], out: NDArray[np.uint8]) -> None:
    """Write labels with their outlines into `out`, canonical [X, Y, Z] and 0: each voxel to the surest of them."""
    planes: dict[int, list[tuple[int, Outline]]] = defaultdict(list)
    for label, outlines in objects:
        for z, outline in outlines.items():
            planes[z].append((label, outline))
    for z, candidates in planes.items():
        surest = np.zeros(out.shape[:2], dtype=np.float32)
        for label, ((x0, x1, y0, y1), logits) in candidates:
            wins = logits > surest[x0:x1, y0:y1]
            out[x0:x1, y0:y1, z][wins] = label
            surest[x0:x1, y0:y1][wins] = logits[wins]


def _teachers(z: int, annotated: Mapping[Mark, Annotated]) -> tuple[Mark, ...]:
    """The outlined slices that tell how slice `z` follows edges: the next ones to it. None for one that is outlined."""
    outlined = [mark for mark, one in annotated.items() if one.drawn is not None]
    near: tuple[Mark, ...] = () if z in {mark.z for mark in outlined} else beside(z, outlined)
    return near


def _bytes(outline: Outline | None) -> int:
    return 0 if outline is None else outline.logits.nbytes


def _area(found: Found, z: int) -> int:
    return int((found[z] > 0).sum()) if z in found else 0


def _sharpened(smooth: Plane, finer: Plane) -> Plane:
    """Logits [X, Y] with finer ones added, but for pieces that the smooth ones have nothing of."""
    plane = smooth + finer
    inside = plane > 0
    plane[inside & ~touching(inside, smooth > 0)] = -LARGEST
    return plane
