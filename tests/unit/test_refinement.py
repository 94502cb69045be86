"""Refinement with a deterministic engine: what it accepts, what it keeps, and in which order it looks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.refinement import RefineParameters, refine
from polycl.refinement.stage import levels
from polycl.sam import Embedding, EmbeddingCache, Masks, Prompts
from polycl.volume import Volume
from polycl.window import Window, window_from
from turning import ORDERS, turned

pytestmark = pytest.mark.unit

SHAPE = (40, 36, 9)
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, 12], [0, 0, 4.0, 50], [0, 0, 0, 1]])
PLAIN = {
    "window": "soft-tissue",
    "asks": ["box+point+mask"],
    "passes": 1,
    "min_area": 60.0,
    "min_depth": 0.0,
    "max_pixel": 100.0,
    "box_margin": 2.0,
    "reach": 2.0,
    "crop_margin": None,
    "tiles": 1,
    "min_agreement": 0.85,
    "min_score": 0.75,
    "min_consent": 0.0,
    "band": 4.0,
    "stride": 4,
    "through_plane": 0.0,
    "hold": 0.0,
}
"""One question a component, on whole slices: the defaults may change, what they mean does not."""


def like(**changes: Any) -> RefineParameters:
    return RefineParameters(**(PLAIN | changes))


ALWAYS = like(stride=1, band=None)


class Threshold:
    """A SAM that finds what is brighter than half the window inside the box, however the image is turned."""

    name, sha256, size = "threshold", "0" * 64, 64
    sight = None

    def __init__(self, score: float = 0.9, bias: float = 0.0) -> None:
        self.score, self.bias = score, bias
        self.encoded: list[NDArray[np.floating]] = []
        self.prompts: list[Prompts] = []

    def encode(self, image: NDArray[np.floating]) -> Embedding:
        self.encoded.append(image)
        size = (image.shape[0], image.shape[1])
        return Embedding(np.asarray(image, np.float32)[None, None], size, size)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        self.prompts.append(prompts)
        prompts.require_inside(embedding.original)
        image = embedding.features[0, 0]
        logits = np.full_like(image, -5.0)
        assert prompts.box is not None
        left, top, right, bottom = prompts.box.round().astype(int)
        inside = (slice(max(0, top), bottom + 1), slice(max(0, left), right + 1))
        logits[inside] = (image[inside] - 0.5) * 10 + self.bias
        return Masks(logits[None], np.array([self.score], np.float32), np.zeros((1, 256, 256), np.float32))

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        return [self.decode(embedding, one) for one in prompts]


def scene() -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """HU with two bright cylinders on slices 1 to 7, their labels 1 and 2, and the labels moved by a pixel."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    truth = np.zeros(SHAPE, np.uint8)
    truth[(x - 12) ** 2 / 81 + (y - 17) ** 2 / 100 < 1, 1:8] = 1
    truth[(x - 29) ** 2 / 49 + (y - 15) ** 2 / 64 < 1, 1:8] = 2
    coarse = np.roll(truth, 1, axis=0)
    return np.where(truth > 0, 120, -60).astype(np.int16), truth, coarse


def volumes() -> tuple[Volume, Volume, NDArray[np.uint8]]:
    hu, truth, coarse = scene()
    return Volume(hu, AFFINE), Volume(coarse, AFFINE), truth


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


def test_slices_beside_unchanged_ones_are_skipped() -> None:
    image, _, truth = volumes()
    engine = Threshold()
    refined, report = refine(image, Volume(truth, AFFINE), engine, None, like(stride=4))
    np.testing.assert_array_equal(refined.voxels, truth)
    assert (report.slices, report.encoded, report.skipped) == (14, 6, 8)
    assert len(engine.encoded) == 3, "both labels see the same slices"


def test_a_slice_that_changes_has_the_ones_beside_it_visited() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    coarse[:, :, 5] = np.roll(truth[:, :, 5], 1, axis=0)  # position 4 of 7: always visited
    _, report = refine(image, Volume(coarse, AFFINE), Threshold(), None, like(stride=4), labels=[1])
    assert (report.encoded, report.skipped) == (6, 1)


