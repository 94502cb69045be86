"""Propagation with an engine that follows bright things: directions, stops, corrections, several objects, grids."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from fake_sam2 import BRIGHT, FakeSam2, Told
from polycl.errors import InputError
from polycl.propagate.engine import Features, FramePrompt, Recall, Tracked
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed, from_labels, with_ends
from polycl.propagate.session import Cancelled, Propagation
from polycl.sam import EmbeddingCache
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE, SPACING = (64, 56, 40), (1.0, 1.0, 2.0)
X, Y, Z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")


def cylinder(x: float, y: float, radius: float, low: int, high: int) -> NDArray[np.bool_]:
    """Slices `low` to `high`, left out."""
    return ((X - x) ** 2 + (Y - y) ** 2 < radius**2) & (low <= Z) & (high > Z)


def ct(*bright: NDArray[np.bool_]) -> Volume:
    voxels = np.full(SHAPE, -100, np.int16)
    for one in bright:
        voxels[one] = 100
    return Volume(voxels, np.diag([*SPACING, 1.0]))


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


BODY = cylinder(30, 25, 8, 10, 30)


@pytest.fixture
def engine() -> FakeSam2:
    return FakeSam2()


class Generous(FakeSam2):
    """Takes all that is bright for what is outlined."""

    def prompt(self, features: Features, prompts: Sequence[FramePrompt]) -> list[Tracked]:
        return [self._tracked(features.top[0] > BRIGHT) for _ in prompts]


class Shrinking(FakeSam2):
    """Makes a mask a pixel smaller on each slice, without being sure of it."""

    def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        results = []
        for recall in recalls:
            inner = ndimage.binary_erosion(recall.previous.numpy() > 0)
            logits = torch.where(torch.from_numpy(inner), 6.0, -1.0)
            results.append(self._tracked(recall.told(logits) > 0))
        return results


@pytest.mark.parametrize(("around", "kept"), [(-100, True), (100, False)])
def test_tissue_that_stays_keeps_a_mask_from_shrinking_where_it_is_distinct(around: int, kept: bool) -> None:
    voxels = ct(BODY).voxels
    voxels[..., 10:30][~BODY[..., 10:30]] = around
    image = Volume(voxels, np.diag([*SPACING, 1.0]))
    scores = []
    for tissue in (0.0, 2.0):
        session = Propagation(image, Shrinking(), parameters=PropagateParameters(tissue=tissue, edges=False))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        scores.append(dice(session.run().voxels == 1, BODY))
    assert (scores[1] > 0.9) == kept
    assert (scores[1] > scores[0]) == kept
    assert scores[0] < 0.6


class TestDirections:
    def test_one_seed_reaches_both_ends_and_stops_there(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(3, {20: Seed(BODY[:, :, 20])})
        result = session.run()
        assert result.voxels.dtype == np.uint8
        assert set(np.unique(result.voxels)) == {0, 3}
        assert dice(result.voxels == 3, BODY) > 0.93
        assert set(np.flatnonzero(result.voxels.any(axis=(0, 1)))) == set(range(10, 30))
        assert engine.encoded < 40  # it stopped

    @pytest.mark.parametrize(("bridge", "missing"), [(20.0, []), (6.0, []), (5.9, [18, 19, 20]), (0.0, [18, 19, 20])])
    def test_what_both_directions_lose_between_two_seeds_is_filled(
        self, engine: FakeSam2, bridge: float, missing: list[int]
    ) -> None:
        dark = ct(BODY)
        dark.voxels[..., 18:21] = -100
        session = Propagation(dark, engine, parameters=PropagateParameters(bridge=bridge, edges=False))
        session.put(1, {z: Seed(BODY[:, :, z]) for z in (15, 25)})
        found = session.run().voxels
        assert [z for z in range(10, 30) if not found[:, :, z].any()] == missing
        assert missing or dice(found[:, :, 19] == 1, BODY[:, :, 19]) > 0.9

    def test_a_slice_with_a_seed_comes_back_exactly(self, engine: FakeSam2) -> None:
        rough = np.zeros(SHAPE[:2], bool)
        rough[24:37, 19:30] = True
        rough[30, 25] = False  # a hole that no network would paint
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(rough)})
        assert np.array_equal(session.run().voxels[:, :, 20] == 1, rough)

    def test_both_directions_and_all_objects_are_one_batch_on_features_computed_once(self, engine: FakeSam2) -> None:
        other = cylinder(40, 30, 5, 12, 28)
        session = Propagation(ct(BODY, other), engine, parameters=PropagateParameters(share=3.0))
        session.put_found(from_labels(labels({1: (BODY & ~other, 20), 2: (other, 20)})))
        session.run()
        assert max(map(len, engine.steps)) == 4
        assert engine.encoded <= 40

    def test_the_largest_memory_is_what_the_network_takes(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        session.run()
        recalls = [recall for step in engine.steps for recall in step]
        assert max(len(one.spatial) for one in recalls) == engine.memories
        assert max(len(one.pointers) for one in recalls) == engine.pointers

    def test_a_volume_of_one_slice(self, engine: FakeSam2) -> None:
        image = Volume(ct(BODY).voxels[:, :, 20:21], np.diag([*SPACING, 1.0]))
        session = Propagation(image, engine)
        session.put(1, {0: Seed(BODY[:, :, 20])})
        assert np.array_equal(session.run().voxels[:, :, 0] == 1, BODY[:, :, 20])
        assert not engine.steps

    @pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
    def test_the_result_is_on_the_callers_grid(
        self, axes: tuple[int, int, int], flips: tuple[int, int, int], engine: FakeSam2
    ) -> None:
        canonical = ct(BODY)
        affine = canonical.affine[:, [*axes, 3]].copy()
        turn = tuple(slice(None, None, flip) for flip in flips)
        voxels = canonical.voxels.transpose(axes)[turn]
        for axis, flip in enumerate(flips):
            if flip < 0:
                affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
                affine[:3, axis] *= -1
        image = Volume(np.ascontiguousarray(voxels), affine)
        session = Propagation(image, engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        result = session.run()
        assert result.same_grid(image)
        assert dice(result.voxels == 1, BODY.transpose(axes)[turn]) > 0.93


def labels(given: dict[int, tuple[NDArray[np.bool_], int]]) -> Volume:
    """One slice of each mask."""
    voxels = np.zeros(SHAPE, np.uint8)
    for label, (mask, z) in given.items():
        voxels[:, :, z][mask[:, :, z]] = label
    return Volume(voxels, np.diag([*SPACING, 1.0]))


class TestSeveralSeeds:
    def test_all_are_honoured(self, engine: FakeSam2) -> None:
        """An object in two pieces that no single seed reaches."""
        upper = cylinder(30, 25, 8, 26, 34)
        lower = cylinder(30, 25, 8, 4, 12)
        session = Propagation(ct(upper, lower), engine)
        session.put(1, {30: Seed(upper[:, :, 30]), 8: Seed(lower[:, :, 8])})
        found = session.run().voxels == 1
        assert dice(found, upper | lower) > 0.9
        assert not found[:, :, 14:24].any()

    def test_every_slice_may_be_a_seed(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {z: Seed(BODY[:, :, z]) for z in range(10, 30)})
        assert np.array_equal(session.run().voxels == 1, BODY)

    def test_an_emptied_slice_is_a_wall(self, engine: FakeSam2) -> None:
        nothing = np.zeros(SHAPE[:2], bool)
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20]), 25: Seed(nothing)})
        found = session.run().voxels == 1
        assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(10, 25))

    def test_up_to_where_it_is_said_to_end_the_object_is_there(self) -> None:
        image, engine = ct(BODY), Told()
        session = Propagation(image, engine, parameters=PropagateParameters(edges=False))
        session.put(1, with_ends({20: Seed(BODY[:, :, 20])}, image, 12, 35))
        found = session.run().voxels == 1
        assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(12, 36)), "also where it is not to be seen"
        told = [recall.there for step in engine.steps for recall in step]
        assert told == [True] * (8 + 15), "the runs go on to the ends, and are told of the object on each slice"
        assert len(engine.prompts) == 1, "where it ends there is nothing to remember"
        session.put(1, with_ends({20: Seed(BODY[:, :, 20])}, image, 14, 25))
        found = session.run().voxels == 1
        assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(14, 26)), "new ends take their place"

    @pytest.mark.parametrize(
        ("other", "x", "between"), [(20, 30, True), (28, 30, False), (20, 46, False)], ids=["near", "far", "elsewhere"]
    )
    def test_between_two_seeds_of_one_object_it_is_there(
        self, engine: FakeSam2, other: int, x: int, between: bool
    ) -> None:
        small = [cylinder(30, 25, 5, 12, 13), cylinder(x, 25, 5, other, other + 1)]
        session = Propagation(ct(cylinder(30, 25, 5, 8, 38)), engine)
        session.put(1, {12: Seed(small[0][:, :, 12]), other: Seed(small[1][:, :, other])})
        session.run()
        at_first = [recall.there for recall in engine.steps[0]]
        assert at_first.count(True) == (2 if between else 0), "runs to one another alone, nor beyond them"
        assert len(at_first) == 4

    @pytest.mark.parametrize("around", [-100, 100], ids=["distinct", "the same around it"])
    def test_the_network_is_told_to_be_surer_of_what_is_distinct_where_its_tissue_still_is(
        self, engine: FakeSam2, around: int
    ) -> None:
        image = ct(BODY)
        image.voxels[~BODY] = around
        session = Propagation(image, engine, parameters=PropagateParameters(presence=3.5))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        session.run()
        told = [recall.presence for step in engine.steps for recall in step]
        others = int(BODY.any(axis=(0, 1)).sum()) - 1
        assert sorted(told, reverse=True)[:others] == pytest.approx([3.5 if around < 0 else 0.0] * others, abs=0.1)
        assert sorted(told, reverse=True)[others:] == pytest.approx([0.0] * (len(told) - others))

    def test_without_any_object_there_is_nothing_to_do(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        with pytest.raises(InputError, match="there is no seed: outline the object on at least one axial slice"):
            session.run()
        session.put(1, {20: Seed(np.zeros(SHAPE[:2], bool))})
        with pytest.raises(InputError, match="there is no seed"):
            session.run()


class TestCorrections:
    def test_a_correction_changes_only_what_lies_beyond_the_other_seed(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        first = session.run().voxels.copy()
        steps, encoded = len(engine.steps), engine.encoded
        corrected = BODY[:, :, 25].copy()
        corrected[30:] = False
        session.put(1, {25: Seed(corrected)})
        second = session.run().voxels
        assert np.array_equal(second[:, :, :21], first[:, :, :21])
        assert np.array_equal(second[:, :, 25] == 1, corrected)
        assert engine.encoded == encoded
        visits = [recall for step in engine.steps[steps:] for recall in step]
        assert len(visits) < len([recall for step in engine.steps[:steps] for recall in step])

    def test_the_same_seed_again_costs_nothing(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        first = session.run()
        steps, prompts = len(engine.steps), len(engine.prompts)
        session.put(1, {20: Seed(BODY[:, :, 20].copy())})
        assert np.array_equal(session.run().voxels, first.voxels)
        assert (len(engine.steps), len(engine.prompts)) == (steps, prompts)

    def test_the_order_of_seeds_does_not_matter(self) -> None:
        planes = {z: Seed(BODY[:, :, z]) for z in (14, 20, 27)}
        results = []
        for order in itertools.permutations(planes):
            session = Propagation(ct(BODY), FakeSam2())
            for z in order:
                session.put(1, {z: planes[z]})
                result = session.run()
            results.append(result.voxels)
        assert all(np.array_equal(results[0], other) for other in results[1:])

    def test_a_seed_taken_back_leaves_the_first_result(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        first = session.run().voxels.copy()
        session.put(1, {25: Seed(np.zeros(SHAPE[:2], bool))})
        session.run()
        session.remove(1, 25)
        assert np.array_equal(session.run().voxels, first)
        session.remove(1, 20)
        assert session.labels == []


class TestSeveralObjects:
    def test_each_keeps_its_label_and_the_surer_wins(self, engine: FakeSam2) -> None:
        other = cylinder(12, 12, 5, 8, 36)
        session = Propagation(ct(BODY, other), engine)
        session.put_found(from_labels(labels({2: (BODY, 20), 5: (other, 25)})))
        found = session.run().voxels
        assert dice(found == 2, BODY) > 0.93
        assert dice(found == 5, other) > 0.85

    def test_a_seed_of_one_is_not_painted_over_by_another(self, engine: FakeSam2) -> None:
        """Both follow the same bright thing; the slice outlined as 2 stays 2."""
        session = Propagation(ct(BODY), engine)
        session.put_found(from_labels(labels({1: (BODY, 15), 2: (BODY, 24)})))
        found = session.run().voxels
        assert np.array_equal(found[:, :, 15] == 1, BODY[:, :, 15])
        assert np.array_equal(found[:, :, 24] == 2, BODY[:, :, 24])

    def test_what_the_network_sees_beyond_an_outline_is_left_to_others(self) -> None:
        """It takes the half that is outlined as 1 for all of the bright thing; 2 is that thing on the other slices."""
        half = BODY & (X < 30)
        session = Propagation(ct(BODY), Generous(), parameters=PropagateParameters(haste=False))
        session.put_found(from_labels(labels({1: (half, 15), 2: (BODY, 24)})))
        found = session.run().voxels[:, :, 15]
        assert np.array_equal(found == 1, half[:, :, 15])
        assert (found[(BODY & ~half)[:, :, 15]] == 2).mean() > 0.9

    def test_far_apart_objects_have_regions_of_their_own(self, engine: FakeSam2) -> None:
        """So that each is seen at its own scale; near ones share one, and its features."""
        small = cylinder(6, 6, 2.5, 10, 30)
        session = Propagation(ct(BODY, small), engine)
        session.put_found(from_labels(labels({1: (BODY, 20), 2: (small, 20)})))
        session.run()
        assert max(map(len, engine.steps)) == 2
        together = FakeSam2()
        session = Propagation(ct(BODY, small), together, parameters=PropagateParameters(share=10.0))
        session.put_found(from_labels(labels({1: (BODY, 20), 2: (small, 20)})))
        session.run()
        assert max(map(len, together.steps)) == 4
        assert together.encoded < engine.encoded

    def test_too_many_are_refused(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine, parameters=PropagateParameters(labels=1))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        with pytest.raises(InputError, match="2 labels were given; at most 1"):
            session.put(2, {20: Seed(BODY[:, :, 20])})
        with pytest.raises(InputError, match="label 0 is none; labels are 1 to 255"):
            session.put(0, {20: Seed(BODY[:, :, 20])})


class TestRegions:
    def test_an_object_that_grows_gets_a_larger_region(self, engine: FakeSam2) -> None:
        cone = ((X - 30) ** 2 + (Y - 25) ** 2 < (2 + 1.1 * (Z - 8)) ** 2) & (Z >= 8) & (Z < 28)
        session = Propagation(ct(cone), engine)
        session.put(1, {10: Seed(cone[:, :, 10])})
        assert dice(session.run().voxels == 1, cone) > 0.93

    def test_a_region_of_interest_bounds_all(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine, roi=(20, 34, 10, 40, 15, 26))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        found = session.run().voxels == 1
        assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(15, 26))
        assert not found[34:, :, 21].any()
        assert np.array_equal(found[:, :, 20], BODY[:, :, 20])
        assert engine.encoded == 11

    def test_a_region_of_interest_is_not_outgrown(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine, roi=(26, 34, 20, 30, 0, 40))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        found = session.run().voxels[:, :, 15] == 1
        assert np.array_equal(np.argwhere(found).min(axis=0), [26, 20])
        assert np.array_equal(np.argwhere(found).max(axis=0), [33, 29])
        assert engine.encoded < 40

    def test_a_region_of_interest_elsewhere_is_refused(self, engine: FakeSam2) -> None:
        with pytest.raises(InputError, match="the region of interest is outside the image"):
            Propagation(ct(BODY), engine, roi=(70, 80, 10, 40, 15, 26))

    def test_points_and_boxes(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(points=np.array([[30, 25]]), labels=np.array([1]))})
        assert dice(session.run().voxels == 1, BODY) > 0.9
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(box=(20, 40, 15, 36))})
        assert dice(session.run().voxels == 1, BODY) > 0.9

    def test_a_sagittal_outline_is_propagated_and_kept(self, engine: FakeSam2) -> None:
        painted = np.zeros(SHAPE, np.uint8)
        painted[30] = BODY[30]
        image = ct(BODY)
        session = Propagation(image, engine)
        session.put_found(from_labels(image.with_voxels(painted)))
        found = session.run().voxels == 1
        assert dice(found, BODY) > 0.9
        assert found[painted == 1].all()

    def test_islands_that_no_seed_reaches_are_left_out(self, engine: FakeSam2) -> None:
        """What is bright beside the object's last mask but was never part of it."""
        arm = cylinder(30, 25, 8, 10, 20) | (cylinder(30, 25, 3, 20, 30))
        session = Propagation(ct(arm), engine)
        session.put(1, {15: Seed(arm[:, :, 15])})
        assert dice(session.run().voxels == 1, arm) > 0.9


