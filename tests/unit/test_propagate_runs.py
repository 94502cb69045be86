"""Which slices are visited from which seeds, what each looks back at, and when a run has left its object."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.propagate.compose import bridged
from polycl.propagate.ending import LEAST_SLICES, Ending, Looks
from polycl.propagate.engine import Memory
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.runs import Mark, Run, beside, plan, recall, stretches

pytestmark = pytest.mark.unit

marks_strategy = st.dictionaries(st.integers(0, 29), st.booleans(), min_size=1, max_size=6).map(
    lambda found: [Mark(z, 0, present) for z, present in found.items()]
)


def memory(name: object) -> Memory:
    return Memory(name, name)


def test_what_is_next_to_a_slice_no_seed_changes_beyond_the_next_one() -> None:
    few, more = ([Mark(z, 0) for z in some] for some in ((2, 6), (2, 9, 6)))
    assert [z for z in range(11) if beside(z, few) == beside(z, more)] == list(range(7))
    assert [[mark.z for mark in beside(z, more)] for z in (0, 2, 3, 6, 9, 10)] == [[2], [2], [2, 6], [6], [9], [9]]
    assert beside(3, [Mark(2, 0, present=False)]) == beside(3, []) == ()


class TestPlan:
    def test_one_seed_goes_both_ways(self) -> None:
        seed = Mark(4, 0)
        assert plan(1, [seed], 0, 10) == [Run(1, seed, None, -1, -1), Run(1, seed, None, 1, 10)]

    def test_a_volume_of_one_slice_needs_no_run(self) -> None:
        assert plan(1, [Mark(0, 0)], 0, 1) == []

    def test_neighbouring_seeds_have_nothing_between(self) -> None:
        runs = plan(1, [Mark(4, 0), Mark(5, 0)], 0, 10)
        assert [list(run.slices) for run in runs] == [[3, 2, 1, 0], [6, 7, 8, 9]]

    def test_runs_between_two_seeds_overlap_by_what_is_asked(self) -> None:
        between = [run for run in plan(1, [Mark(0, 0), Mark(11, 0)], 0, 12, meet=0.6) if run.bounded]
        assert [list(run.slices) for run in between] == [[1, 2, 3, 4, 5, 6], [10, 9, 8, 7, 6, 5]]

    def test_nothing_goes_past_a_slice_without_the_object(self) -> None:
        runs = plan(1, [Mark(5, 0), Mark(8, 0, present=False)], 0, 20)
        assert [(run.start.z, list(run.slices), run.bounded) for run in runs] == [
            (5, [4, 3, 2, 1, 0], False),
            (5, [6, 7], False),
        ]
        assert [run.marks for run in runs] == [(Mark(5, 0),)] * 2

    def test_nothing_goes_beyond_the_region_of_interest(self) -> None:
        ends = [Mark(2, 0, present=False, is_end=True), Mark(12, 0), Mark(28, 0, present=False, is_end=True)]
        runs = plan(1, ends, 10, 16)
        assert [list(run.slices) for run in runs] == [[11, 10], [13, 14, 15]]
        assert all(run.to_end for run in runs)

    def test_up_to_where_it_ends_an_object_is_there(self) -> None:
        runs = plan(1, [Mark(5, 0), Mark(8, 0, present=False, is_end=True)], 0, 20)
        assert [(list(run.slices), run.bounded, run.to_end) for run in runs] == [
            ([4, 3, 2, 1, 0], False, False),
            ([6, 7], True, True),
        ]
        assert [run.marks for run in runs] == [(Mark(5, 0),)] * 2, "an empty slice is nothing to remember"

    @given(marks_strategy, st.floats(0.5, 1))
    def test_every_slice_within_reach_is_visited(self, marks: list[Mark], meet: float) -> None:
        runs = plan(7, marks, 0, 30, meet=meet)
        visited = {z for run in runs for z in run.slices}
        ordered = sorted(marks, key=lambda mark: mark.z)
        for z in range(30):
            below = [mark for mark in ordered if mark.z < z]
            above = [mark for mark in ordered if mark.z > z]
            is_seed = any(mark.z == z for mark in marks)
            near = [*below[-1:], *above[:1]]
            assert (z in visited) == (not is_seed and any(mark.present for mark in near))

    @given(marks_strategy)
    def test_another_seed_leaves_runs_elsewhere_as_they_are(self, marks: list[Mark]) -> None:
        """So that a correction costs only what it can change."""
        ordered = sorted(marks, key=lambda mark: mark.z)
        before = set(plan(7, marks, 0, 30))
        after = set(plan(7, [*marks, Mark(40, 1)], 0, 50))
        low = [run for run in before if run.other is not None or run.step == -1]
        assert set(low) <= after
        assert {run.start for run in after - before} <= {ordered[-1], Mark(40, 1)}


class TestRecall:
    run = Run(1, Mark(10, 0), None, 1, 30)

    def test_slots_count_from_the_oldest(self) -> None:
        last = {z: memory(z) for z in range(11, 15)}
        found = recall(self.run, 15, {self.run.start: memory("seed")}, last, slots=4, pointers=3, depth=30)
        assert [(slot, one.features) for slot, one in found.spatial] == [(0, "seed"), (1, 12), (2, 13), (3, 14)]
        assert [(back, one.pointer) for back, one in found.pointers] == [(5, "seed"), (1, 14), (2, 13)]

    def test_right_after_the_seed_there_is_only_the_seed(self) -> None:
        found = recall(self.run, 11, {self.run.start: memory("seed")}, {}, slots=4, pointers=3, depth=30)
        assert (len(found.spatial), len(found.pointers), found.reach) == (1, 1, 3)

    def test_a_seed_ahead_is_remembered_but_not_pointed_at(self) -> None:
        run = Run(1, Mark(10, 0), Mark(20, 0), 1, 20)
        seeds = {mark: memory(mark.z) for mark in run.marks}
        found = recall(run, 11, seeds, {}, slots=4, pointers=3, depth=30)
        assert [one.features for _, one in found.spatial] == [10, 20]
        assert [one.features for _, one in found.pointers] == [10]

    def test_downwards_is_the_mirror_image(self) -> None:
        down = Run(1, Mark(10, 0), None, -1, -1)
        last = {z: memory(z) for z in range(6, 10)}
        found = recall(down, 5, {down.start: memory("seed")}, last, slots=4, pointers=3, depth=30)
        assert [(slot, one.features) for slot, one in found.spatial] == [(0, "seed"), (1, 8), (2, 7), (3, 6)]

    def test_a_short_volume_shortens_the_reach(self) -> None:
        found = recall(self.run, 11, {self.run.start: memory("seed")}, {}, slots=4, pointers=16, depth=5)
        assert found.reach == 5


def disc(radius: float, x: float = 15.5, y: float = 15.5) -> NDArray[np.bool_]:
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


EMPTY = np.zeros((32, 32), bool)


def logits(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.where(torch.from_numpy(mask), 4.0, -4.0)


class TestBridged:
    """Gaps between two slices that the object is known to be on."""

    def test_a_gap_is_filled_by_what_lies_on_either_side(self) -> None:
        found = {0: logits(disc(4)), 1: logits(disc(4)), 2: logits(EMPTY), 4: logits(disc(8)), 5: logits(disc(8))}
        filled = bridged(found, [(0, 5)], 2, 0.1)
        assert sorted(filled) == [0, 1, 2, 3, 4, 5]
        assert np.array_equal(filled[2].numpy() > 0, disc(4))
        assert np.array_equal(filled[3].numpy() > 0, disc(8))
        assert all(filled[z] is found[z] for z in (0, 1, 4, 5))
        assert sorted(bridged(found, [(0, 5)], 1, 0.1)) == [0, 1, 2, 4, 5]

    def test_what_lies_apart_is_two_things(self) -> None:
        found = {0: logits(disc(3, x=6)), 4: logits(disc(3, x=24))}
        assert bridged(found, [(0, 4)], 3, 0.1) == found

    def test_nothing_is_filled_past_a_slice_that_was_emptied(self) -> None:
        marks = [Mark(0, 0), Mark(3, 0, present=False), Mark(6, 0), Mark(9, 0)]
        assert stretches(reversed(marks)) == [(6, 9)]
        found = {0: logits(disc(4)), 6: logits(disc(4)), 9: logits(disc(4))}
        assert sorted(bridged(found, stretches(marks), 2, 0.1)) == [0, 6, 7, 8, 9]


class TestEnding:
    def watch(self, masks: list[NDArray[np.bool_]], spacing: float = 2.0, **kwargs: object) -> tuple[int, list[bool]]:
        """How many slices were visited, and which count."""
        known = kwargs.pop("known", [None] * len(masks))
        ending = Ending(PropagateParameters(**kwargs), spacing, disc(8))
        for number, (mask, other) in enumerate(zip(masks, known, strict=True), start=1):  # type: ignore[call-overload]
            if not ending.goes_on(mask, other):
                return number, ending.kept
        return len(masks), ending.kept

    def test_it_goes_on_while_the_object_is_there(self) -> None:
        assert self.watch([disc(8)] * 20) == (20, [True] * 20)

    def test_it_stops_when_the_object_is_gone_for_long_enough(self) -> None:
        visited, kept = self.watch([disc(8), *[EMPTY] * 10], patience=8.0)
        assert visited == 1 + 4
        assert kept == [True, False, False, False, False]

    def test_one_bad_slice_is_no_end(self) -> None:
        masks = [disc(8), EMPTY, disc(8), EMPTY, disc(8)]
        assert self.watch(masks, spacing=30.0, patience=1.0)[1] == [True, False, True, False, True]

    def test_thick_slices_need_two_absences(self) -> None:
        assert self.watch([EMPTY] * 5, spacing=30.0, patience=1.0)[0] == LEAST_SLICES

    def test_a_remnant_counts_as_absent(self) -> None:
        visited, kept = self.watch([disc(10), *[disc(1)] * 10], patience=8.0, collapse=0.02)
        assert visited == 5
        assert kept[0]
        assert not any(kept[1:])

    def test_a_slowly_shrinking_object_is_followed_to_its_end(self) -> None:
        masks = [disc(8 - 0.3 * n) for n in range(22)]
        visited, kept = self.watch(masks)
        assert visited == 22
        assert all(kept)

    def test_a_jump_elsewhere_is_no_object(self) -> None:
        visited, kept = self.watch([disc(4), *[disc(4, x=28, y=28)] * 9], patience=6.0)
        assert visited == 4
        assert not any(kept[1:])

    def test_a_segmenter_that_finds_nothing_halves_the_patience(self) -> None:
        masks = [EMPTY] * 10
        assert self.watch(masks, patience=8.0, known=[EMPTY] * 10)[0] == 2
        assert self.watch(masks, patience=8.0)[0] == 4

    def test_a_segmenter_that_sees_the_object_keeps_it_going(self) -> None:
        masks = [disc(8), *[EMPTY] * 8, disc(8)]
        assert self.watch(masks, patience=8.0, known=[disc(7)] * 10)[0] == 10
        assert self.watch(masks, patience=8.0)[0] == 5

    def test_an_overrun_that_the_segmenter_contradicts_is_cut(self) -> None:
        known = [disc(8)] * 3 + [EMPTY] * 10
        visited, kept = self.watch([disc(8)] * 13, patience=8.0, known=known)
        assert visited == 3 + 4
        assert kept == [True] * 3 + [False] * 4

    def test_other_tissue_is_no_object(self) -> None:
        """As where a mask runs on from liver into lung; a little drift, as through a fatty part, is allowed."""
        random = np.random.default_rng(0)
        liver, fatty, lung = (random.normal(mean, 10, (32, 32)) for mean in (100, 60, -700))
        looks = Looks.of(liver, disc(8))
        assert looks is not None
        assert looks.median == pytest.approx(100, abs=2)
        ending = Ending(PropagateParameters(patience=4.0, drift=60.0), 2.0, disc(8), looks=looks)
        assert all(ending.goes_on(disc(8), None, values) for values in (liver, fatty, lung))
        assert not ending.goes_on(disc(8), None, lung)
        assert ending.kept == [True, True, False, False]

    def test_other_tissue_between_two_seeds_is_the_object(self) -> None:
        """A seed near the pole of a kidney is darker than the kidney, which no less lies between two of them."""
        pole, kidney = (np.full((32, 32), value, float) for value in (60, 200))
        looks = Looks.of(pole, disc(8))
        ending = Ending(PropagateParameters(drift=60.0), 2.0, disc(8), bounded=True, looks=looks)
        assert all(ending.goes_on(disc(8), None, kidney) for _ in range(3))
        assert ending.kept == [True] * 3

    def test_what_looks_mixed_may_drift_more(self) -> None:
        values = np.where(np.arange(32) % 2, 400.0, -400.0) * np.ones((32, 1))
        looks = Looks.of(values, disc(8))
        assert looks is not None
        assert looks.like(Looks(300.0, 1.0), drift=60.0)
        assert not Looks(0.0, 1.0).like(Looks(300.0, 1.0), drift=60.0)

    def test_a_mask_without_values_has_no_looks(self) -> None:
        assert Looks.of(np.full((32, 32), np.nan), disc(8)) is None

    def test_between_two_seeds_it_never_stops(self) -> None:
        ending = Ending(PropagateParameters(), 5.0, disc(8), bounded=True)
        assert all(ending.goes_on(EMPTY) for _ in range(20))

    def test_an_oblique_tube_is_followed(self) -> None:
        ending = Ending(PropagateParameters(), 5.0, disc(2, x=4), reach=4)
        assert all(ending.goes_on(disc(2, x=4 + 5 * n)) for n in range(1, 5))


def test_parameters_name_what_there_is() -> None:
    with pytest.raises(InputError, match="no parameter patient; it has patience, collapse"):
        PropagateParameters(patient=3)
    with pytest.raises(InputError, match="patience=-1"):
        PropagateParameters(patience=-1)
