"""Refinement with a deterministic engine: what it accepts, what it keeps, and how far it goes."""

from typing import Any

import numpy as np
import pytest
from two_cylinders import AFFINE, ALWAYS, SHAPE, Threshold, like, scene, volumes

from polycl.errors import InputError, NotFoundError
from polycl.refinement import RefineParameters, refine
from polycl.sam import Embedding, Masks, Prompts
from polycl.volume import Volume
from polycl.window import Window, window_from
from turning import ORDERS, turned

pytestmark = pytest.mark.unit


def test_a_shifted_mask_becomes_the_right_one() -> None:
    image, coarse, truth = volumes()
    refined, report = refine(image, coarse, Threshold(), None, ALWAYS)
    np.testing.assert_array_equal(refined.voxels, truth)
    assert (report.slices, report.encoded, report.accepted, report.kept) == (14, 14, 14, 0)
    assert report.changed_voxels == np.count_nonzero(truth != coarse.voxels)
    assert refined.voxels.dtype == np.uint8


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_every_axis_order_gives_the_same_mask(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    image, coarse, _ = volumes()
    coarse.voxels[3:6, 20:29, 2:5] = 2  # nothing symmetric
    parameters = like(stride=2)
    straight, first = refine(image, coarse, Threshold(), None, parameters)
    other, second = refine(turned(image, axes, flips), turned(coarse, axes, flips), Threshold(), None, parameters)
    np.testing.assert_array_equal(other.canonical().voxels, straight.voxels)
    assert (first.accepted, first.kept, first.skipped) == (second.accepted, second.kept, second.skipped)


@pytest.mark.parametrize("engine", [Threshold(score=0.2), Threshold(bias=20.0), Threshold(bias=-20.0)])
def test_what_sam_is_unsure_of_or_disagrees_on_stays_coarse(engine: Threshold) -> None:
    image, coarse, _ = volumes()
    refined, report = refine(image, coarse, engine, None, ALWAYS)
    np.testing.assert_array_equal(refined.voxels, coarse.voxels)
    assert (report.accepted, report.kept, report.changed_voxels) == (0, 14, 0)


def test_small_components_and_other_labels_are_kept_as_they_are() -> None:
    image, coarse, truth = volumes()
    coarse.voxels[1:3, 33:35, 4] = 1
    refined, report = refine(image, coarse, Threshold(), None, ALWAYS, labels=[1])
    np.testing.assert_array_equal(refined.voxels[1:3, 33:35, 4], 1)
    np.testing.assert_array_equal(refined.voxels == 2, coarse.voxels == 2)
    assert (report.small, report.accepted) == (1, 7)
    assert (truth == 1).sum() + 4 == (refined.voxels == 1).sum()


def test_no_label_takes_a_component_that_another_keeps() -> None:
    image, _, _ = volumes()
    image.voxels[:] = 120  # SAM would have all of its box
    coarse = np.zeros(SHAPE, np.uint8)
    coarse[8:20, 8:24, 1:8] = 1
    coarse[20:22, 14:16, 1:8] = 2
    how = like(asks=["box"], stride=1, band=None, box_margin=6.0, reach=6.0, min_agreement=0.5)
    refined, report = refine(image, Volume(coarse, AFFINE), Threshold(), None, how)
    np.testing.assert_array_equal(refined.voxels == 2, coarse == 2)
    assert (refined.voxels == 1).sum() > (coarse == 1).sum()
    assert (report.small, report.accepted) == (7, 7)


def test_thin_components_are_kept_as_they_are() -> None:
    image, coarse, _ = volumes()
    coarse.voxels[20:, :, :] = 0
    engine = Threshold()
    refined, report = refine(image, coarse, engine, None, like(stride=1, min_depth=11.0))
    np.testing.assert_array_equal(refined.voxels, coarse.voxels)
    assert (report.small, report.slices, len(engine.encoded)) == (7, 0, 0)
    _, report = refine(image, coarse, engine, None, like(stride=1, min_depth=8.0))
    assert (report.small, report.accepted) == (0, 7)


def test_where_pixels_are_large_nothing_is_refined() -> None:
    image, coarse, _ = volumes()
    engine = Threshold()
    refined, report = refine(image, coarse, engine, None, like(stride=1, max_pixel=2.4))
    np.testing.assert_array_equal(refined.voxels, coarse.voxels)
    assert (report.accepted, report.slices, len(engine.encoded)) == (0, 0, 0)
    assert report.blurred > 0
    _, report = refine(image, coarse, engine, None, like(stride=1, max_pixel=2.5))
    assert report.accepted > report.blurred == 0


def test_the_answer_may_reach_beyond_the_box() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    coarse[:6] = 0
    near, far = (
        refine(image, Volume(coarse, AFFINE), Filled(), None, like(asks=["box"], stride=1, band=None, reach=reach))[0]
        for reach in (2.0, 8.0)
    )
    assert not near.voxels[:5].any()
    np.testing.assert_array_equal(far.voxels, truth)


class Filled(Threshold):
    """It looks beyond the box."""

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        assert prompts.box is not None
        return super().decode(embedding, Prompts(box=prompts.box + np.array([-9, -9, 9, 9])))


def test_no_pass_goes_beyond_the_band_around_the_coarse_mask() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    coarse[:7] = 0
    how = like(asks=["box"], stride=1, band=2.0, box_margin=2.0, reach=2.0, min_agreement=0.5, passes=4)
    refined, _ = refine(image, Volume(coarse, AFFINE), Threshold(), None, how)
    assert refined.voxels[6].any()
    assert not refined.voxels[:6].any()
    empty, report = refine(image, Volume(coarse, AFFINE), Threshold(bias=-20), None, how)
    np.testing.assert_array_equal(empty.voxels, coarse)
    assert report.kept == 14


def test_two_labels_never_share_and_never_take_what_was_kept() -> None:
    hu, truth, _ = scene()
    joined = np.where(truth > 0, 1, 0).astype(np.uint8)
    hu[:] = -60
    hu[8:30, 8:24, 1:8] = 120
    joined[:] = 0
    joined[8:20, 8:24, 1:8] = 1
    joined[20:30, 8:24, 1:8] = 2
    coarse = Volume(joined, AFFINE)
    refined, report = refine(Volume(hu, AFFINE), coarse, Threshold(), None, like(stride=1, band=None))
    assert report.accepted == 14
    assert set(np.unique(refined.voxels[8:30, 8:24, 1:8])) == {1, 2}
    only, _ = refine(Volume(hu, AFFINE), coarse, Threshold(), None, ALWAYS, labels=[1])
    np.testing.assert_array_equal(only.voxels == 2, joined == 2)


def test_the_band_limits_how_far_the_edge_moves() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    image.voxels[12, 17, 4] = -60  # a dark spot in the middle: SAM's hole is far from the edge
    free, _ = refine(image, Volume(coarse, AFFINE), Threshold(), None, ALWAYS)
    held, _ = refine(image, Volume(coarse, AFFINE), Threshold(), None, ALWAYS.model_copy(update={"band": 5.0}))
    assert free.voxels[12, 17, 4] == 0
    assert held.voxels[12, 17, 4] == 1


def test_what_one_slice_says_is_weighed_with_those_beside_it() -> None:
    image, _, truth = volumes()
    image.voxels[12, 17, 4] = -60
    for through_plane, found in ((0.0, 0), (4.0, 1)):
        how = like(stride=1, band=None, through_plane=through_plane)
        refined, _ = refine(image, Volume(truth, AFFINE), Threshold(), None, how)
        assert refined.voxels[12, 17, 4] == found


def test_a_label_on_one_slice_stays_there() -> None:
    image, coarse, truth = volumes()
    for voxels in (coarse.voxels, truth):
        voxels[:, :, :4] = 0
        voxels[:, :, 5:] = 0
    refined, _ = refine(image, coarse, Threshold(), None, like(through_plane=20.0))
    np.testing.assert_array_equal(refined.voxels, truth)


def test_an_even_mask_holds_its_own_and_a_ragged_one_does_not() -> None:
    image, even, truth = volumes()
    ragged = np.stack([np.roll(truth[:, :, z], z % 2, axis=0) for z in range(SHAPE[2])], axis=2)
    bumps = image.voxels.copy()
    bumps[12:14, 5:7, 2:8:2] = 120  # SAM finds them on every other slice
    for hold, kept in ((0.0, False), (20.0, True)):
        refined, report = refine(image.with_voxels(bumps), even, Threshold(), None, like(stride=1, hold=hold))
        assert np.array_equal(refined.voxels, even.voxels) == kept
        assert report.hold == {1: hold, 2: hold}
        refined, report = refine(image, Volume(ragged, AFFINE), Threshold(), None, like(stride=1, hold=hold))
        np.testing.assert_array_equal(refined.voxels, truth)
        assert report.hold == {1: 0, 2: 0}


def test_a_slice_that_is_not_finite_is_kept() -> None:
    image, coarse, _ = volumes()
    hu = image.voxels.astype(np.float32)
    hu[:, :, 4] = np.nan
    refined, report = refine(Volume(hu, AFFINE), coarse, Threshold(), None, ALWAYS)
    np.testing.assert_array_equal(refined.voxels[:, :, 4], coarse.voxels[:, :, 4])
    assert (report.unreadable, report.encoded) == (2, 12)


def test_an_empty_mask_costs_nothing() -> None:
    image, coarse, _ = volumes()
    engine = Threshold()
    refined, report = refine(image, coarse.with_voxels(np.zeros_like(coarse.voxels)), engine)
    assert not refined.voxels.any()
    assert engine.encoded == []
    assert report.slices == 0


def test_the_input_is_left_alone_and_progress_ends_at_the_total() -> None:
    image, coarse, _ = volumes()
    before, steps = coarse.voxels.copy(), []
    refine(image, coarse, Threshold(), None, like(), lambda done, total: steps.append((done, total)))
    np.testing.assert_array_equal(coarse.voxels, before)
    assert steps == sorted(set(steps))
    assert steps[-1] == (14, 14)


def test_the_mean_of_several_answers_counts_if_they_agree() -> None:
    image, coarse, truth = volumes()
    asks = ["box", "box+mask", "box+point+mask"]

    class Fickle(Threshold):
        """Fills the box when it is asked about that alone."""

        def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
            masks = super().decode(embedding, prompts)
            return masks if prompts.mask_logits is not None else Masks(masks.logits + 4.5, masks.scores, masks.low)

    same, one = refine(image, coarse, Threshold(), None, like(asks=asks, stride=1, band=None, min_consent=0.99))
    np.testing.assert_array_equal(same.voxels, truth)
    assert one.accepted == 14
    mean, two = refine(image, coarse, Fickle(), None, like(asks=asks, stride=1, band=None, min_agreement=0.5))
    np.testing.assert_array_equal(mean.voxels, truth)
    assert two.accepted == 14
    kept, three = refine(image, coarse, Fickle(), None, like(asks=asks, stride=1, band=None, min_consent=0.9))
    np.testing.assert_array_equal(kept.voxels, coarse.voxels)
    assert (three.accepted, three.kept) == (0, 14)


def test_a_mask_of_another_grid_is_refused() -> None:
    image, coarse, _ = volumes()
    moved = coarse.affine.copy()
    moved[0, 3] += 7
    for other in (Volume(coarse.voxels[:-1], AFFINE), Volume(coarse.voxels, moved)):
        with pytest.raises(InputError, match="coarse mask is not on the grid"):
            refine(image, other, Threshold())
    with pytest.raises(InputError, match="0 to 255"):
        refine(image, coarse.with_voxels(np.full(SHAPE, np.nan)), Threshold())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"margin": 3}, "box_margin"),
        ({"stride": 3}, "power of two"),
        ({"min_agreement": 1.5}, "min_agreement"),
        ({"band": float("nan")}, "band"),
        ({"through_plane": 1e10}, "through_plane"),
        ({"window": [40, 0]}, "width"),
        ({"asks": []}, "asks"),
        ({"asks": ["point"]}, "asks"),
        ({"tiles": 9}, "tiles"),
        ({"window": "liver"}, "soft-tissue"),
    ],
)
def test_wrong_parameters_are_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises((InputError, NotFoundError), match=word):
        RefineParameters(**values)


def test_windows_by_name_and_numbers() -> None:
    assert window_from("lung") == Window(level=-600, width=1500)
    assert like(window=[50, 350]).window == Window(level=50, width=350)
    for bad in (None, 3, [1], [1, "a"], [1, float("inf")], [True, 4], {"level": 3}):
        with pytest.raises(InputError, match="window must be"):
            window_from(bad)
