"""Seeds from clicks and a box, on as many axial slices as they lie on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.clicks import Click, canonical_box, canonical_points
from polycl.errors import InputError
from polycl.propagate.frames import Box
from polycl.propagate.seeds import Seed, box_of
from polycl.volume import Volume


@dataclass(frozen=True, eq=False)
class Clicked:
    """What clicks say.

    Attributes:
        seeds: by canonical slice, where there is a point inside, or the box.
        outside: by canonical slice, points [N, 2] (x, y) on slices that have no seed.
    """

    seeds: dict[int, Seed]
    outside: dict[int, NDArray[np.float64]]


def from_click(click: Click, volume: Volume) -> Clicked:
    """Seeds from points and a box in the image's own voxel axes; `slice_hint` does not matter.

    The box is a prompt on one slice: on the first one with a point in it, else on its middle one.

    Raises InputError for what is outside the image, a box of no area, and without a point inside or a box.
    """
    if not click.inside and click.roi is None:
        raise InputError("there is nothing to propagate: give a point in foreground, or a roi")
    inside, outside = canonical_points(click.inside, volume), canonical_points(click.outside, volume)
    boxed, box = (None, None) if click.roi is None else _boxed(canonical_box(click.roi, volume), inside)
    seeds = {}
    for z in sorted({*inside[:, 2].tolist(), *([] if boxed is None else [boxed])}):
        points = [all_points[all_points[:, 2] == z, :2] for all_points in (inside, outside)]
        labels = np.repeat([1, 0], [len(part) for part in points])
        seeds[z] = Seed(points=np.concatenate(points), labels=labels, box=box if z == boxed else None)
    alone = sorted(set(outside[:, 2].tolist()) - set(seeds))
    return Clicked(seeds, {z: outside[outside[:, 2] == z, :2].astype(np.float64) for z in alone})


def corrected(found: Volume, outside: Mapping[int, NDArray[np.float64]]) -> dict[int, Seed]:
    """Seeds for slices where `found`, 0 and 1 in any axis order, holds a point that was said to be outside.

    Such a point alone says nothing about what is inside: that is what was found, its box and its deepest point.
    """
    voxels = found.canonical().voxels
    seeds = {}
    for z, points in outside.items():
        mask = voxels[:, :, z] > 0
        x, y = points.astype(int).T
        if not mask[x, y].any():
            continue
        free = mask.copy()
        free[x, y] = False
        deepest = np.argwhere(free)[_depth(mask, points)[free].argmax()] if free.any() else None
        if deepest is None:
            seeds[z] = Seed(np.zeros_like(mask))
            continue
        labels = np.repeat([1, 0], [1, len(points)])
        seeds[z] = Seed(points=np.concatenate([deepest[None], points]), labels=labels, box=box_of(mask))
    return seeds


def _boxed(corners: NDArray[np.int64], inside: NDArray[np.int64]) -> tuple[int, Box]:
    """The slice on which a box with these corners is a prompt, and the box there."""
    (x0, y0, z0), (x1, y1, z1) = corners.tolist()
    within = [z for z in inside[:, 2].tolist() if z0 <= z <= z1]
    return (within[0] if within else (z0 + z1) // 2), (x0, x1 + 1, y0, y1 + 1)


def _depth(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxels to what is outside `mask` [X, Y], be it the edge or one of `points`."""
    open_ = np.pad(mask, 1)
    x, y = points.astype(int).T + 1
    open_[x, y] = False
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(open_)[1:-1, 1:-1]
    return distance
