"""From any voxel axes to canonical ones and back, without resampling.

Canonical axes are the permutation and flips of a volume's own axes that come closest to right, anterior, superior
(R-A-S). Which axis comes closest is decided as `nibabel.orientations.io_orientation` does, so that every tool built on
nibabel agrees, also on oblique, sheared and tied affines.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polycl.errors import InputError

# Below this, three unit axis directions span so little volume that the affine counts as not invertible.
SMALLEST_UNIT_DETERMINANT = 1e-3
# Between two of our own axes, the largest |cosine| that still counts as orthogonal: 0.05 mm over 500 mm.
ORTHOGONAL_COSINE = 1e-4
AXIS_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


class Orientation(NamedTuple):
    """`own_axis[c]` is the own axis that becomes canonical axis c; `flipped[c]` says whether it runs backwards."""

    own_axis: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """A read-only float64 copy of a 4x4 affine (voxel index to RAS+ mm); InputError unless it can be inverted."""
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise InputError(f"the affine has shape {matrix.shape}; it must be 4x4")
    if not np.isfinite(matrix).all():
        raise InputError("the affine holds NaN or infinite values")
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
        raise InputError("the last row of the affine must be 0 0 0 1")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if (lengths <= 1e-9).any() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < SMALLEST_UNIT_DETERMINANT:
        raise InputError("the affine is zero or cannot be inverted: the image says nothing about its place in space")
    matrix.setflags(write=False)
    return matrix


def is_orthogonal(affine: NDArray[np.float64]) -> bool:
    """Whether the voxel axes are at right angles, as a NIfTI qform and most readers need."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() < ORTHOGONAL_COSINE)


def orientation_of(affine: NDArray[np.float64]) -> Orientation:
    """The canonical orientation of an invertible affine."""
    from nibabel.orientations import io_orientation

    rows = io_orientation(affine)  # one row for each own axis: canonical axis, direction
    own = np.argsort(rows[:, 0])
    flips = rows[own, 1] < 0
    return Orientation(
        (int(own[0]), int(own[1]), int(own[2])),
        (bool(flips[0]), bool(flips[1]), bool(flips[2])),
    )


def axis_codes(affine: NDArray[np.float64]) -> str:
    """The direction each own axis runs towards, as in "LPS"."""
    own_axis, flipped = orientation_of(affine)
    codes = ["", "", ""]
    for canonical, (own, flip) in enumerate(zip(own_axis, flipped, strict=True)):
        codes[own] = AXIS_CODES[canonical][not flip]
    return "".join(codes)


def canonical_view(array: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A view of `array` [I, J, K] in canonical axes. Writing into the view fills `array` in its own axes."""
    own_axis, flipped = orientation_of(affine)
    return array.transpose(own_axis)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def canonical_affine(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of `canonical_view(array, affine)` for an array of `shape`. Columns are only moved and negated."""
    own_axis, flipped = orientation_of(affine)
    result = affine.copy()
    for canonical, (own, flip) in enumerate(zip(own_axis, flipped, strict=True)):
        result[:3, canonical] = -affine[:3, own] if flip else affine[:3, own]
        if flip:
            result[:3, 3] += affine[:3, own] * (shape[own] - 1)
    return result


def to_canonical_index(ijk: ArrayLike, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Points [..., 3] in own voxel indices of an array of `shape`, in canonical indices. Keeps integers integers."""
    own_axis, flipped = orientation_of(affine)
    points = np.array(ijk)[..., own_axis]
    for canonical, (own, flip) in enumerate(zip(own_axis, flipped, strict=True)):
        if flip:
            points[..., canonical] = shape[own] - 1 - points[..., canonical]
    return points


def from_canonical_index(ijk: ArrayLike, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Points [..., 3] in canonical indices, in own voxel indices. `shape` and `affine` are those of the own array."""
    own_axis, flipped = orientation_of(affine)
    canonical_points = np.asarray(ijk)
    points = np.empty_like(canonical_points)
    for canonical, (own, flip) in enumerate(zip(own_axis, flipped, strict=True)):
        index = canonical_points[..., canonical]
        points[..., own] = shape[own] - 1 - index if flip else index
    return points
