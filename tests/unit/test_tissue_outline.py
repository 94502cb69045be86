"""Thin labels outlined by what they are made of: which are, what they gain, and what stays as it is."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fake_sam import Unasked
from fake_sam2 import FakeSam2
from polycl.appearance import Appearance, odds_by_slice
from polycl.metrics import dice
from polycl.refinement import RefineParameters, refine, tissue
from polycl.refinement.tissue import FEWEST_VOXELS, outline
from polycl.refinement.votes import is_ragged
from polycl.volume import Volume
from turning import ORDERS, turned

pytestmark = pytest.mark.unit

SHAPE, SPACING = (32, 32, 18), (4.0, 4.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
Mask = NDArray[np.bool_]


def jaw(*, outer: float = 44.0, inner: float = 34.0) -> Mask:
    """Half a ring, two or three pixels thick, on all slices but the first and last three."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot((x - 15.5) * SPACING[0], (y - 10) * SPACING[1])
    return np.asarray((radius < outer) & (radius > inner) & (y >= 10) & (z >= 3) & (z < SHAPE[2] - 3))


def ct(bone: Mask, *, hu: float = 800.0) -> Volume:
    """Bone in soft tissue, with noise."""
    noise = np.random.default_rng(0).normal(0, 40, SHAPE)
    return Volume(np.where(bone, hu, 40.0).astype(np.float32) + noise.astype(np.float32), AFFINE)


def uneven(mask: Mask) -> Mask:
    """As a model of few labels has it: a pixel to one side or the other, and thin, on every other slice."""
    out = mask.copy()
    for z in range(SHAPE[2]):
        shift = (0, 1) if z % 4 == 0 else (1, 0) if z % 4 == 2 else (0, 0)
        out[:, :, z] = np.roll(mask[:, :, z], shift, (0, 1))
        if z % 2:
            out[:, :, z] &= ndimage.binary_erosion(mask[:, :, z], np.ones((2, 1)))
    return out


def as_labels(mask: Mask, label: int = 1) -> NDArray[np.uint8]:
    return mask.astype(np.uint8) * np.uint8(label)


def refined(image: Volume, labels: NDArray[np.uint8], **changes: Any) -> tuple[Volume, list[int]]:
    how = RefineParameters(**changes)
    result, report = refine(image, image.with_voxels(labels), Unasked(), None, how, follower=FakeSam2())
    return result, report.by_tissue


def test_a_thin_uneven_label_becomes_what_its_tissue_is() -> None:
    bone = jaw()
    coarse = uneven(bone)
    assert not is_ragged(coarse, SPACING, 0.05), "a SAM 2 would not follow it"
    before = dice(coarse, bone)
    result, done = refined(ct(bone), as_labels(coarse, 5))
    after = dice(result.voxels == 5, bone)
    assert done == [5]
    assert before is not None
    assert after is not None
    assert before < 0.85
    assert after > before + 0.05


def test_what_is_ragged_but_too_thin_to_follow_is_outlined_too() -> None:
    bone = jaw()
    coarse = bone.copy()
    coarse[15:17, :, ::2] = False
    coarse[10:12] = coarse[20:22] = False
    assert is_ragged(coarse, SPACING, 0.05), "at smaller pixels a SAM 2 would be asked"
    result, done = refined(ct(bone), as_labels(coarse))
    assert done == [1]
    before, after = dice(coarse, bone), dice(result.voxels == 1, bone)
    assert before is not None
    assert after is not None
    assert after > before


def test_it_can_be_left_out() -> None:
    coarse = as_labels(uneven(jaw()))
    result, done = refined(ct(jaw()), coarse, tissue=0)
    assert done == []
    np.testing.assert_array_equal(result.voxels, coarse)


def test_more_of_it_changes_more() -> None:
    coarse = uneven(jaw())
    some, much = (refined(ct(jaw()), as_labels(coarse), tissue=count)[0].voxels == 1 for count in (0.2, 2))
    assert np.count_nonzero(some ^ coarse) < np.count_nonzero(much ^ coarse)


