"""The manner of outlining: what annotated slices tell of it, and how other slices keep it up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from fake_sam2 import FakeSam2
from polycl.metrics import dice
from polycl.propagate import group
from polycl.propagate import manner as module
from polycl.propagate.contour import contour
from polycl.propagate.manner import BARELY, Example, Manner, filled, holes
from polycl.propagate.outlines import Outline, paint
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE, SPACING, DEPTH = (64, 60), (0.8, 0.9), 12
X, Y = np.indices(SHAPE)
Mask = NDArray[np.bool_]


def disc(radius_mm: float) -> Mask:
    return np.asarray(np.hypot((X - 31) * SPACING[0], (Y - 29) * SPACING[1]) < radius_mm)


ORGAN, CORE = disc(16), disc(4)


def soft(organ: Mask) -> NDArray[np.float32]:
    """HU of an organ in fat that ends over some pixels."""
    blurred = ndimage.gaussian_filter(np.where(organ, 150.0, -100.0), 1.2)
    return (blurred + np.random.default_rng(0).normal(0, 10, SHAPE)).astype(np.float32)


def manner(drawn: Mask) -> Manner:
    examples = [Example(soft(ORGAN), drawn)]
    return Manner.of(examples, examples, SPACING, 1.0)


HOLES = """
 .......  .......  ....##.  ##.....
 .#####.  .##.##.  ...#o#.  #o#....
 .#ooo#.  .#...#.  ..#oo#.  .##.##.
 .#o#o#.  .#####.  .#oo#..  ...#oo#
 .#ooo#.  .......  .###...  ..#oo#.
 .#####.  .......  .......  ...##..
