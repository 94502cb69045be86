"""A ragged label followed through the plane, so that each slice is outlined as the ones beside it are.

A model that learned from few slices outlines each of them anew, and its outline jumps forth and back from one to the
next; so does a SAM that is asked about slices. A SAM 2 remembers: from where a component is widest it follows it to
either side, and the component itself has a small say. A label that is even through the plane, as a good model gives it
and as people outline it, is left alone. No reference is needed to tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.metrics import dice
from polycl.odds import MOST, STEPS
from polycl.propagate.engine import VideoEngine
from polycl.propagate.features import Cache
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.refinement.parameters import RefineParameters
from polycl.refinement.pieces import edge_distance, pieces_of
from polycl.sam import to_image
from polycl.volume import Volume

Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with slices done and slices in all; may raise to stop."""
FEWEST_SLICES = 3
"""Of a component that is followed."""
TAPER = 1.2
"""So much larger than on a slice nearer to the middle is still tapering off."""
FAR_MM = 30.0
"""From its outline: further out it is not surer that nothing of it is there."""


def follow(
    volume: Volume,
    labels: NDArray[np.uint8],
    label: int,
    engine: VideoEngine,
    cache: Cache,
    how: RefineParameters,
    progress: Progress,
) -> int:
    """Follow each component of `label` in the canonical map `labels` [X, Y, Z], in place; how many were.

    A component stays as it is where it is small or thin, has values beside it that are no numbers, or comes out as
    something else (Dice below `how.min_agreement`). Nothing comes onto a slice without it, or onto another label.
    """
    around = ndimage.find_objects((labels == label).view(np.uint8))
    if not around:
        return 0
    components, _ = ndimage.label(labels[around[0]] == label, ndimage.generate_binary_structure(3, 3))
    boxes = ndimage.find_objects(components)
    total = sum(box[2].stop - box[2].start for box in boxes)
    count = before = 0
    for number, box in enumerate(boxes, start=1):
        depth = box[2].stop - box[2].start
        if depth >= FEWEST_SLICES and _worth_it(components[box] == number, volume.spacing, how):
            component = np.zeros(labels.shape, dtype=bool)
            component[around[0]] = components == number
            told = partial(_part, progress, before, depth, total)
            found = _followed_if_possible(volume, component, engine, cache, how, told)
            if (dice(found, component) or 0.0) >= how.min_agreement:
                labels[component] = 0
                labels[found & (labels == 0)] = label
                count += 1
        before += depth
        progress(before, total)
    return count


def _part(progress: Progress, before: int, depth: int, total: int, done: int, expected: int) -> None:
    progress(before + depth * min(done, expected) // max(1, expected), total)


def _worth_it(component: Mask, spacing: tuple[float, float, float], how: RefineParameters) -> bool:
    """Whether a component is large and deep enough where it is widest."""
    widest = component[:, :, _widest(component)]
    return bool(pieces_of(to_image(np.pad(widest, 1)), (spacing[1], spacing[0]), how)[0])


def _widest(component: Mask) -> int:
    return int(np.count_nonzero(component, axis=(0, 1)).argmax())


def _followed_if_possible(
    volume: Volume, component: Mask, engine: VideoEngine, cache: Cache, how: RefineParameters, progress: Progress
) -> Mask:
    """What becomes of a component; nothing where its slices are not all numbers or memory does not suffice."""
    box = ndimage.find_objects(component.view(np.uint8))[0]
    try:
        if np.isfinite(volume.voxels[:, :, box[2]]).all():
            return _followed(volume, component, box, engine, cache, how, progress)
    except MemoryError:
        pass  # what SAM made of it is worth keeping
    return np.zeros_like(component)


def _followed(
    volume: Volume,
    component: Mask,
    box: tuple[slice, slice, slice],
    engine: VideoEngine,
    cache: Cache,
    how: RefineParameters,
    progress: Progress,
) -> Mask:
    """What becomes of a component within `box`, from where it is widest to its first and last slice at most.

    SAM 2 may lose what ends thinly: where it was lost though both agreed to the last, and from there on only tapers
    off, it stays as it was.
    """
    nothing = Seed(np.zeros(component.shape[:2], dtype=bool))
    beyond = {z: nothing for z in (box[2].start - 1, box[2].stop) if 0 <= z < component.shape[2]}
    widest = _widest(component)
    guide = _Itself.of(component, box, volume.spacing, how.follow or 0.0)
    # What it looks like was drawn by a model, not by a person.
    as_it_is = PropagateParameters(appearance=0, haste=False)
    session = Propagation(volume, engine, cache=cache, guides=[guide], parameters=as_it_is)
    session.put(1, beyond | {widest: Seed(component[:, :, widest])})
    found = np.asarray(session.run(progress).voxels == 1)
    first, last = np.flatnonzero(found.any(axis=(0, 1)))[[0, -1]].tolist()
    for ends, lost in ((first, range(first - 1, box[2].start - 1, -1)), (last, range(last + 1, box[2].stop))):
        agreed = (dice(found[:, :, ends], component[:, :, ends]) or 0.0) >= how.min_agreement
        if agreed and _tapers([int(component[:, :, z].sum()) for z in (ends, *lost)]):
            found[:, :, list(lost)] = component[:, :, list(lost)]
    return found


def _tapers(areas: list[int]) -> bool:
    """Whether none is much larger than the least before it."""
    return all(area <= TAPER * least for area, least in zip(areas[1:], accumulate(areas, min), strict=False))


@dataclass(frozen=True, eq=False)
class _Itself:
    """A guide to a component: surer by so many log-odds with each mm from its outline on a slice."""

    odds: NDArray[np.int8]
    name: str = "itself"

    @classmethod
    def of(
        cls, component: Mask, box: tuple[slice, slice, slice], spacing: tuple[float, float, float], slope: float
    ) -> _Itself:
        """For a component within `box`; beyond `FAR_MM` from that nothing is surer."""
        odds = np.full(component.shape, np.clip(-FAR_MM * slope * STEPS, -MOST, 0), dtype=np.int8)
        pads = [round(FAR_MM / mm) for mm in spacing[:2]]
        around = [slice(max(0, side.start - pad), side.stop + pad) for side, pad in zip(box, pads, strict=False)]
        for z in range(box[2].start, box[2].stop):
            here = component[:, :, z][around[0], around[1]]
            if here.any():
                from_edge = edge_distance(here, spacing[:2])
                mm = np.where(here, from_edge, -np.minimum(from_edge, FAR_MM))
                odds[:, :, z][around[0], around[1]] = np.clip(np.round(mm * slope * STEPS), -MOST, MOST)
        return cls(odds)

    def on_slice(self, z: int) -> Mapping[str, NDArray[np.int8]]:
        """See `polycl.propagate.guides.Guide`."""
        return {self.name: self.odds[:, :, z]}

    def everywhere(self, label: str, check: Callable[[], None]) -> NDArray[np.int8]:
        """See `polycl.propagate.guides.Guide`."""
        return self.odds

    def corrects(self, label: str) -> bool:
        """See `polycl.propagate.guides.Guide`."""
        return False

    def corrected(
        self, label: str, found: NDArray[np.int8], annotated: Mapping[int, Mask], check: Callable[[], None]
    ) -> NDArray[np.int8]:
        """See `polycl.propagate.guides.Guide`."""
        return found