@pytest.mark.parametrize(
    ("hu", "mask"),
    [
        (40.0, uneven(jaw())),  # made of the same as what is around it
        (800.0, jaw()),  # even, though thin
        (800.0, uneven(jaw()) & (np.indices(SHAPE)[0] < 16)),  # too few voxels to tell
    ],
)
def test_what_tells_nothing_or_needs_nothing_stays(hu: float, mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tissue, "AT_REST", 1.0)  # little change is no reason to stay here
    assert mask.any()
    labels = as_labels(mask)
    result, done = refined(ct(jaw(), hu=hu), labels)
    assert done == []
    np.testing.assert_array_equal(result.voxels, labels)


def test_what_would_hardly_change_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    nearly = jaw()
    nearly[15:17, :, 5:12:2] = False
    labels = as_labels(nearly)
    image = ct(jaw())
    assert not outline(image.voxels, labels, 1, SPACING, 1.0)
    np.testing.assert_array_equal(labels, as_labels(nearly))
    monkeypatch.setattr(tissue, "AT_REST", 1.0)
    assert outline(image.voxels, labels, 1, SPACING, 1.0)


def test_few_voxels_are_fewer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    few = uneven(jaw()) & (np.indices(SHAPE)[0] < 16)
    assert np.count_nonzero(few) < FEWEST_VOXELS < np.count_nonzero(uneven(jaw()))
    monkeypatch.setattr(tissue, "FEWEST_VOXELS", 0)
    assert outline(ct(jaw()).voxels, as_labels(few), 1, SPACING, 1.0)


def test_other_labels_and_slices_without_it_stay() -> None:
    bone = jaw()
    labels = as_labels(uneven(bone))
    free = ndimage.binary_dilation(bone, iterations=1) & (labels == 0)
    labels[free & (np.indices(SHAPE)[0] < 16)] = 2
    labels[:, :, 8] = np.where(labels[:, :, 8] == 1, 0, labels[:, :, 8])
    before = labels.copy()
    assert outline(ct(bone).voxels, labels, 1, SPACING, 1.0)
    np.testing.assert_array_equal(labels == 2, before == 2)
    assert not (labels == 1)[:, :, 8].any()
    assert not (labels == 1)[:, :, :3].any()
    assert np.count_nonzero(labels != before)


def test_crumbs_stay_and_say_nothing() -> None:
    bone = jaw()
    alone, with_crumb = as_labels(uneven(bone)), as_labels(uneven(bone))
    with_crumb[2:4, 2:4, 6:9] = 1
    image = ct(bone)
    assert outline(image.voxels, alone, 1, SPACING, 1.0)
    assert outline(image.voxels, with_crumb, 1, SPACING, 1.0)
    alone[2:4, 2:4, 6:9] = 1
    np.testing.assert_array_equal(with_crumb, alone)


def test_a_component_of_other_tissue_stays() -> None:
    bone = jaw()
    labels = as_labels(uneven(bone))
    soft = np.zeros(SHAPE, dtype=bool)
    soft[14:18, 2:5, 5:12] = True
    labels[soft] = 1
    assert outline(ct(bone).voxels, labels, 1, SPACING, 1.0)
    assert np.count_nonzero(labels[soft]) > 0.6 * np.count_nonzero(soft)


def test_no_slice_loses_it_and_no_other_bone_joins() -> None:
    bone = jaw()
    coarse = uneven(bone)
    beside = np.zeros(SHAPE, dtype=bool)
    beside[12:20, 4:7, 4:14] = True  # within reach, but touching nothing
    image = ct(bone | beside)
    image.voxels[:, :, 10] = 40  # the scanner lost it
    labels = as_labels(coarse)
    assert outline(image.voxels, labels, 1, SPACING, 4.0)
    np.testing.assert_array_equal(labels.any(axis=(0, 1)), coarse.any(axis=(0, 1)))
    assert not labels[beside].any()


def test_hu_tell_less_where_the_same_lies_beside() -> None:
    shape = (32, 32, 40)
    bone, beside = (np.zeros(shape, dtype=bool) for _ in range(2))
    bone[12:20, 12:14] = True
    beside[10:22, 15:19, :10] = beside[10:22, 7:11, :10] = True
    values = np.where(bone | beside, 800.0, 40.0)
    around = ndimage.binary_dilation(bone, iterations=6) & ~bone
    odds = odds_by_slice(values, bone, around, 4.0)
    assert odds[15, 12, 0] < 0.8 * odds[15, 12, -1], "there is other bone here, and none there"
    told = Appearance.of(values[bone], values[around]).odds(values)
    assert odds[15, 12, 0] < told[15, 12, 0] <= odds[15, 12, -1]
    everywhere = odds_by_slice(values, bone, around, 1000.0)
    np.testing.assert_allclose(everywhere, told, rtol=0.05)


