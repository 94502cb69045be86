"""Ragged labels followed through the plane by a SAM 2: which are, what becomes of them, and what stays as it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fake_sam import FakeSam, Unasked
from fake_sam2 import FakeSam2
from polycl.errors import Cancelled
from polycl.metrics import dice
from polycl.phantom import make_phantom
from polycl.refinement import RefineParameters, refine
from polycl.refinement.report import RefineReport
from polycl.refinement.votes import is_ragged, jump_mm
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE, AFFINE = (64, 64, 12), np.diag([2.0, 2.0, 3.0, 1.0])
Labels = NDArray[np.uint8]


def disc(x: int = 32, y: int = 32, radius: int = 12) -> NDArray[np.bool_]:
    columns, rows = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def bright(*slices: int) -> Volume:
    """A disc of 100 HU on these slices, 0 HU around it."""
    hu = np.zeros(SHAPE, np.float32)
    for z in slices or range(1, 11):
        hu[disc(), z] = 100
    return Volume(hu, AFFINE)


def ragged(*slices: int) -> Labels:
    """The disc, too small by two pixels on every other slice, by one on the others."""
    labels = np.zeros(SHAPE, np.uint8)
    for z in slices or range(1, 11):
        labels[disc(radius=10 if z % 2 else 11), z] = 1
    return labels


def followed(
    image: Volume, labels: Labels, progress: Callable[[int, int], None] | None = None, **changes: Any
) -> tuple[Labels, RefineReport]:
    """By the following alone: SAM is not asked about pixels of this size."""
    how = RefineParameters(max_pixel=1.0, **changes)
    result, report = refine(image, image.with_voxels(labels), Unasked(), None, how, progress, follower=FakeSam2())
    return result.voxels, report


def test_a_ragged_label_becomes_what_a_sam2_follows() -> None:
    labels = ragged()
    result, report = followed(bright(), labels)
    truth = bright().voxels > 50
    assert report.followed == 1
    assert report.ragged[1] > 0.05
    assert (dice(labels > 0, truth) or 0) < 0.9
    assert (dice(result > 0, truth) or 0) > 0.95
    assert report.changed_voxels == np.count_nonzero(result != labels)


def test_sam_is_asked_once_about_nine_slices_a_picture_of_what_is_followed() -> None:
    image, labels = bright(), bright().with_voxels(ragged())
    reports = []
    for follow in (0.1, None):
        told: list[tuple[int, int]] = []
        how = RefineParameters(follow=follow, min_depth=0, stride=1, passes=3)
        _, report = refine(
            image, labels, FakeSam(), None, how, lambda *step, told=told: told.append(step), follower=FakeSam2()
        )
        assert report.encoded == 10
        assert told[-1] == (told[-1][1],) * 2
        reports.append((report.encodings, told[-1][1]))
    assert reports == [(2, 10 + 10), (3, 3 * 10)]


def test_a_ragged_label_that_cannot_be_followed_is_refined_in_full() -> None:
    image, how = bright(), RefineParameters(min_depth=0, stride=1, crop_margin=10)
    image.voxels[0, 0, 5] = np.nan  # far from what SAM sees
    _, report = refine(image, image.with_voxels(ragged()), FakeSam(), None, how, follower=FakeSam2())
    assert (report.ragged, report.followed, report.encoded, report.encodings) == ({}, 0, 10, 3)


def test_an_even_label_is_left_alone() -> None:
    labels = (disc(radius=10)[:, :, None] * np.isin(np.arange(12), range(1, 11))).astype(np.uint8)
    result, report = followed(bright(), labels)
    assert (report.followed, report.ragged) == (0, {})
    np.testing.assert_array_equal(result, labels)


def test_nothing_is_followed_without_a_sam2_or_where_it_is_switched_off() -> None:
    labels = ragged()
    alone, report = refine(bright(), bright().with_voxels(labels), Unasked(), None, RefineParameters(max_pixel=1.0))
    assert report.followed == 0
    np.testing.assert_array_equal(alone.voxels, labels)
    np.testing.assert_array_equal(followed(bright(), labels, follow=None)[0], labels)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 5.0), (2.0, 2.0, 3.0), (1.5, 1.5, 2.5)])
def test_the_right_outline_of_no_organ_is_ragged(spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(mm / each) for mm, each in zip((360, 300, 240), spacing, strict=True))
    organs = make_phantom(0, shape=shape, spacing=spacing).labels.canonical().voxels
    for label, box in enumerate(ndimage.find_objects(organs), start=1):
        if box is not None:
            assert not is_ragged(organs[box] == label, spacing, RefineParameters().ragged), label


def test_the_label_has_a_say() -> None:
    changes = [followed(bright(), ragged(), follow=follow)[1].changed_voxels for follow in (0.02, 1.0, 3.0)]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 0.5 * changes[0]


def test_without_memory_the_rest_of_the_refinement_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(FakeSam2, "encode", out_of_memory)
    result, report = followed(bright(), ragged())
    assert report.followed == 0
    np.testing.assert_array_equal(result, ragged())


def test_jumps_are_mm_of_the_outline_whatever_the_pixels() -> None:
    coarse = np.kron(ragged(), np.ones((2, 2, 1), np.uint8)) > 0
    once, twice = jump_mm(ragged() > 0, (2.0, 2.0, 3.0)), jump_mm(coarse, (1.0, 1.0, 3.0))
    assert once == pytest.approx(twice, rel=0.15)
    assert once > 1.0


def test_other_labels_and_slices_without_the_label_stay_as_they_are() -> None:
    labels = ragged(3, 4, 5, 6, 7, 8)
    labels[26:30, 26:30, 2:10] = 2
    labels[50:52, 50:52, 5] = 1
    result, report = followed(bright(), labels, ragged=0.05)
    assert report.followed == 1
    np.testing.assert_array_equal(result == 2, labels == 2)
    assert not (result[:, :, [1, 2, 9, 10]] == 1).any()
    assert (result[50:52, 50:52, 5] == 1).all()


def test_what_comes_out_as_something_else_is_not_taken() -> None:
    labels = ragged()
    image = bright()
    image.voxels[:, 20:44] = 100  # all that is beside it is as bright
    result, report = followed(image, labels)
    assert report.followed == 0
    np.testing.assert_array_equal(result, labels)


def test_a_slice_that_is_no_numbers_lets_the_component_be() -> None:
    image, labels = bright(), ragged()
    image.voxels[0, 0, 5] = np.nan
    result, report = followed(image, labels)
    assert report.followed == 0
    np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize(("radius", "kept"), [(7, True), (10, False)])
def test_an_end_that_is_lost_stays_if_it_tapers_off(radius: int, kept: bool) -> None:
    labels = ragged()
    for z, pixels in ((8, 8), (9, radius), (10, radius)):
        labels[:, :, z] = disc(radius=pixels)
    image = bright(*range(1, 9))  # the last two are as dark as all around
    result, report = followed(image, labels, min_agreement=0.5, follow=0.02)
    assert report.followed == 1
    assert (result[:, :, 9:] == labels[:, :, 9:]).all() == kept
    assert result[:, :, 9:].any() == kept


def test_progress_ends_where_it_said_and_may_stop_it() -> None:
    told: list[tuple[int, int]] = []
    image = bright()
    image.voxels[44:60, 30:34, 4:8] = 100  # what is followed outgrows the region that is looked at
    followed(image, ragged(), lambda done, total: told.append((done, total)), follow=0.0)
    assert told[-1] == (10, 10)
    assert told == sorted(told)
    assert {total for _, total in told} == {10}

    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        followed(bright(), ragged(), stop)
