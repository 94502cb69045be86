"""What runs found, put together into one label map."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from polycl.components import touching
from polycl.propagate.contour import Appearances, contour
from polycl.propagate.edges import Edges
from polycl.propagate.ending import one_object
from polycl.propagate.engine import LARGEST
from polycl.propagate.frames import Box, FrameGrid
from polycl.propagate.runs import Run
from polycl.propagate.sweep import Found
from polycl.volume import Volume

SLICES_AT_A_TIME = 16
TAPERS = 0.5
"""Of the area on an annotated slice: with less the object ends near there, if it has not yet, and nothing joins it."""

TAPERED, REGROWN = 0.1, 1.5
"""A mask of under this share of the largest area before has all but ended; so many times that is something else."""


@dataclass(frozen=True, eq=False)
class Object:
    """One label's result: logits over the frames of a grid, by slice, and how its outlines follow the CT.

    `appearances` is what HU tell of it, and `count` how much that counts.
    `finer` gives what comes to the logits of a slice in its own voxels, [x1 - x0, y1 - y0] over the grid's box, if
    anything does. It sharpens what is there: pieces of its own do not count.
    """

    label: int
    grid: FrameGrid
    logits: Mapping[int, torch.Tensor]
    edges: Edges | None = None
    finer: Callable[[int], NDArray[np.float32] | None] = lambda z: None
    appearances: Appearances | None = None
    count: float = 1.0

    def tapers(self, z: int) -> bool:
        """Whether slice `z` shows little of the object beside the annotated slices next to it."""
        beside = self.appearances.beside(z) if self.appearances is not None else ()
        return self._area(z) < TAPERS * max(map(self._area, beside), default=0)

    def _area(self, z: int) -> int:
        return int((self.logits[z] > 0).sum()) if z in self.logits else 0


def blend(runs: Iterable[tuple[Run, Found]]) -> Found:
    """One result for each slice: of the run that visited it, or of both, each weighing less the nearer its end is.

    Where only one of two runs that visited a slice found the object there, it is weighed against "absent".
    """
    blended: Found = {}
    visits: dict[int, list[tuple[int, torch.Tensor | None]]] = defaultdict(list)
    for run, found in runs:
        for z in run.slices if run.bounded else found:
            visits[z].append((abs(run.end - z), found.get(z)))
    for z, parts in visits.items():
        if len(parts) == 1 and parts[0][1] is not None:
            blended[z] = parts[0][1].float()
            continue
        there = [(weight, part.float().clamp(-LARGEST, LARGEST)) for weight, part in parts if part is not None]
        if there:
            absent = sum(weight for weight, part in parts if part is None)
            total = sum(weight for weight, _ in parts)
            blended[z] = (torch.stack([weight * part for weight, part in there]).sum(dim=0) - absent * LARGEST) / total
    return blended


def bridged(found: Found, stretches: Iterable[tuple[int, int]], longest: int, overlap: float) -> Found:
    """`found` without gaps of up to `longest` slices in `stretches`, from one slice that shows the object to another.

    A gap is filled by what lies on either side of it, each weighing less the further it is, if that is one object going
    on: of the smaller of the two masks the share `overlap` must lie in the other, too.
    """
    filled = dict(found)
    for first, last in stretches:
        there = [z for z in range(first, last + 1) if z in found and bool((found[z] > 0).any())]
        for before, after in itertools.pairwise(there):
            low, high = found[before].float(), found[after].float()
            if 1 < after - before <= longest + 1 and one_object((low > 0).numpy(), (high > 0).numpy(), overlap):
                gap = range(before + 1, after)
                filled |= {z: torch.lerp(low, high, (z - before) / (after - before)) for z in gap}
    return filled


def keep_connected(found: Found, seeds: Collection[int], reach: int) -> Found:
    """`found` without what is not connected, in 3D, to the object on one of the slices `seeds`.

    Pixels up to `reach` apart in the plane count as connected: cross-sections of an oblique tube may not touch.
    """
    if not found:
        return found
    low, high = min(found), max(found)
    side = next(iter(found.values())).shape[-1]
    inside = np.zeros((high - low + 1, side, side), dtype=bool)
    for z, logits in found.items():
        inside[z - low] = (logits > 0).numpy()
    wide = ndimage.binary_dilation(inside, np.ones((1, 3, 3), bool), iterations=reach) if reach else inside
    components, count = ndimage.label(wide, np.ones((3, 3, 3), bool))
    kept = np.zeros(count + 1, dtype=bool)
    for z in seeds:
        if z in found:
            kept[components[z - low][inside[z - low]]] = True
    if kept[1:].all():
        return found
    result: Found = {}
    for z, logits in found.items():
        dropped = inside[z - low] & ~kept[components[z - low]]
        result[z] = logits.masked_fill(torch.from_numpy(dropped), -LARGEST) if dropped.any() else logits
    return result


def without_regrown(found: Found, first: int | None, last: int | None) -> Found:
    """`found` without what grows again where the object had all but ended: that is something which it touches.

    Looked for below the slice `first` and above `last`, the outermost that are annotated; None: not in that direction.
    """
    areas, kept = {z: int((logits > 0).sum()) for z, logits in found.items()}, dict(found)
    for start, step in ((first, -1), (last, 1)):
        if start is None:
            continue
        largest = max((area for z, area in areas.items() if (z - start) * step <= 0), default=0)
        least, ended = largest, None
        for z in itertools.takewhile(lambda z: areas.get(z, 0) > 0, itertools.count(start + step, step)):
            largest = max(largest, areas[z])
            if areas[z] <= min(least, TAPERED * largest):
                least, ended = areas[z], z
            elif ended is not None and areas[z] > REGROWN * least:
                kept = {other: logits for other, logits in kept.items() if (other - ended) * step <= 0}
                break
    return kept


def paint(objects: Collection[Object], volume: Volume, out: NDArray[np.uint8]) -> None:
    """Write `objects` into `out`, canonical [X, Y, Z] and 0: each voxel to the label with the highest logit above 0.

    `volume` is the CT in canonical axes.
    """
    slices = sorted({z for one in objects for z in one.logits})
    for start in range(0, len(slices), SLICES_AT_A_TIME):
        part = slices[start : start + SLICES_AT_A_TIME]
        planes: dict[int, list[tuple[int, Box, NDArray[np.float32]]]] = defaultdict(list)
        for one in objects:
            here = [z for z in part if z in one.logits]
            if here:
                restored = one.grid.restore(torch.stack([one.logits[z].float() for z in here]))
                for z, smooth in zip(here, restored, strict=True):
                    finer = one.finer(z)
                    plane = smooth if finer is None else _sharpened(smooth, finer)
                    x0, x1, y0, y1 = one.grid.box
                    hu = volume.voxels[x0:x1, y0:y1, z]
                    if one.edges is not None:
                        plane = one.edges.follow(plane, hu, volume.spacing[0])
                    if one.appearances is not None and (look := one.appearances.on(z)) is not None:
                        plane = contour(plane, hu, volume.spacing[:2], look, one.count, joins=not one.tapers(z))
                    planes[z].append((one.label, one.grid.box, plane))
        for z, candidates in planes.items():
            _paint_slice(out[:, :, z], candidates)


def _sharpened(smooth: NDArray[np.float32], finer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [X, Y] with finer ones added, but for pieces that the smooth ones have nothing of."""
    plane = smooth + finer
    inside = plane > 0
    plane[inside & ~touching(inside, smooth > 0)] = -LARGEST
    return plane


def _paint_slice(out: NDArray[np.uint8], candidates: list[tuple[int, Box, NDArray[np.float32]]]) -> None:
    if len(candidates) == 1:
        label, (x0, x1, y0, y1), logits = candidates[0]
        out[x0:x1, y0:y1][logits > 0] = label
        return
    best = np.zeros(out.shape, dtype=np.float32)
    for label, (x0, x1, y0, y1), logits in candidates:
        wins = logits > best[x0:x1, y0:y1]
        out[x0:x1, y0:y1][wins] = label
        best[x0:x1, y0:y1][wins] = logits[wins]
