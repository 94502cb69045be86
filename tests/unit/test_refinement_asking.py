"""What a refinement asks SAM: of which slices, in which order, how often, and what it shows it."""

from typing import Any

import numpy as np
import pytest
from two_cylinders import AFFINE, ALWAYS, Threshold, like, scene, volumes

from polycl.refinement import refine
from polycl.refinement.stage import levels
from polycl.sam import Embedding, EmbeddingCache, Masks, Prompts
from polycl.volume import Volume

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 23])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_each_slice_comes_once_after_those_it_depends_on(count: int, stride: int) -> None:
    seen: list[int] = []
    for level in levels(count, stride):
        assert all(set(around) <= set(seen) for around in level.values())
        seen += level
    assert sorted(seen) == list(range(count))
