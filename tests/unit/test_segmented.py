"""What segmenters found, kept for the next who asks, and for what is painted on it."""

import numpy as np
import pytest

from polycl.monailabel.segmented import REMEMBERED, Found, Segmentations
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (20, 16, 12)
LABELS = {"liver": 1, "spleen": 2}


def image(seed: int, order: str = "F") -> Volume:
    voxels = np.random.default_rng(seed).integers(-100, 100, SHAPE, dtype=np.int16)
    return Volume(np.asarray(voxels, order=order), np.diag([-1.0, 1.0, 2.0, 1.0]))  # type: ignore[call-overload]


def mask(volume: Volume, *values: int) -> Volume:
    voxels = np.zeros_like(volume.voxels, dtype=np.uint8)
    voxels[:4, 3:6, :4], voxels[9:, 9:, 9:] = values
    return volume.with_voxels(voxels)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("values", [(1, 2), (2, 1), (0, 7), (0, 0), (255, 3)])
def test_a_label_map_comes_back_as_it_was(order: str, values: tuple[int, int]) -> None:
    whole = mask(image(0, order), *values)
    found = Found.of(whole)
    np.testing.assert_array_equal(found.on(image(0, order), range(256)).voxels, whole.voxels)
    one = found.on(image(0, order), [values[1]]).voxels
    np.testing.assert_array_equal(one, np.where(whole.voxels == values[1], values[1], 0))


def test_results_are_by_image_grid_and_model() -> None:
    kept, found = Segmentations(), Found.of(mask(image(0), 1, 2))
    kept.keep(image(0), "a" * 64, found)
    assert kept.get(image(0), "a" * 64) is found
    moved = Volume(image(0).voxels, np.diag([-1.0, 1.0, 3.0, 1.0]))
    assert [kept.get(image(0), "b" * 64), kept.get(image(1), "a" * 64), kept.get(moved, "a" * 64)] == [None] * 3


def test_what_was_used_longest_ago_goes() -> None:
    found = Found.of(mask(image(0), 1, 2))
    kept = Segmentations(2 * found.nbytes)
    for seed in (0, 1, 0, 2):
        if kept.get(image(seed), "") is None:
            kept.keep(image(seed), "", found)
    assert [kept.get(image(seed), "") is found for seed in (0, 1, 2)] == [True, False, True]


def test_what_was_shown_is_remembered_by_person_image_and_label() -> None:
    kept = Segmentations()
    for values in ((1, 2), (2, 1), (0, 2)):
        kept.show("anna", image(0), Found.of(mask(image(0), *values)), LABELS)
    shown = kept.shown("anna", image(0), "spleen")
    assert len(shown) == REMEMBERED == 2
    last = np.zeros(SHAPE, bool)
    last[:11, 9:, 9:] = True  # canonical: x runs the other way
    np.testing.assert_array_equal(shown[-1], last)
    assert len(kept.shown("anna", image(0), "liver")) == 1
    assert kept.shown("anna", image(0), "kidney") == []
    assert kept.shown("bert", image(0), "liver") == []
    assert kept.shown("anna", image(1), "liver") == []
