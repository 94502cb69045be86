"""The same volume in other voxel axes, written out here and not by the code under test."""

import itertools

import numpy as np

from polycl.volume import Volume

ORDERS = [(axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((0, 1), repeat=3)]
"""All 48 orders of axes, and which of them are reversed."""


def turned(volume: Volume, axes: tuple[int, ...], flips: tuple[int, ...]) -> Volume:
    """`volume` with its axes in that order, and some of the new ones reversed."""
    voxels, affine = volume.voxels.transpose(axes), volume.affine[:, [*axes, 3]].copy()
    for axis in np.flatnonzero(flips):
        affine[:, 3] += affine[:, axis] * (voxels.shape[axis] - 1)
        affine[:, axis] *= -1
        voxels = np.flip(voxels, axis)
    return Volume(np.ascontiguousarray(voxels), affine)