class TestLimits:
    def test_progress_reaches_its_total(self, engine: FakeSam2) -> None:
        seen: list[tuple[int, int]] = []
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        session.run(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (39, 39)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        session.put(9, {20: Seed(cylinder(8, 8, 3, 0, 40)[:, :, 20])})
        seen.clear()
        session.run(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (39, 39)  # the first object is not done again

    def test_cancelling_midway_keeps_nothing_half_done(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine)
        session.put(1, {20: Seed(BODY[:, :, 20])})
        asked = iter([False] * 4 + [True] * 100)
        with pytest.raises(Cancelled):
            session.run(cancelled=lambda: next(asked))
        steps = len(engine.steps)
        assert 0 < steps < 6
        fresh = Propagation(ct(BODY), FakeSam2())
        fresh.put(1, {20: Seed(BODY[:, :, 20])})
        assert np.array_equal(session.run().voxels, fresh.run().voxels)

    def test_what_it_may_hold_is_bounded(self, engine: FakeSam2) -> None:
        tall = Volume(np.zeros((8, 8, 200_000), np.int16), np.eye(4))
        session = Propagation(tall, engine, parameters=PropagateParameters(state_mib=1))
        session.put(1, {20: Seed(np.ones((8, 8), bool))})
        with pytest.raises(InputError, match="1 MiB are allowed: propagate fewer labels at a time"):
            session.run()

    def test_the_longer_runs_overlap_the_more_they_hold(self, engine: FakeSam2) -> None:
        depth = int(2**20 / (2 * (engine.size // 4) ** 2 * 3.5))
        seed = np.zeros((8, 8), bool)
        seed[2:5, 2:5] = True
        session, longer = (
            Propagation(
                Volume(np.where(seed[..., None], 100, np.full((8, 8, depth), -100)).astype(np.int16), np.eye(4)),
                engine,
                parameters=PropagateParameters(state_mib=1, meet=meet),
            )
            for meet in (0.6, 1.0)
        )
        for one in (session, longer):
            one.put(1, {20: Seed(seed)})
        with pytest.raises(InputError, match="1 MiB are allowed"):
            longer.run()
        assert session.run().voxels.any()

    def test_a_cache_without_room_costs_time_and_no_result(self, engine: FakeSam2) -> None:
        session = Propagation(ct(BODY), engine, cache=EmbeddingCache(0))
        session.put(1, {20: Seed(BODY[:, :, 20])})
        assert dice(session.run().voxels == 1, BODY) > 0.93

    def test_sessions_share_features_through_a_cache(self, engine: FakeSam2) -> None:
        image, cache = ct(BODY), EmbeddingCache(1 << 24)
        for _ in range(2):
            session = Propagation(image, engine, cache=cache)
            session.put(1, {20: Seed(BODY[:, :, 20])})
            session.run()
            encoded = engine.encoded
        assert encoded < 40
