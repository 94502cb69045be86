"""The image that SAM sees of a canonical slice, and prompts on it."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycl.errors import InputError
from polycl.sam import Prompts, content_hash, from_image, mask_prompt, slice_image, to_image, to_pixels, to_xy
from polycl.volume import Volume, to_canonical_index
from polycl.window import Window

pytestmark = pytest.mark.unit

WINDOW = Window(level=0, width=200)


def ct(shape: tuple[int, int, int] = (5, 4, 3)) -> Volume:
    return Volume(np.random.default_rng(0).integers(-100, 100, shape).astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))


def in_other_axes(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same patient, voxels stored in another of the 48 axis orders."""
    voxels, affine = volume.voxels.transpose(order), volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            voxels = np.flip(voxels, axis)
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(voxels), affine)


def test_the_front_is_on_top_and_the_patients_right_on_the_left() -> None:
    plane = np.zeros((5, 4))
    plane[4, 3] = 1  # the rightmost, most anterior voxel in R-A-S
    assert to_image(plane)[0, 0] == 1
    assert to_image(plane).shape == (4, 5)


@given(st.integers(1, 6), st.integers(1, 6))
def test_pixels_and_canonical_indices_correspond(width: int, height: int) -> None:
    plane = np.arange(width * height).reshape(width, height)
    image = to_image(plane)
    for x, y in itertools.product(range(width), range(height)):
        column, row = to_pixels((x, y), plane.shape)
        assert image[row, column] == plane[x, y]
        assert tuple(to_xy((column, row), plane.shape)) == (x, y)
    np.testing.assert_array_equal(from_image(image), plane)


def test_writing_into_the_image_fills_the_plane() -> None:
    plane = np.zeros((3, 2))
    to_image(plane)[0, 0] = 1
    assert plane[2, 1] == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_axis_orders_give_one_image_one_prompt_and_one_hash(order: tuple[int, ...]) -> None:
    first = ct()
    expected, digest = slice_image(first, 1, WINDOW), content_hash(first)
    for flips in itertools.product((False, True), repeat=3):
        other = in_other_axes(first, order, flips)
        canonical = other.canonical()
        np.testing.assert_array_equal(slice_image(canonical, 1, WINDOW), expected)
        assert content_hash(other) == digest
        own = np.argwhere(other.voxels == first.voxels[3, 2, 1])
        x, y, z = next(
            point for point in to_canonical_index(own, other.shape, other.affine).tolist() if tuple(point) == (3, 2, 1)
        )
        assert z == 1
        assert tuple(to_pixels((x, y), canonical.shape[:2])) == (1, 1)


def test_the_window_is_applied_and_nan_is_black() -> None:
    voxels = np.array([[-500.0, -100.0], [0.0, np.nan]])[:, :, None]
    seen = from_image(slice_image(Volume(voxels, np.eye(4)), 0, WINDOW))
    np.testing.assert_array_equal(seen, [[0, 0], [0.5, 0]])
    assert seen.dtype == np.float32


def test_slices_that_cannot_be_seen_are_refused() -> None:
    with pytest.raises(InputError, match="slices are 0 to 2"):
        slice_image(ct(), 3, WINDOW)
    with pytest.raises(InputError, match="slices are 0 to 2"):
        slice_image(ct(), -1, WINDOW)
    with pytest.raises(InputError, match="only NaN"):
        slice_image(Volume(np.full((2, 2, 1), np.nan), np.eye(4)), 0, WINDOW)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({}, "no prompt"),
        ({"points": [[1, 2]]}, "needs a label"),
        ({"points": [[1, 2]], "labels": [2]}, "needs a label"),
        ({"points": [[1, np.nan]], "labels": [1]}, "finite"),
        ({"points": "here", "labels": [1]}, "numbers"),
        ({"box": [1, 2, 3]}, "four numbers"),
        ({"box": [1, 2, 3, np.inf]}, "finite"),
        ({"mask_logits": np.zeros((4, 4))}, "256 x 256"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Prompts(**given_)


def test_a_box_may_be_given_by_any_two_corners() -> None:
    box = Prompts(box=[7, 2, 3, 9]).box
    assert box is not None
    assert box.tolist() == [3, 2, 7, 9]


def test_a_mask_prompt_is_where_the_mask_is() -> None:
    mask = np.zeros((64, 128), bool)
    mask[16:32, 64:96] = True
    logits = mask_prompt(mask)
    assert logits.shape == (256, 256)
    np.testing.assert_array_equal((logits[:128] > 0)[::2, ::2], mask)
    assert (logits[128:] < 0).all()


def test_a_volume_is_hashed_once_and_other_voxels_hash_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = ct()
    digest = content_hash(volume)
    changed = volume.voxels.copy()
    changed[0, 0, 0] += 1
    assert content_hash(volume.with_voxels(changed)) != digest
    assert content_hash(volume.with_voxels(volume.voxels.astype(np.int32))) != digest
    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: pytest.fail("hashed twice"))
    assert content_hash(volume) == content_hash(volume.canonical()) == digest
