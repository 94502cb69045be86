"""Propagation of seeds through a volume, kept for corrections.

    session = Propagation(volume, engine)
    session.put(1, {40: Seed(mask)})
    first = session.run()
    session.put(1, {52: Seed(corrected)})
    second = session.run()      # only the slices between the two seeds, and those beyond the second

Concurrency: one call at a time, the others wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from polycl.errors import Cancelled, InputError
from polycl.propagate.engine import VideoEngine
from polycl.propagate.features import Cache, Scene
from polycl.propagate.frames import Box, Region, longest
from polycl.propagate.group import Group
from polycl.propagate.guides import Guide, Guides, Recognised
from polycl.propagate.header import FrameConfig
from polycl.propagate.outlines import paint
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.runs import Mark
from polycl.propagate.seeds import Found, Seed, check_seeds, union
from polycl.sam.embeddings import EmbeddingCache, content_hash
from polycl.volume import Volume

CACHE_BYTES = 1 << 28
"""For a session that is given no cache: the CT model's features of some hundreds of slices."""
Progress = Callable[[int, int], None]
"""Called with slices done and slices in all; may raise to stop."""
Roi = tuple[int, int, int, int, int, int]
"""x0, x1, y0, y1, z0, z1 in canonical voxels, the ends left out."""


class Propagation:
    """Objects seeded on some slices of one volume, and what was found of them so far."""

    def __init__(
        self,
        volume: Volume,
        engine: VideoEngine,
        *,
        cache: Cache | None = None,
        parameters: PropagateParameters | None = None,
        frames: FrameConfig | None = None,
        roi: Roi | None = None,
        region: Region | None = None,
        guides: Sequence[Guide] = (),
    ) -> None:
        """For a CT in HU with any axis order.

        Args:
            volume: the image.
            engine: the network.
            cache: features of slices, shared with other sessions; one of its own if None.
            parameters: the defaults if None.
            frames: how slices become frames; as the network was trained if None.
            roi: nothing is looked at or found outside of it.
            region: what frames show, for all objects; chosen by the seeds if None.
            guides: segmenters of the volume in canonical axes; one that knows an object helps to follow it.
        """
        self.volume, self.engine = volume, engine
        self.how = parameters or PropagateParameters()
        self._canonical = volume.canonical()
        self._scene = Scene(
            self._canonical,
            content_hash(volume),
            engine,
            frames or engine.frames,
            EmbeddingCache(CACHE_BYTES) if cache is None else cache,
            self.how,
            Guides(guides),
        )
        self._roi = None if roi is None else _within(roi, self._canonical)
        self._region = region
        if self._roi is not None and region is None:
            self._region = Region.over(self._canonical, self._roi[:4])
        self._groups: list[Group] = []
        self._span = (0, self._canonical.shape[2]) if self._roi is None else self._roi[4:]
        self._painted: dict[int, NDArray[np.bool_]] = {}
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[int]:
        """Labels that have seeds."""
        return sorted(label for group in self._groups for label in group.seeds)

    @property
    def recognised(self) -> dict[int, Recognised]:
        """By label, which guide knows the object; known once it was run."""
        return dict(self._scene.guides.recognised)

    def put(self, label: int, seeds: Mapping[int, Seed]) -> None:
        """Add seeds of `label` by canonical slice; on a slice that has one the new one counts.

        Raises InputError for seeds that do not fit the volume, and for more labels than allowed.
        """
        check_seeds(self._canonical, seeds)
        if not 1 <= label <= 255:
            raise InputError(f"label {label} is none; labels are 1 to 255")
        with self._lock:
            self._put({label: seeds})

    def put_found(self, found: Found) -> None:
        """Add all seeds that a label map gave."""
        with self._lock:
            self._put(found.seeds)
            self._painted |= found.painted

    def replace(self, found: Found) -> None:
        """Make these all the seeds there are; what was found from those that were there before is kept.

        Raises InputError for seeds that do not fit the volume, and for more labels than allowed.
        """
        for seeds in found.seeds.values():
            check_seeds(self._canonical, seeds)
        with self._lock:
            for label, z in [(label, z) for label, z, _ in self._seeds() if z not in found.seeds.get(label, {})]:
                self._remove(label, z)
            self._put(found.seeds)
            self._painted = dict(found.painted)

    def remove(self, label: int, z: int) -> None:
        """Forget the seed of `label` on canonical slice `z`."""
        with self._lock:
            self._remove(label, z)

    def run(self, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None) -> Volume:
        """All objects, uint8 on the volume's own grid and axes; slices with a mask for a seed are as they were given.

        Where two objects claim a voxel, the surer one has it.

        Args:
            progress: called at each slice.
            cancelled: asked at each slice; Cancelled is raised where it says so, and nothing half done is kept.

        Raises InputError without any seed with an object on it.
        """
        with self._lock:
            if not any(seed.present for _, _, seed in self._seeds()):
                raise InputError("there is no seed: outline the object on at least one axial slice")
            self._check_room()
            meter = _Meter(progress, cancelled)
            for group in self._groups:
                done = False
                while not done:
                    meter.expect(self._pending())
                    group.prepare(meter.visited)
                    meter.expect(self._pending())
                    done = group.run(meter.visited)
            return self._result(lambda: meter.visited(0))

    def _pending(self) -> int:
        """Slices to visit."""
        return sum(len(run.slices) for group in self._groups for run in group.pending())

    def _remove(self, label: int, z: int) -> None:
        for group in self._groups:
            group.remove(label, z)
        self._groups = [group for group in self._groups if group.seeds]
        self._scene.guides.forget(self.labels)
        self._painted = {one: mask for one, mask in self._painted.items() if one in self.labels}

    def _put(self, seeds: Mapping[int, Mapping[int, Seed]]) -> None:
        together = set(self.labels) | set(seeds)
        if len(together) > self.how.labels:
            raise InputError(f"{len(together)} labels were given; at most {self.how.labels} are propagated at a time")
        boxes = {label: self._extent(each) for label, each in seeds.items()}
        for label in sorted(seeds, key=lambda one: -self._longest(boxes[one])):
            group = self._group(label, boxes[label])
            if any(seed.is_end for seed in seeds[label].values()):
                for mark in [mark for mark in group.seeds.get(label, {}) if mark.is_end and mark.z not in seeds[label]]:
                    group.remove(label, mark.z)
            for z, seed in seeds[label].items():
                before = next((old for mark, old in group.seeds.get(label, {}).items() if mark.z == z), None)
                if before is None or not before.same(seed):
                    group.put(label, Mark(z, seed.version, seed.present, seed.is_end), seed)

    def _group(self, label: int, box: Box | None) -> Group:
        """The group of `label`: its own, one that is near and of its scale, or a new one."""
        for group in self._groups:
            if label in group.seeds:
                if box is not None and self._region is None:
                    group.cover(box)
                return group
        region = self._region
        if region is None:
            around = box or (0, self._canonical.shape[0], 0, self._canonical.shape[1])
            region = Region.around(self._canonical, around, self._scene.frames)
            for group in self._groups:
                if group.takes(around, region):
                    return group
        elif self._groups:
            return self._groups[0]
        group = Group(self._scene, region, self._span, fixed=self._region is not None)
        self._groups.append(group)
        return group

    def _extent(self, seeds: Mapping[int, Seed]) -> Box | None:
        """The box of one label on its seed slices; where there are but points, of what the network makes of them."""
        known = [extent for seed in seeds.values() if (extent := seed.extent) is not None]
        if not known and self._region is None:
            known = [self._scout(z, seed) for z, seed in seeds.items() if seed.present]
        return union(known) if known else None

    def _scout(self, z: int, seed: Seed) -> Box:
        """What the network makes of points, seen in a region of a usual size."""
        inside = seed.points[seed.labels == 1]
        low, high = np.floor(inside.min(axis=0)).astype(int), np.ceil(inside.max(axis=0)).astype(int) + 1
        around = (int(low[0]), int(high[0]), int(low[1]), int(high[1]))
        middle = ((around[0] + around[1] - 1) / 2, (around[2] + around[3] - 1) / 2)
        wide = max(self.how.guess, self._scene.frames.coverage * self._longest(around))
        region = Region.square(self._canonical, middle, wide)
        group = Group(self._scene, region, self._span)
        features = group.features.get([z])[z]
        result = self.engine.prompt(features, [group.frame_prompt(seed)])[0]
        found = group.grid.extent((result.logits > 0).cpu().numpy())
        return around if found is None else union([around, found])

    def _result(self, check: Callable[[], None]) -> Volume:
        result = self.volume.with_voxels(np.zeros(self.volume.shape, dtype=np.uint8))
        out = result.canonical().voxels
        given = {(label, z): seed.mask for label, z, seed in self._seeds() if seed.mask is not None}
        found = [one for group in self._groups for one in group.outlines(check).items()]
        paint([(label, {z: one for z, one in made.items() if (label, z) not in given}) for label, made in found], out)
        if self._roi is not None:
            _clear_outside(out, self._roi)
        for (label, z), mask in given.items():
            out[:, :, z][mask] = label
        for label, painted in self._painted.items():
            out[painted] = label
        return result

    def _seeds(self) -> Iterator[tuple[int, int, Seed]]:
        """Label, slice and seed of every seed."""
        for group in self._groups:
            for label, seeds in group.seeds.items():
                yield from ((label, mark.z, seed) for mark, seed in seeds.items())

    def _longest(self, box: Box | None) -> float:
        return 0.0 if box is None else longest(box, self._canonical)

    def _check_room(self) -> None:
        """InputError where what is found would take more memory than it may: float16 logits for each slice."""
        side = self.engine.size // 4
        depth = self._span[1] - self._span[0]
        visits = max(3, 4 * self.how.meet)  # of a slice: by two runs that overlap, and that may begin again
        need = 2 * side * side * depth * len(self.labels) * visits / 2**20
        if need > self.how.state_mib:
            raise InputError(
                f"{len(self.labels)} labels on {depth} slices may take {need:.0f} MiB, and "
                f"{self.how.state_mib} MiB are allowed: propagate fewer labels at a time, or give a region of interest"
            )


class _Meter:
    """Slices done of slices in all, and whether to stop."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._progress, self._cancelled = progress, cancelled
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        """`count` more slices are to come; those under way are void."""
        self._total = self._done + count
        self._check()

    def visited(self, count: int) -> None:
        """`count` slices are done."""
        self._done += count
        self._check()
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the propagation was cancelled")


def _within(roi: Roi, volume: Volume) -> Roi:
    """The part of `roi` that lies in `volume`; InputError if there is none."""
    ends = []
    for one, other, count in zip(roi[::2], roi[1::2], volume.shape, strict=True):
        ends += [max(0, min(one, other)), min(count, max(one, other))]
        if ends[-2] >= ends[-1]:
            raise InputError(f"the region of interest is outside the image of {volume.shape} voxels, or has no volume")
    x0, x1, y0, y1, z0, z1 = ends
    return x0, x1, y0, y1, z0, z1


def _clear_outside(out: NDArray[np.uint8], roi: Roi) -> None:
    inside = out[roi[0] : roi[1], roi[2] : roi[3], roi[4] : roi[5]].copy()
    out[...] = 0
    out[roi[0] : roi[1], roi[2] : roi[3], roi[4] : roi[5]] = inside
