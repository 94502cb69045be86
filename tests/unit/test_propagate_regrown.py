"""An object that all but ends and grows again has run into something that it touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl.propagate.compose import without_regrown
from polycl.propagate.seeds import Seed, with_ends
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit

Mask = NDArray[np.bool_]
HOURGLASS = {0: 30, 1: 40, 2: 20, 3: 8, 4: 30, 5: 80, 6: 100, 7: 60, 8: 9, 9: 12, 10: 20, 11: 5}
"""Areas by slice: the object is on 3 to 8."""


def found(areas: dict[int, int]) -> dict[int, torch.Tensor]:
    masks = {z: torch.full((144,), -1.0) for z in areas}
    for z, area in areas.items():
        masks[z][:area] = 1.0
    return {z: mask.reshape(12, 12) for z, mask in masks.items()}


@pytest.mark.parametrize(
    ("first", "last", "steps", "kept"),
    [
        (6, 6, (-1, 1), range(3, 9)),
        (6, 6, (1,), range(9)),
        (6, 6, (-1,), range(3, 12)),
        (6, 6, (), range(12)),
        (1, 10, (-1, 1), range(12)),
    ],
)
def test_what_grows_again_is_left_out_beyond_annotated_slices(
    first: int, last: int, steps: tuple[int, ...], kept: range
) -> None:
    """From where it was smallest on; slice 9 alone would be too little larger to tell."""
    assert sorted(without_regrown(found(HOURGLASS), first, last, steps)) == list(kept)


@pytest.mark.parametrize("here", [5, 8])
def test_what_is_found_on_the_other_side_counts_for_nothing(here: int) -> None:
    """An object that is much larger above where it was annotated; below it gets smaller by half, and grows again."""
    areas = {1: 40, 2: 9, 3: 12} | dict.fromkeys(range(4, 9), 20) | {9: 140, 10: 140}
    less = {z: area for z, area in areas.items() if z < 9}
    kept = [sorted(z for z in without_regrown(found(one), here, here) if z < 9) for one in (areas, less)]
    assert kept[0] == kept[1] == list(range(1, 9))


@pytest.mark.parametrize(
    "areas",
    [
        {0: 21, 1: 40, 2: 100, 3: 40, 4: 21, 5: 40},  # never small enough
        {0: 3, 1: 6, 2: 9, 3: 60, 4: 100},  # shrinks and shrinks
        {0: 40, 1: 0, 2: 100},  # a gap is for others to judge
        {0: 4, 1: 3, 2: 8, 3: 60, 4: 100, 5: 20},  # an end of it was annotated
        {0: 100},
        {},
    ],
)
def test_all_else_stays(areas: dict[int, int]) -> None:
    annotated = 0 if areas.get(0) == 4 else max(areas, key=lambda z: areas[z], default=0)
    assert without_regrown(found(areas), annotated, annotated).keys() == areas.keys()


X, Y, Z = np.indices((64, 60, 30))


def column() -> Mask:
    """Of radius 14 from slice 11 on, tapering off to 3; and 8 below slice 9."""
    radius = np.where(Z > 14, 14.0, np.where(Z > 10, 3.0 + 2 * (Z - 11), np.where(Z > 8, 3.0, 8.0)))
    inside: Mask = (np.hypot(X - 30, Y - 28) < radius) & (Z < 25) & (Z > 2)
    return inside


def carried(*ends: int | None) -> list[int]:
    volume = Volume(np.where(column(), 100, -100).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    session = Propagation(volume, FakeSam2())
    session.put(1, with_ends({20: Seed(column()[:, :, 20])}, volume, *ends) if ends else {20: Seed(column()[:, :, 20])})
    return np.flatnonzero((session.run().voxels == 1).any(axis=(0, 1))).tolist()


def test_a_neighbour_that_it_runs_into_is_left_out() -> None:
    assert carried() == list(range(9, 25))


def test_not_where_it_is_said_to_go_on() -> None:
    assert carried(3, None) == list(range(3, 25))


def test_a_slice_annotated_there_is_of_the_object() -> None:
    volume = Volume(np.where(column(), 100, -100).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    session = Propagation(volume, FakeSam2())
    session.put(1, {20: Seed(column()[:, :, 20])})
    session.run()
    session.put(1, {5: Seed(column()[:, :, 5])})
    there = np.flatnonzero((session.run().voxels == 1).any(axis=(0, 1)))
    assert there.tolist() == list(range(3, 25))
