"""Figures of agreement, against cases whose answer is known without computing it."""

import numpy as np
import pytest

from polycl.errors import InputError
from polycl.metrics import compare, dice
from polycl.volume import Volume

pytestmark = pytest.mark.unit

GRID = np.diag([1.0, 2.0, 3.0, 1.0])


def block(x: slice, y: slice, z: slice, value: int = 1) -> Volume:
    voxels = np.zeros((20, 20, 20), dtype=np.uint8)
    voxels[x, y, z] = value
    return Volume(voxels, GRID)


def test_identical_masks_agree_fully() -> None:
    cube = block(slice(4, 10), slice(4, 10), slice(4, 10))
    figures = compare(cube, cube, 1)
    assert (figures.dice, figures.hd95_mm, figures.surface_dice) == (1.0, 0.0, 1.0)
    assert figures.predicted_ml == pytest.approx(6**3 * 6 / 1000)


def test_half_overlap_is_dice_one_half() -> None:
    a, b = np.zeros(8, bool), np.zeros(8, bool)
    a[0:4], b[2:6] = True, True
    assert dice(a, b) == 0.5
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) is None


@pytest.mark.parametrize(("axis", "mm"), [(0, 1.0), (1, 2.0), (2, 3.0)])
def test_distance_is_in_millimetres_along_each_axis(axis: int, mm: float) -> None:
    plate = [slice(5, 15)] * 3
    moved = list(plate)
    plate[axis], moved[axis] = slice(5, 6), slice(8, 9)
    figures = compare(block(*moved), block(*plate), 1)
    assert figures.hd95_mm == pytest.approx(3 * mm)
    assert figures.surface_dice == (0.0 if 3 * mm > 2 else 1.0)


def test_a_structure_that_touches_the_edge_has_a_surface_there() -> None:
    cube = block(slice(0, 5), slice(0, 5), slice(0, 5))
    assert compare(cube, cube, 1).surface_dice == 1.0


def test_distance_is_two_sided() -> None:
    small = block(slice(9, 11), slice(9, 11), slice(9, 11))
    large = block(slice(2, 18), slice(9, 11), slice(9, 11))
    there, back = compare(small, large, 1).hd95_mm, compare(large, small, 1).hd95_mm
    assert there == back
    assert there is not None
    assert there > 5


def test_absent_structures_have_no_distance() -> None:
    empty, cube = block(slice(0), slice(0), slice(0)), block(slice(3), slice(3), slice(3))
    assert compare(empty, empty, 1).dice is None
    missed = compare(empty, cube, 1)
    assert (missed.dice, missed.hd95_mm, missed.surface_dice) == (0.0, None, 0.0)


def test_several_reference_ids_count_as_one_structure() -> None:
    reference = block(slice(3, 9), slice(3, 9), slice(3, 9), 1)
    reference.voxels[4:6, 4:6, 4:6] = 6
    whole = block(slice(3, 9), slice(3, 9), slice(3, 9))
    assert compare(whole, reference, 1, reference_indices=(1, 6)).dice == 1.0
    assert compare(whole, reference, 1).dice < 1.0  # type: ignore[operator]


def test_another_grid_is_refused() -> None:
    cube = block(slice(3), slice(3), slice(3))
    with pytest.raises(InputError, match="grid"):
        compare(Volume(cube.voxels, np.eye(4)), cube, 1)
