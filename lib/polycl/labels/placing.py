"""A label onto the whole grid of its image, by moving voxels only: nothing is ever resampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.labels.record import Ranges
from polycl.volume import Volume
from polycl.volume.orientation import canonical_view


def place(label: Volume, image: Volume, *, box: bool = False) -> NDArray[np.uint8]:
    """The voxels of `label` (uint8) on the grid of `image`, in the image's own axes; its values are not looked at.

    The label may be in any axis order. With `box` it may also be a box of that grid, as 3D Slicer crops segmentations
    to; what of it is outside the image must be empty, and an empty one may be anywhere. InputError for any other grid.
    """
    source, grid = label.canonical(), image.canonical()
    placed = np.zeros(image.shape, np.uint8, order="F")
    target = canonical_view(placed, image.affine)
    if not box:
        grid.require_same_grid(source, "the label")
        target[...] = source.voxels
        return placed
    if not source.voxels.any():
        return placed
    start = _start(source, grid)
    stop = start + source.shape
    low, high = np.maximum(start, 0), np.minimum(stop, grid.shape)
    inside = tuple(slice(max(0, a - s), max(0, b - s)) for a, b, s in zip(low, high, start, strict=True))
    if np.count_nonzero(source.voxels[inside]) != np.count_nonzero(source.voxels):
        raise InputError(f"the label is painted outside the image: {label} against {image}")
    if (low < high).all():
        target[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = source.voxels[inside]
    return placed


def _start(source: Volume, grid: Volume) -> NDArray[np.int64]:
    """The index in `grid` of the first voxel of `source`; InputError unless all its voxels are on the same lattice."""
    start: NDArray[np.int64] = np.rint(np.linalg.solve(grid.affine, source.affine[:, 3])[:3]).astype(np.int64)
    shift = np.eye(4)
    shift[:3, 3] = start
    Volume(source.voxels, grid.affine @ shift).require_same_grid(source, "the label")
    return start


def count_by_slice(voxels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each value in each slice along the last axis: [K, 256]."""
    counts = np.zeros((voxels.shape[2], 256), np.int64)
    for index in range(voxels.shape[2]):
        counts[index] = np.bincount(voxels[:, :, index].ravel(order="K"), minlength=256)
    return counts


def values_in(voxels: NDArray[np.uint8]) -> list[int]:
    """The values of a label map but 0, in order."""
    return [int(value) for value in np.flatnonzero(count_by_slice(voxels).sum(axis=0)) if value]


def ranges_of(flags: NDArray[np.bool_]) -> Ranges:
    """Runs of True as half-open ranges.

    >>> ranges_of(np.array([False, True, True, False, True]))
    ((1, 3), (4, 5))
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))
