"""Outlines that follow what the object looks like where it was annotated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from organ_slice import ORGAN, SHAPE, SPACING, Mask, X, Y, ct, disc
from scipy import ndimage

from fake_sam2 import FakeSam2
from polycl.appearance import Appearance
from polycl.metrics import dice
from polycl.propagate.contour import appearance_of, contour
from polycl.propagate.engine import LARGEST
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit


def logits(mask: Mask, sure: float = 6.0) -> NDArray[np.float32]:
    return np.where(mask, sure, -sure).astype(np.float32)


def look(hu: NDArray[Any] | None = None, mask: Mask = ORGAN) -> Appearance:
    found = appearance_of([(ct() if hu is None else hu, mask)], SPACING)
    assert found is not None
    return found


@pytest.mark.parametrize("wrong", [disc(18), disc(22), disc(20, (47.0, 44.5))], ids=["tight", "wide", "shifted"])
@pytest.mark.parametrize("drawn", [disc(20), disc(18.5), disc(21.5)], ids=["well", "tightly", "widely"])
def test_an_outline_moves_to_the_edge(wrong: Mask, drawn: Mask) -> None:
    found = contour(logits(wrong), ct(), SPACING, look(mask=drawn), 1.0) > 0
    before, after = dice(wrong, ORGAN), dice(found, ORGAN)
    assert before is not None
    assert after is not None
    assert 1 - after < 0.5 * (1 - before)


def test_where_hu_tell_nothing_little_moves() -> None:
    alike = ct(hu=25.0)
    for mask in (disc(18), ORGAN):
        found = contour(logits(mask), alike, SPACING, look(alike), 1.0) > 0
        assert (dice(found, mask) or 0) > 0.99


def test_no_island_comes_up_and_what_is_thin_stays() -> None:
    island = disc(4, (80.0, 46.0))
    line = (X == 45) & (Y < 40) & (Y > 10)
    drawn = ORGAN | line
    hu = ct(ORGAN | island)
    found = contour(logits(drawn), hu, SPACING, look(hu), 1.0) > 0
    assert not (found & island).any()
    assert found[line].all(), "though it does not look like the organ"
    assert contour(logits(line), hu, SPACING, look(hu), 1.0)[line].min() > 0


def test_what_would_be_something_else_stays() -> None:
    other = logits(disc(9, (60.0, 60.0)))
    dark = ct(np.zeros(SHAPE, dtype=bool))
    assert contour(other, dark, SPACING, look(), 4.0) is other
    nothing = logits(np.zeros(SHAPE, dtype=bool))
    assert contour(nothing, dark, SPACING, look(), 1.0) is nothing


def test_what_joins_is_less_sure_than_what_was_there() -> None:
    found = contour(logits(disc(18)), ct(), SPACING, look(), 1.0)
    joined = (found > 0) & ~disc(18)
    assert joined.any()
    assert found[joined].max() < 3
    assert found[disc(17)].min() == 6
    assert not (contour(logits(disc(18)), ct(), SPACING, look(), 1.0, joins=False)[~disc(18)] > 0).any()
    lost = contour(logits(disc(22)), ct(), SPACING, look(), 4.0)[disc(22) & ~disc(21.5)]
    assert (lost == -LARGEST).mean() > 0.9


def test_values_that_are_no_numbers_tell_nothing() -> None:
    hu = ct()
    hu[:, 40:50] = np.nan
    found = contour(logits(disc(18)), hu, SPACING, look(hu), 1.0) > 0
    assert (dice(found, ORGAN) or 0) > (dice(disc(18), ORGAN) or 0) + 0.05
    nothing = np.full(SHAPE, np.nan)
    assert appearance_of([(nothing, ORGAN)], SPACING) is None
    assert appearance_of([(ct(), np.ones(SHAPE, dtype=bool))], SPACING) is None, "nothing is around it"
    assert appearance_of([], SPACING) is None


@given(st.lists(st.integers(-2000, 4000), min_size=1, max_size=30), st.lists(st.integers(-2000, 4000), min_size=1))
def test_hu_that_are_found_within_speak_for_it(within: list[int], around: list[int]) -> None:
    one = Appearance.of(np.array(within), np.array(around))
    other = Appearance.of(np.array(around), np.array(within))
    np.testing.assert_allclose(one.by_bin, -other.by_bin, atol=1e-12)
    assert 0 <= one.shared <= 1 + 1e-9
    assert abs(one.odds(np.array([*within, *around]))).max() <= 2
    same = Appearance.of(np.array(within), np.array(within))
    assert same.shared == pytest.approx(1)
    assert abs(same.odds(np.array(within))).max() < 1e-9


def test_a_propagated_object_follows_its_look_but_for_annotated_slices() -> None:
    depth, middle = 12, 5
    organ = np.repeat(ORGAN[:, :, None], depth, axis=2)
    voxels = np.stack([ct(noise=15 + z) for z in range(depth)], axis=2)
    image = Volume(voxels, np.diag([*SPACING, 3.0, 1.0]))
    drawn = ndimage.binary_erosion(ORGAN, iterations=2)
    found = {}
    for appearance in (0.0, 1.0):
        how = PropagateParameters(appearance=appearance, edges=False)
        session = Propagation(image, FakeSam2(), parameters=how)
        session.put(1, {middle: Seed(drawn)})
        found[appearance] = session.run().voxels == 1
        np.testing.assert_array_equal(found[appearance][:, :, middle], drawn)
    others = [z for z in range(depth) if z != middle]
    before, after = (dice(found[each][:, :, others], organ[:, :, others]) for each in (0.0, 1.0))
    assert before is not None
    assert after is not None
    assert after > before + 0.01


def test_a_correction_changes_nothing_beyond_the_next_annotated_slice() -> None:
    voxels = np.stack([ct(hu=120.0 + 10 * z) for z in range(14)], axis=2)
    image = Volume(voxels, np.diag([*SPACING, 3.0, 1.0]))
    session = Propagation(image, FakeSam2())
    session.put(1, {3: Seed(disc(19)), 7: Seed(disc(20))})
    first = session.run().voxels
    session.put(1, {11: Seed(disc(15))})
    second = session.run().voxels
    np.testing.assert_array_equal(first[:, :, :8], second[:, :, :8])
    assert (first[:, :, 8:] != second[:, :, 8:]).any()


def test_of_few_voxels_hu_tell_little_and_unseen_hu_nothing() -> None:
    for radius in (2, 3, 6, 20):
        organ = disc(radius)
        told = look(ct(organ, 60.0, noise=8), organ).odds(np.array([60.0, 20.0, 500.0, -500.0]))
        assert told[0] > 0 > told[1]
        np.testing.assert_allclose(told[2:], 0, atol=1e-9)


@pytest.mark.parametrize("radius", [4, 5, 6, 8])
def test_small_objects_are_not_worn_away(radius: int) -> None:
    organ = disc(radius)
    alike, distinct = ct(organ, 20.0), ct(organ, 100.0)
    kept = contour(logits(organ), alike, SPACING, look(alike, organ), 1.0) > 0
    assert (dice(kept, organ) or 0) > 0.97
    tight = disc(radius - 1)
    found = contour(logits(tight), distinct, SPACING, look(distinct, organ), 1.0) > 0
    assert (dice(found, organ) or 0) >= (dice(tight, organ) or 0)


def test_what_shrinks_leaves_no_specks() -> None:
    noise = np.random.default_rng(1).normal(0, 1, SHAPE)
    ragged = np.hypot((X - 45) * SPACING[0], (Y - 46) * SPACING[1]) + ndimage.gaussian_filter(noise, 1) * 3 < 22
    ragged = ndimage.label(ragged)[0] == 1
    found = contour(logits(ragged), ct(), SPACING, look(), 1.0) > 0
    assert ndimage.label(found, np.ones((3, 3)))[1] == 1
    assert (dice(found, ORGAN) or 0) > (dice(ragged, ORGAN) or 0)


def test_a_correction_by_outline_lets_what_was_clicked_be() -> None:
    voxels = np.stack([ct(hu=120.0 + 10 * z) for z in range(14)], axis=2)
    image = Volume(voxels, np.diag([*SPACING, 3.0, 1.0]))
    session = Propagation(image, FakeSam2(), parameters=PropagateParameters(edges=False))
    point = Seed(points=np.array([[45.0, 46.0]]), labels=np.array([1]))
    session.put(1, {3: point, 7: point})
    first = session.run().voxels
    session.put(1, {11: Seed(disc(15))})
    second = session.run().voxels
    np.testing.assert_array_equal(first[:, :, :8], second[:, :, :8])