def test_only_slices_with_coarse_mask_are_encoded_and_nothing_is_invented() -> None:
    image, coarse, _ = volumes()
    coarse.voxels[:, :, 3:] = 0
    coarse.voxels[coarse.voxels[:, :, 2] == 2, 2] = 0
    engine = Threshold()
    refined, _ = refine(image, coarse, engine, None, like(stride=1, band=None))
    assert len(engine.encoded) == 2
    assert not refined.voxels[:, :, 3:].any()
    assert not (refined.voxels[:, :, 2] == 2).any()
    assert (refined.voxels[:, :, 1] == 2).any()


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


def test_only_what_a_pass_moved_is_asked_about_again() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    coarse[truth == 2] = 0
    coarse[:20, :, 3] = np.roll(coarse[:20, :, 3], 9, axis=0)  # wrapped around: two pieces, not trusted
    coarse[:6, :, 5:7] = 0  # a strip is missing, which SAM fills in
    engine = Threshold()
    _, report = refine(
        image, Volume(coarse, AFFINE), engine, None, like(stride=1, passes=2, through_plane=0, at_rest=0.98)
    )
    assert (report.accepted, report.kept, len(engine.prompts)) == (6, 2, 8 + 2)
    engine = Threshold()
    how = like(stride=1, passes=2, through_plane=0, at_rest=1.0)
    refine(image, Volume(truth, AFFINE), engine, None, how, labels=[1])
    assert len(engine.prompts) == 7  # the first pass left all as they were


def test_later_passes_ask_less() -> None:
    image, coarse, _ = volumes()
    engine = Threshold()
    how = like(stride=1, passes=2, asks=["box", "box+mask"], asks_again=["box+point+mask"])
    _, report = refine(image, coarse, engine, None, how, labels=[1])
    assert report.accepted == 7
    told = [(one.mask_logits is not None, len(one.points)) for one in engine.prompts]
    assert told == [(False, 0), (True, 0)] * 7 + [(True, 1)] * 7


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


def test_asked_again_about_its_answer_it_goes_on() -> None:
    image, _, truth = volumes()
    coarse = truth.copy()
    coarse[:7] = 0
    how = like(asks=["box"], stride=1, band=None, box_margin=2.0, reach=8.0, min_agreement=0.5, at_rest=1.0)
    missing, asked = [], []
    for passes in (1, 3, 4):
        engine = Threshold()
        refined, report = refine(image, Volume(coarse, AFFINE), engine, None, how.model_copy(update={"passes": passes}))
        missing.append(int((truth > 0).sum() - (refined.voxels > 0).sum()))
        asked.append(len(engine.prompts))
        assert report.accepted == 14
    assert missing[0] > missing[1] == missing[2] == 0
    assert asked == [14, 14 + 2 * 7, 14 + 3 * 7]  # the label that lost nothing is asked about once


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


def test_sam_sees_the_region_around_the_organ() -> None:
    image, coarse, _ = volumes()
    engine = Threshold()
    coarse.voxels[coarse.voxels == 2] = 1
    refine(image, coarse, engine, None, like(crop_margin=5.0, min_crop=1.0))
    whole = Threshold()
    refine(image, coarse, whole, None, like(crop_margin=None))
    assert whole.encoded[0].shape == (36, 40)
    rows, columns = np.flatnonzero(coarse.voxels.any(axis=(0, 2))), np.flatnonzero(coarse.voxels.any(axis=(1, 2)))
    assert engine.encoded[0].shape == (np.ptp(rows) + 5, min(40, columns[-1] + 3) - max(0, columns[0] - 2))


def test_prompts_are_box_point_and_mask_as_asked() -> None:
    image, coarse, _ = volumes()
    engine = Threshold()
    refine(image, coarse, engine, None, like())
    prompts = engine.prompts[0]
    column, row = prompts.points[0].astype(int)
    assert coarse.voxels[39 - column, 35 - row, 1] == 1
    assert prompts.mask_logits is not None
    assert prompts.mask_logits[int((row + 0.5) * 6.4), int((column + 0.5) * 6.4)] > 5
    bare = Threshold()
    refine(image, coarse, bare, None, like(asks=["box"]))
    assert len(bare.prompts[0].points) == 0
    assert bare.prompts[0].mask_logits is None


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


