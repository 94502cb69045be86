"""Annotations drawn in haste: the object is followed from where it most likely is, and they come back as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from organ_slice import ORGAN, SHAPE, SPACING, Mask, X, ct, disc
from scipy import ndimage

from fake_sam2 import FakeSam2
from polycl.metrics import dice
from polycl.propagate.engine import FramePrompt, Tracked
from polycl.propagate.frames import Region
from polycl.propagate.haste import placed
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit

HASTY = {"tight": disc(17), "wide": disc(23), "shifted": disc(20, (47.7, 48.4))}
VOLUME = Volume(np.repeat(ct()[:, :, None], 9, axis=2), np.diag([*SPACING, 2.0, 1.0]))


def score(found: Mask, mask: Mask) -> float:
    return dice(found, mask) or 0.0


@pytest.mark.parametrize("drawn", HASTY.values(), ids=HASTY)
def test_an_outline_that_is_3_mm_off_is_taken_to_be_at_the_edge(drawn: Mask) -> None:
    found = placed(drawn, ct(ORGAN), SPACING)
    assert 1 - score(found, ORGAN) < 0.5 * (1 - score(drawn, ORGAN))


@pytest.mark.parametrize(
    "drawn", [ORGAN, disc(19.5), ndimage.binary_opening(ORGAN, iterations=3)], ids=["well", "nearly", "smoothly"]
)
def test_one_that_hardly_moves_was_meant_so(drawn: Mask) -> None:
    np.testing.assert_array_equal(placed(drawn, ct(ORGAN), SPACING), drawn)


@pytest.mark.parametrize("drawn", [disc(17), ORGAN & (X < 45)], ids=["within", "half"])
def test_a_part_of_what_looks_alike_stays_a_part(drawn: Mask) -> None:
    """As a segment of the liver does, or a lesion that is seen by its place alone."""
    alike = ct(disc(60))
    np.testing.assert_array_equal(placed(drawn, alike, SPACING), drawn)


def test_it_is_left_alone_where_there_is_nothing_to_tell() -> None:
    everything = np.ones(SHAPE, dtype=bool)
    np.testing.assert_array_equal(placed(everything, ct(ORGAN), SPACING), everything)
    nothing = np.zeros(SHAPE, dtype=bool)
    np.testing.assert_array_equal(placed(nothing, ct(ORGAN), SPACING), nothing)
    unknown = np.full(SHAPE, np.nan, np.float32)
    np.testing.assert_array_equal(placed(ORGAN, unknown, SPACING), ORGAN)


def test_one_beside_the_edge_is_moved_and_keeps_its_shape() -> None:
    off = np.roll(ORGAN, (3, -2), axis=(0, 1))
    found = placed(off, ct(ORGAN), (1.0, 1.0))
    np.testing.assert_array_equal(found, ORGAN)


def test_it_is_not_moved_to_edges_of_what_looks_otherwise() -> None:
    """As a brainstem in the fluid around it, which ends 3 mm further out."""
    around = np.where(disc(23), 30, -100) + np.random.default_rng(1).normal(0, 5, SHAPE)
    hu = np.where(ORGAN, 90, around)
    np.testing.assert_array_equal(placed(ORGAN, hu, SPACING), ORGAN)


def test_an_edge_further_off_than_it_looks_is_no_reason_to_move() -> None:
    np.testing.assert_array_equal(placed(disc(14), ct(ORGAN), SPACING), disc(14))


@pytest.mark.parametrize("step", [0.0, 4.0])
def test_faint_edges_tell_nothing(step: float) -> None:
    hu = np.where(ORGAN, step, 0.0)
    np.testing.assert_array_equal(placed(HASTY["tight"], hu, SPACING), HASTY["tight"])


def test_what_is_not_known_of_the_slice_does_not_count() -> None:
    hu = ct(ORGAN).astype(np.float32)
    hu[:50:2] = np.nan
    hu[0, 0] = np.inf
    found = placed(HASTY["shifted"], hu, SPACING)
    assert 1 - score(found, ORGAN) < 0.5 * (1 - score(HASTY["shifted"], ORGAN))


def test_on_coarse_pixels_a_ring_of_them_is_added() -> None:
    coarse = (3.0, 3.0)
    x, y = np.indices((40, 40))
    organ = np.hypot(x - 19.5, y - 20) < 7
    hu = np.where(organ, 150, 20) + np.random.default_rng(2).normal(0, 10, organ.shape)
    found = placed(ndimage.binary_erosion(organ), hu, coarse)
    assert score(found, organ) > 0.95


@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    spacing=st.tuples(st.floats(0.05, 8), st.floats(0.05, 8)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_annotation_on_any_grid_is_answered(
    shape: tuple[int, int], spacing: tuple[float, float], seed: int
) -> None:
    chance = np.random.default_rng(seed)
    mask = ndimage.uniform_filter(chance.random(shape), 3) > 0.5
    hu = np.where(chance.random(shape) < 0.1, np.nan, chance.normal(0, 300, shape))
    before = mask.copy()
    found = placed(mask, hu, spacing)
    assert found.shape == mask.shape
    assert found.dtype == bool
    np.testing.assert_array_equal(mask, before)
    assert found is mask or score(found, mask) >= 0.6


@pytest.mark.parametrize("haste", [True, False])
def test_that_is_what_the_network_is_shown(haste: bool) -> None:
    shown: list[float] = []

    class Watched(FakeSam2):
        def prompt(self, features: Any, prompts: Sequence[FramePrompt]) -> list[Tracked]:
            shown.extend(float(one.mask.sum()) for one in prompts if one.mask is not None)
            return super().prompt(features, prompts)

    for drawn in (HASTY["tight"], ORGAN):
        session = Propagation(VOLUME, Watched(), parameters=PropagateParameters(haste=haste))
        session.put(1, {4: Seed(drawn)})
        session.run()
    scale = HASTY["tight"].sum() / ORGAN.sum()
    regions = [Region.around(VOLUME, Seed(drawn).extent, FakeSam2().frames) for drawn in (HASTY["tight"], ORGAN)]
    tight, well = (area * (region.width * region.height) for area, region in zip(shown, regions, strict=True))
    assert (tight / well > (1 + scale) / 2) == haste


def carried(drawn: Mask) -> Mask:
    session = Propagation(VOLUME, FakeSam2())
    session.put(1, {4: Seed(drawn)})
    return session.run().voxels == 1


@pytest.mark.parametrize("drawn", HASTY.values(), ids=HASTY)
def test_other_slices_follow_the_object_and_the_annotated_one_comes_back_as_it_was(drawn: Mask) -> None:
    found = carried(drawn)
    np.testing.assert_array_equal(found[:, :, 4], drawn)
    assert all(score(found[:, :, z], ORGAN) > 0.97 for z in (2, 3, 5, 6))


def test_a_second_annotation_on_the_slice_takes_the_place_of_the_first() -> None:
    session = Propagation(VOLUME, FakeSam2())
    session.put(1, {4: Seed(HASTY["tight"])})
    session.run()
    session.put(1, {4: Seed(HASTY["wide"])})
    found = session.run().voxels == 1
    np.testing.assert_array_equal(found[:, :, 4], HASTY["wide"])
    np.testing.assert_array_equal(found[:, :, 5], carried(HASTY["wide"])[:, :, 5])
