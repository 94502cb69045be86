"""Outlines that follow the edges of the CT.

The network's masks have a quarter of its frames' pixels a side. Enlarged, they are smooth where the organ is not. A
guided filter, with the CT as its guide, moves an outline to the edge beside it: He, Sun and Tang 2013, "Guided image
filtering", IEEE TPAMI 35(6). Whether that helps, and over which reach and contrast, is tried on the slice that the user
annotated: masks as inexact as the network's are made of it, and what brings them nearest to the annotation is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from polycl.propagate.frames import Box, FrameGrid

Plane = NDArray[np.float32]
TRIED = ((3.0, 100.0), (6.0, 100.0), (6.0, 300.0), (10.0, 100.0))
"""Reach in mm, and HU on each side of the object's median in which edges count."""
GAIN = 0.005
"""Dice that a choice must gain on the annotated slice over leaving outlines as they are."""
SMOOTHNESS = 0.01
"""He's epsilon, for a guide from -1 to 1: contrasts below its root are no edges."""
SURE, SOFT = 8.0, 0.8
"""Logits of the masks to try with, and their blur in pixels of the network's masks."""


@dataclass(frozen=True)
class Edges:
    """How the outlines of one object follow the CT.

    Attributes:
        reach: mm.
        contrast, median: HU; edges count within `median` plus or minus `contrast`.
    """

    reach: float
    contrast: float
    median: float

    def follow(self, logits: Plane, hu: NDArray[np.generic], spacing: float) -> Plane:
        """Logits [X, Y] of an object, moved to the edges of the same part of a slice; `spacing` in mm."""
        pixels = max(1, round(self.reach / spacing))
        out = np.full_like(logits, -SURE)
        part = box_around(logits > -SURE / 2, 3 * pixels)
        if part is None:
            return out
        guide = np.clip((hu[part].astype(np.float32) - self.median) / self.contrast, -1, 1)
        share = 1 / (1 + np.exp(-np.clip(logits[part], -SURE, SURE)))
        least = 1 / (1 + np.exp(SURE))
        found = np.clip(guided(guide, share, pixels), least, 1 - least)
        out[part] = np.log(found / (1 - found))
        return out


def guided(guide: Plane, image: Plane, radius: int) -> Plane:
    """`image` as a local linear function of `guide`, both [X, Y]: He's filter with windows of 2 radius + 1 pixels."""

    def mean(values: Plane) -> Plane:
        smooth: Plane = ndimage.uniform_filter(values, 2 * radius + 1, mode="nearest")
        return smooth

    middle, height = mean(guide), mean(image)
    slope = (mean(guide * image) - middle * height) / (mean(guide * guide) - middle * middle + SMOOTHNESS)
    return mean(slope) * guide + mean(height - slope * middle)


@dataclass(frozen=True, eq=False)
class Trial:
    """An annotated slice: its HU and mask, whole planes [X, Y].

    `blend` is what else comes to the network's logits on this slice, given those over the part that frames show.
    """

    hu: NDArray[np.generic]
    mask: NDArray[np.bool_]
    blend: Callable[[Plane], Plane] = lambda logits: logits


@dataclass(frozen=True, eq=False)
class Tried:
    """What was tried on one annotated slice of an object of `median` HU: the Dice gained by each of `TRIED`."""

    median: float
    gains: NDArray[np.float64]


def tried(box: Box, spacing: float, trial: Trial, masks: Iterable[Plane]) -> Tried | None:
    """How much nearer inexact masks come to an annotated one; None if there is nothing in it.

    Args:
        box: the part of the plane that frames show.
        spacing: mm between voxels of a plane.
        trial: the annotated slice.
        masks: logits of `inexact` ones over that part.
    """
    x0, x1, y0, y1 = box
    values = trial.hu[trial.mask & np.isfinite(trial.hu)]
    if not len(values):
        return None
    median = float(np.median(values))
    hu, mask = trial.hu[x0:x1, y0:y1], trial.mask[x0:x1, y0:y1]
    gains = []
    for logits in map(trial.blend, masks):
        before = _dice(logits > 0, mask)
        found = [Edges(*how, median).follow(logits, hu, spacing) > 0 for how in TRIED]
        gains.append([_dice(one, mask) - before for one in found])
    return Tried(median, np.mean(gains, axis=0))


def choose(slices: Sequence[Tried]) -> Edges | None:
    """What gained most on annotated slices; None if nothing beats leaving outlines as they are."""
    if not slices:
        return None
    gains = np.mean([one.gains for one in slices], axis=0)
    best = int(np.argmax(gains))
    if gains[best] < GAIN:
        return None
    return Edges(*TRIED[best], float(np.mean([one.median for one in slices])))


def inexact(grid: FrameGrid, side: int, annotated: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits as the network might give them of an annotated mask [X, Y]: a pixel off either way, too small, too large.

    They are of `side` pixels a side, enlarged to the part of the plane that the frames of `grid` show: [4, x, y].
    """
    mask = FrameGrid(grid.region, side, grid.shape).masks(annotated[None])[0, 0].numpy() > 0
    wrong = [
        np.roll(mask, (1, 1), axis=(0, 1)),
        np.roll(mask, (-1, -1), axis=(0, 1)),
        ndimage.binary_erosion(mask),
        ndimage.binary_dilation(mask),
    ]
    soft = [ndimage.gaussian_filter(np.where(one, SURE, -SURE).astype(np.float32), SOFT) for one in wrong]
    return grid.restore(torch.from_numpy(np.stack(soft)))


def box_around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice] | None:
    """The box of a mask with a margin; None if it is empty."""
    ends = []
    for axis, count in enumerate(mask.shape):
        where = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(where):
            return None
        ends.append(slice(max(0, int(where[0]) - margin), min(count, int(where[-1]) + margin + 1)))
    return ends[0], ends[1]


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0