def test_bone_that_lies_beside_on_some_slices_joins_less(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse, number = np.tile(uneven(jaw())[:, :, 4:12], (1, 1, 6)), 48
    x, y, z = np.indices((*SHAPE[:2], number))
    radius = np.hypot((x - 15.5) * SPACING[0], (y - 10) * SPACING[1])
    beside = (radius >= 44) & (radius < 56) & (y >= 14) & (z < 12)
    bone = np.repeat(jaw()[:, :, 9:10], number, axis=2) | beside
    values = np.where(bone, 800.0, 40.0) + np.random.default_rng(0).normal(0, 40, bone.shape)

    def joined() -> int:
        labels = as_labels(coarse)
        assert outline(values, labels, 1, SPACING, 1.0)
        return np.count_nonzero(labels[beside])

    near = joined()
    monkeypatch.setattr(tissue, "NEAR_MM", 1000.0)
    assert near < 0.75 * joined()


def test_slices_far_from_a_structure_tell_nothing() -> None:
    within = np.zeros((16, 16, 60), dtype=bool)
    within[6:9, 6:9, :10] = True
    values = np.where(within, 800.0, 40.0)
    odds = odds_by_slice(values, within, ~within & (np.indices(within.shape)[2] < 10), 2.0)
    np.testing.assert_array_equal(odds[:, :, -1], 0.0)


def test_smaller_pixels_and_thicker_organs_are_not_for_it() -> None:
    coarse = as_labels(uneven(jaw()))
    fine = Volume(ct(jaw()).voxels, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert refined(fine, coarse)[1] == []
    assert refined(fine, coarse, max_pixel=1.5)[1] == [1]
    x, y, z = np.indices(SHAPE)
    ball = np.hypot(np.hypot(x - 15.5, y - 15.5) * 4, (z - 9) * 3) < 22
    result, done = refined(ct(ball), as_labels(uneven(ball)), follow=None)
    assert done == []
    np.testing.assert_array_equal(result.voxels, as_labels(uneven(ball)))


def test_without_memory_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(tissue, "_outlined", fails)
    labels = as_labels(uneven(jaw()))
    result, done = refined(ct(jaw()), labels)
    assert done == []
    np.testing.assert_array_equal(result.voxels, labels)


def test_progress_ends_at_its_end() -> None:
    image, told = ct(jaw()), list[tuple[int, int]]()
    labels = image.with_voxels(as_labels(uneven(jaw())))
    refine(image, labels, Unasked(), None, RefineParameters(), lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)


def test_only_the_labels_asked_for() -> None:
    bone = jaw()
    image = ct(bone)
    labels = image.with_voxels(as_labels(uneven(bone), 3))
    result, report = refine(image, labels, Unasked(), None, RefineParameters(), labels=[4])
    assert report.by_tissue == []
    np.testing.assert_array_equal(result.voxels, labels.voxels)


def test_values_that_are_no_numbers_leave_it_as_it_is() -> None:
    image = ct(jaw())
    image.voxels[16, 20, 9] = np.nan
    labels = as_labels(uneven(jaw()))
    assert not outline(image.voxels, labels, 1, SPACING, 1.0)
    np.testing.assert_array_equal(labels, as_labels(uneven(jaw())))


def test_a_label_that_is_not_there() -> None:
    assert not outline(ct(jaw()).voxels, as_labels(jaw()), 7, SPACING, 1.0)


@pytest.mark.parametrize(("axes", "flips"), ORDERS[::7])
def test_any_axis_order_gives_the_same(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    image, coarse = ct(jaw()), as_labels(uneven(jaw()))
    expected, _ = refined(image, coarse)
    mask = turned(image.with_voxels(coarse), axes, flips)
    result, done = refined(turned(image, axes, flips), mask.voxels)
    assert done == [1]
    np.testing.assert_array_equal(result.canonical().voxels, expected.canonical().voxels)