@pytest.mark.parametrize("tiles", [2, 3])
def test_several_slices_in_one_picture_give_what_single_ones_give(tiles: int) -> None:
    image, coarse, _ = volumes()
    coarse.voxels[3:6, 20:29, 2:5] = 2
    for crop in (None, 5.0):
        how = ALWAYS.model_copy(update={"min_agreement": 0.5, "crop_margin": crop, "min_crop": 1.0})
        alone, first = refine(image, coarse, Threshold(), None, how, labels=[2])
        engine = Threshold()
        together, second = refine(image, coarse, engine, None, how.model_copy(update={"tiles": tiles}), labels=[2])
        np.testing.assert_array_equal(together.voxels, alone.voxels)
        assert (first.accepted, first.encoded, first.encodings) == (second.accepted, second.encoded, 7)
        assert second.encodings == len(engine.encoded) == -(-7 // tiles**2)
        assert (first.accepted, first.kept) == (7, 3)


def test_the_window_is_around_the_inside_of_each_organ() -> None:
    hu, truth, coarse = scene()
    hu[truth == 2] = 410
    engine = Threshold()
    how = like(window=None, contrast=100.0, asks=["box"], stride=1, band=None)
    refine(Volume(hu, AFFINE), Volume(coarse, AFFINE), engine, None, how)
    first, second = engine.encoded[0], engine.encoded[7]
    assert len(engine.encoded) == 14
    assert set(np.unique(first)) == {0.0, 0.5, 1.0}
    assert set(np.unique(second)) == {0.0, 0.5}


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


def test_answers_that_agree_end_the_asking() -> None:
    image, coarse, truth = volumes()
    asks = ("box", "box+mask", "box+point+mask")

    class FillsBoxes(Threshold):
        """Whatever is inside, when it is told of a box alone."""

        def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
            masks = super().decode(embedding, prompts)
            return masks if prompts.mask_logits is not None else Masks(masks.logits + 4.5, masks.scores, masks.low)

    def told(engine: Threshold, **others: Any) -> tuple[int, int]:
        result, _ = refine(image, coarse, engine, None, like(asks=asks, stride=1, band=None, **others))
        np.testing.assert_array_equal(result.voxels, truth)
        return len(engine.prompts), sum(len(one.points) for one in engine.prompts)

    assert told(Threshold()) == (28, 0)
    assert told(Threshold(), unanimous=1.1) == (42, 14)
    assert told(FillsBoxes(), min_agreement=0.5) == (42, 14)


def test_pictures_are_shared_by_those_who_refine_again() -> None:
    image, coarse, _ = volumes()
    engine, cache = Threshold(), EmbeddingCache(1 << 20)
    how = ALWAYS.model_copy(update={"tiles": 2})
    for _ in range(2):
        refine(image, coarse, engine, cache, how)
    assert len(engine.encoded) == 2
    refine(image, coarse, engine, cache, ALWAYS)
    assert len(engine.encoded) == 2 + 7, "a slice alone is another picture"


def test_a_mask_of_another_grid_is_refused() -> None:
    image, coarse, _ = volumes()
    moved = coarse.affine.copy()
    moved[0, 3] += 7
    for other in (Volume(coarse.voxels[:-1], AFFINE), Volume(coarse.voxels, moved)):
        with pytest.raises(InputError, match="coarse mask is not on the grid"):
            refine(image, other, Threshold())
    with pytest.raises(InputError, match="0 to 255"):
        refine(image, coarse.with_voxels(np.full(SHAPE, np.nan)), Threshold())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 23])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_each_slice_comes_once_after_those_it_depends_on(count: int, stride: int) -> None:
    seen: list[int] = []
    for level in levels(count, stride):
        assert all(set(around) <= set(seen) for around in level.values())
        seen += level
    assert sorted(seen) == list(range(count))


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
