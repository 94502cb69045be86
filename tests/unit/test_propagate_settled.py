"""Annotations drawn in haste: the object is followed from where it most likely is, and they come back as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fake_sam2 import FakeSam2
from polycl.metrics import dice
from polycl.propagate.contour import settled
from polycl.propagate.engine import FramePrompt, Tracked
from polycl.propagate.frames import Region
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE, SPACING = (96, 90), (0.8, 0.9)
X, Y = np.indices(SHAPE)
Mask = NDArray[np.bool_]


def disc(radius_mm: float, at: tuple[float, float] = (45.0, 46.0)) -> Mask:
    return np.asarray(np.hypot((X - at[0]) * SPACING[0], (Y - at[1]) * SPACING[1]) < radius_mm)


ORGAN = disc(20)
HASTY = {"tight": disc(17), "wide": disc(23), "shifted": disc(20, (47.7, 48.4))}


def ct(organ: Mask, hu: float = 150.0) -> NDArray[np.int16]:
    return (np.where(organ, hu, 20) + np.random.default_rng(0).normal(0, 15, SHAPE)).astype(np.int16)


VOLUME = Volume(np.repeat(ct(ORGAN)[:, :, None], 9, axis=2), np.diag([*SPACING, 2.0, 1.0]))


def score(found: Mask, mask: Mask) -> float:
    return dice(found, mask) or 0.0


@pytest.mark.parametrize("drawn", HASTY.values(), ids=HASTY)
def test_an_outline_that_is_3_mm_off_is_taken_to_be_at_the_edge(drawn: Mask) -> None:
    found = settled(drawn, ct(ORGAN), SPACING, 1.0)
    assert 1 - score(found, ORGAN) < 0.5 * (1 - score(drawn, ORGAN))


@pytest.mark.parametrize(
    "drawn", [ORGAN, disc(19.5), ndimage.binary_opening(ORGAN, iterations=3)], ids=["well", "nearly", "smoothly"]
)
def test_one_that_hardly_moves_was_meant_so(drawn: Mask) -> None:
    np.testing.assert_array_equal(settled(drawn, ct(ORGAN), SPACING, 1.0), drawn)


@pytest.mark.parametrize("drawn", [disc(17), ORGAN & (X < 45)], ids=["within", "half"])
def test_a_part_of_what_looks_alike_stays_a_part(drawn: Mask) -> None:
    """As a segment of the liver does, or a lesion that is seen by its place alone."""
    alike = ct(disc(60))
    np.testing.assert_array_equal(settled(drawn, alike, SPACING, 1.0), drawn)


def test_it_is_left_alone_where_there_is_nothing_to_tell() -> None:
    everything = np.ones(SHAPE, dtype=bool)
    np.testing.assert_array_equal(settled(everything, ct(ORGAN), SPACING, 1.0), everything)
    unknown = np.full(SHAPE, np.nan, np.float32)
    np.testing.assert_array_equal(settled(ORGAN, unknown, SPACING, 1.0), ORGAN)


@pytest.mark.parametrize(("appearance", "closer"), [(1.0, True), (0.0, False)])
def test_that_is_what_the_network_is_shown(appearance: float, closer: bool) -> None:
    shown: list[float] = []

    class Watched(FakeSam2):
        def prompt(self, features: Any, prompts: Sequence[FramePrompt]) -> list[Tracked]:
            shown.extend(float(one.mask.sum()) for one in prompts if one.mask is not None)
            return super().prompt(features, prompts)

    for drawn in (HASTY["tight"], ORGAN):
        session = Propagation(VOLUME, Watched(), parameters=PropagateParameters(appearance=appearance))
        session.put(1, {4: Seed(drawn)})
        session.run()
    scale = HASTY["tight"].sum() / ORGAN.sum()
    regions = [Region.around(VOLUME, Seed(drawn).extent, FakeSam2().frames) for drawn in (HASTY["tight"], ORGAN)]
    tight, well = (area * (region.width * region.height) for area, region in zip(shown, regions, strict=True))
    assert (tight / well > (1 + scale) / 2) == closer


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