"""
"""What is enclosed (o) by masks (#): by a ring about an island, by one with a gap, by one of corners, by two."""


@pytest.mark.parametrize("number", range(4))
def test_holes_are_what_a_mask_encloses(number: int) -> None:
    drawn = np.array([[*line.split()[number]] for line in HOLES.split("\n")[1:-1]])
    np.testing.assert_array_equal(holes(drawn == "#"), drawn == "o")
    np.testing.assert_array_equal(holes((drawn == "#").T), (drawn == "o").T)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_hole_never_reaches_the_side_of_a_slice_nor_what_is_outside_of_it(mask: Mask) -> None:
    found = holes(mask)
    assert not (found & mask).any()
    assert not found[[0, -1]].any()
    assert not found[:, [0, -1]].any()
    outside = ~(mask | found)
    for one, other in ((outside, found), (outside.T, found.T)):
        assert not (one[1:] & other[:-1]).any()
        assert not (one[:-1] & other[1:]).any()
    assert not holes(mask | found).any()


def test_a_speck_that_a_brush_left_out_is_no_hole() -> None:
    speck, few = ORGAN.copy(), ORGAN.copy()
    speck[31, 29] = False
    few[20:40, 28] = False
    told = [Example(soft(ORGAN), one).solid for one in (ORGAN, speck, few)]
    assert told == [True, True, False]


def test_small_holes_are_filled_and_give_way_to_all_else() -> None:
    logits = np.where(ORGAN & ~CORE, 5.0, -7.0).astype(np.float32)
    full = filled(logits, 0.15)
    np.testing.assert_array_equal(full > 0, ORGAN)
    assert (full[CORE] == np.float32(BARELY)).all()
    np.testing.assert_array_equal(full[~CORE], logits[~CORE])
    assert filled(full, 0.15) is full
    np.testing.assert_array_equal(filled(logits, 0.02) > 0, logits > 0)


def test_who_outlines_wider_than_hu_tell_is_followed_and_who_outlines_tighter_is_not() -> None:
    """Who outlines tightly may be in haste."""
    wide = disc(17.5)
    told = manner(wide)
    assert told.look is not None
    assert told.wider > 0
    logits = np.where(disc(15), 6.0, -6.0).astype(np.float32)
    without, found = (contour(logits, soft(ORGAN), SPACING, told.look, 1.0, wider=by) > 0 for by in (0.0, told.wider))
    assert (dice(found, wide) or 0) > (dice(without, wide) or 0) + 0.01
    assert manner(ORGAN).wider == manner(disc(14)).wider == 0


def test_a_little_wider_is_none() -> None:
    examples = [Example(soft(ORGAN), drawn) for drawn in (ORGAN, disc(16.2))]
    assert manner(disc(16.2)).wider > 0
    assert Manner.of(examples, examples, SPACING, 1.0).wider == 0


def test_other_slices_are_outlined_as_wide_as_annotated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Volume(np.stack([soft(ORGAN)] * DEPTH, axis=2), np.diag([*SPACING, 3.0, 1.0]))
    wide, scores = disc(17.5), []
    for _ in range(2):
        session = Propagation(image, FakeSam2(), parameters=PropagateParameters(edges=False, haste=False))
        session.put(1, {2: Seed(wide)})
        scores.append(dice(session.run().voxels[:, :, 7] == 1, wide) or 0)
        monkeypatch.setattr(module, "wider_by", lambda *_: 0.0)
    assert scores[0] > scores[1] + 0.01


def test_thin_parts_that_stay_in_any_case_ask_for_nothing_wider() -> None:
    line = (Y == 29) & (X < 62) & (X > 2)
    assert manner(ORGAN | line).wider == 0


def test_whatever_hu_count_holes_tell() -> None:
    examples = [Example(soft(ORGAN), ORGAN), Example(soft(ORGAN), ORGAN & ~CORE)]
    assert [Manner.of((), examples[:n], SPACING, 0.0).solid for n in (0, 1, 2)] == [False, True, False]
    assert Manner.of(examples, examples, SPACING, 0.0).look is None


@pytest.mark.parametrize(("hole", "fill", "full"), [(False, 0.15, True), (True, 0.15, False), (False, 0.0, False)])
def test_what_is_outlined_as_solid_is_so_on_other_slices(hole: bool, fill: float, full: bool) -> None:
    organ = np.repeat(ORGAN[:, :, None], DEPTH, axis=2)
    hollow = organ & ~(CORE[:, :, None] & (np.arange(DEPTH) > 3))
    image = Volume(np.where(hollow, 150, -100).astype(np.int16), np.diag([*SPACING, 3.0, 1.0]))
    session = Propagation(image, FakeSam2(), parameters=PropagateParameters(fill=fill))
    z = 8 if hole else 2
    session.put(1, {z: Seed(hollow[:, :, z])})
    found = session.run().voxels == 1
    assert found[31, 29, 6] == full
    assert found[31, 29, 2]
    assert (dice(found, organ if full else hollow) or 0) > 0.95


@pytest.mark.parametrize("solid", [True, False], ids=["opened", "closed"])
def test_holes_are_those_of_what_was_drawn_not_of_where_it_was_moved_to(
    solid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [ORGAN, ORGAN & ~CORE]
    drawn, moved = masks if solid else masks[::-1]
    monkeypatch.setattr(group, "placed", lambda *_: moved)
    image = Volume(np.where((ORGAN & ~CORE)[:, :, None], 150, -100).repeat(DEPTH, 2), np.diag([*SPACING, 3.0, 1.0]))
    session = Propagation(image, FakeSam2())
    session.put(1, {2: Seed(drawn)})
    found = session.run().voxels == 1
    assert found[31, 29, 6] == solid
    assert found[31, 29, 2] == solid


def test_a_label_within_another_keeps_its_voxels() -> None:
    box = (0, SHAPE[0], 0, SHAPE[1])
    around = filled(np.where(ORGAN & ~CORE, 5.0, -7.0).astype(np.float32), 0.15).astype(np.float16)
    within = np.where(CORE, 0.1, -7.0).astype(np.float16)
    out = np.zeros((*SHAPE, 1), np.uint8)
    paint([(1, {0: Outline(box, around)}), (2, {0: Outline(box, within)})], out)
    np.testing.assert_array_equal(out[:, :, 0], np.where(CORE, 2, ORGAN))
