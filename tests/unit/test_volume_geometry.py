"""Axes, affines and grids: canonical and back, against nibabel, over random affines."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from polycl.errors import InputError
from polycl.volume import Volume, canonical_affine, canonical_view, from_canonical_index, to_canonical_index

pytestmark = pytest.mark.unit

AXIS_ORDERS = [
    np.diag(signs)[:, permutation]
    for permutation in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
relaxed = settings(deadline=None, max_examples=50)
shapes = st.tuples(*[st.integers(1, 5)] * 3)


def affine_of(
    directions: NDArray[np.float64], spacing: tuple[float, ...], origin: tuple[float, ...]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


@st.composite
def affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """Any axis order, rotated by any angles, sheared a little, anisotropic."""
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    shear = np.eye(3)
    shear[0, 1] = draw(st.sampled_from([0.0, 0.2, -0.3]))
    order = draw(st.sampled_from(AXIS_ORDERS))
    spacing = draw(st.tuples(*[st.floats(0.3, 10)] * 3))
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine_of(turn @ shear @ order, spacing, origin)


def numbered(shape: tuple[int, ...]) -> NDArray[np.int32]:
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def world(affine: NDArray[np.float64], ijk: NDArray[np.float64]) -> NDArray[np.float64]:
    return ijk @ affine[:3, :3].T + affine[:3, 3]


@given(affines(), shapes)
@relaxed
def test_canonical_agrees_with_nibabel(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> None:
    canonical = Volume(numbered(shape), affine).canonical()
    theirs = nib.as_closest_canonical(nib.Nifti1Image(numbered(shape), affine))
    np.testing.assert_array_equal(canonical.voxels, np.asanyarray(theirs.dataobj))
    np.testing.assert_allclose(canonical.affine, theirs.affine, atol=1e-9)


@pytest.mark.parametrize("directions", AXIS_ORDERS)
def test_each_axis_order_becomes_ras_exactly(directions: NDArray[np.float64]) -> None:
    volume = Volume(numbered((2, 3, 4)), affine_of(directions, (0.7, 0.8, 5.0), (1.0, -2.0, 3.0)))
    canonical = volume.canonical()
    assert canonical.axcodes == "RAS"
    assert np.array_equal(canonical.affine[:3, :3], np.diag(canonical.spacing))
    assert volume.axcodes == "".join(nib.aff2axcodes(volume.affine))


@given(affines(), shapes)
@relaxed
def test_writing_through_the_canonical_view_fills_own_axes(
    affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> None:
    voxels = numbered(shape)
    result = np.full(shape, -1, np.int32)
    view = canonical_view(result, affine)
    view[:] = canonical_view(voxels, affine)
    assert np.shares_memory(view, result)
    np.testing.assert_array_equal(result, voxels)


@given(affines(), shapes, st.data())
@relaxed
def test_points_go_to_canonical_and_back(
    affine: NDArray[np.float64], shape: tuple[int, int, int], data: st.DataObject
) -> None:
    ijk = np.array([data.draw(st.tuples(*(st.integers(0, n - 1) for n in shape))) for _ in range(3)])
    points = to_canonical_index(ijk, shape, affine)
    np.testing.assert_array_equal(from_canonical_index(points, shape, affine), ijk)
    assert points.dtype == ijk.dtype
    voxels = numbered(shape)
    np.testing.assert_array_equal(canonical_view(voxels, affine)[tuple(points.T)], voxels[tuple(ijk.T)])
    np.testing.assert_allclose(
        world(canonical_affine(shape, affine), points.astype(float)), world(affine, ijk.astype(float)), atol=1e-9
    )


def test_a_single_point_is_a_plain_vector() -> None:
    affine = affine_of(np.diag([-1.0, -1.0, 1.0]), (1, 1, 1), (0, 0, 0))
    assert to_canonical_index([0, 1, 2], (4, 5, 6), affine).tolist() == [3, 3, 2]


@pytest.mark.parametrize("angle", [45.0, -45.0, 135.0])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_tied_axes_still_give_each_axis_once(angle: float, axis: str) -> None:
    affine = affine_of(Rotation.from_euler(axis, angle, degrees=True).as_matrix(), (1, 1, 1), (0, 0, 0))
    canonical = Volume(numbered((2, 3, 4)), affine).canonical()
    theirs = nib.as_closest_canonical(nib.Nifti1Image(numbered((2, 3, 4)), affine))
    np.testing.assert_array_equal(canonical.voxels, np.asanyarray(theirs.dataobj))


@given(hnp.arrays(np.float64, (4, 4), elements=st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf])))
@relaxed
def test_any_matrix_is_accepted_and_invertible_or_refused(matrix: NDArray[np.float64]) -> None:
    try:
        volume = Volume(numbered((2, 2, 2)), matrix)
    except InputError:
        return
    assert np.isfinite(np.linalg.inv(volume.affine)).all()
    assert sorted(volume.canonical().shape) == [2, 2, 2]


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.zeros((4, 4)), "last row"),
        (np.diag([0.0, 0, 0, 1]), "cannot be inverted"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "cannot be inverted"),
        (np.diag([np.nan, 1, 1, 1]), "NaN"),
        (np.diag([np.inf, 1, 1, 1]), "infinite"),
        (np.eye(3), "4x4"),
    ],
)
def test_unusable_affines_are_refused(affine: NDArray[np.float64], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Volume(numbered((2, 2, 2)), affine)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 0), (2, 2, 2, 1)])
def test_three_axes_are_needed(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="three non-empty axes"):
        Volume(np.zeros(shape), np.eye(4))


def test_the_affine_is_a_protected_copy() -> None:
    affine = np.eye(4)
    volume = Volume(numbered((2, 2, 2)), affine)
    affine[0, 0] = 9
    assert volume.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 0] = 9


@given(affines())
@relaxed
def test_volumes_are_in_millilitres(affine: NDArray[np.float64]) -> None:
    volume = Volume(numbered((2, 3, 4)), affine)
    assert volume.millilitres(volume.voxels > 3) == pytest.approx(20 * abs(np.linalg.det(affine)) / 1000)


def test_with_voxels_keeps_the_grid() -> None:
    volume = Volume(numbered((2, 3, 4)), np.diag([1.0, 2, 3, 1]))
    assert volume.with_voxels(volume.voxels > 1).same_grid(volume)
    with pytest.raises(InputError, match="do not fit"):
        volume.with_voxels(np.zeros((4, 3, 2)))


def test_same_grid_measures_the_far_corner() -> None:
    volume = Volume(np.zeros((500, 2, 2), np.uint8), np.eye(4))
    stretched = np.diag([1.0005, 1, 1, 1])
    assert not volume.same_grid(Volume(volume.voxels, stretched))
    assert volume.same_grid(Volume(volume.voxels, stretched), tolerance=0.3)
    assert volume.same_grid(Volume(volume.voxels, np.diag([1.0001, 1, 1, 1])))


def test_another_grid_is_refused_with_both_described() -> None:
    volume = Volume(np.zeros((4, 5, 6)), np.diag([1.0, 1, 2.5, 1]))
    other = Volume(np.zeros((4, 5, 7)), np.diag([1.0, 1, 2, 1]))
    with pytest.raises(InputError, match=r"the label is not on.*4x5x7 voxels of 1x1x2 mm.*4x5x6 voxels of 1x1x2.5 mm"):
        volume.require_same_grid(other, "the label")
    volume.require_same_grid(volume.with_voxels(volume.voxels + 1), "the label")


def test_importing_the_package_is_cheap() -> None:
    import subprocess
    import sys

    heavy = "torch nibabel pydicom highdicom SimpleITK nrrd gdcm scipy"
    code = f"import polycl.volume, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
