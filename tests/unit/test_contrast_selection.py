"""Every triplet obeys its rule, draws are uniform over what qualifies, and nothing but (seed, item) matters."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polycl.contrast.selection import STRATEGIES, Strategy, Triplets, serving
from polycl.errors import InputError

pytestmark = pytest.mark.unit

Slices = tuple[NDArray[np.int32], NDArray[np.bool_]]

# scans of 4, 3, 1 and 2 slices; the second scan has only slices with the organ
SCAN = np.array([0, 0, 0, 0, 5, 5, 5, 2, 7, 7], np.int32)
PRESENT = np.array([0, 1, 1, 0, 1, 1, 1, 0, 0, 1], bool)


@st.composite
def some_slices(draw: st.DrawFn) -> Slices:
    length = draw(st.integers(1, 24))
    scan = draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
    present = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return np.array(scan, np.int32), np.array(present, bool)


def qualifies(strategy: Strategy, anchor: int, slices: Slices) -> tuple[set[int], set[int]]:
    """The positives and the negatives of an anchor, by the words of the rule."""
    scan, present = slices
    same, agrees = scan == scan[anchor], present == present[anchor]
    if strategy == "scan":
        positive, negative = same, ~same
    elif strategy == "organ":
        positive, negative = agrees, ~agrees
    else:
        positive, negative = same & agrees, ~same & ~agrees
    return set(np.flatnonzero(positive).tolist()) - {anchor}, set(np.flatnonzero(negative).tolist())


def valid(strategy: Strategy, slices: Slices) -> list[tuple[int, int, int]]:
    return [
        (anchor, positive, negative)
        for anchor in range(len(slices[0]))
        for positive, negative in itertools.product(*qualifies(strategy, anchor, slices))
    ]


@given(some_slices(), st.sampled_from(STRATEGIES), st.integers(0, 2**40))
def test_every_triplet_obeys_its_rule(slices: Slices, strategy: Strategy, seed: int) -> None:
    anchors = sorted({anchor for anchor, _, _ in valid(strategy, slices)})
    if not anchors:
        with pytest.raises(InputError, match=f"the strategy {strategy} cannot draw"):
            Triplets(strategy, *slices, seed=seed)
        return
    triplets = Triplets(strategy, *slices, seed=seed)
    assert triplets.anchors.tolist() == anchors
    for anchor, positive, negative in triplets.draw(np.arange(seed, seed + 50)).tolist():
        positives, negatives = qualifies(strategy, anchor, slices)
        assert positive in positives
        assert negative in negatives


@given(some_slices())
def test_the_strategies_that_would_serve_are_those_that_have_a_triplet(slices: Slices) -> None:
    assert serving(*slices) == [strategy for strategy in STRATEGIES if valid(strategy, slices)]
    assert serving(slices[0], None) == [one for one in serving(*slices) if one == "scan"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_anchors_positives_and_negatives_are_uniform_over_what_qualifies(strategy: Strategy) -> None:
    triplets = Triplets(strategy, SCAN, PRESENT, seed=11)
    draws = 200_000
    seen = triplets.draw(np.arange(draws))
    expected = np.zeros((len(SCAN),) * 3)
    for anchor in triplets.anchors.tolist():
        positives, negatives = qualifies(strategy, anchor, (SCAN, PRESENT))
        for positive, negative in itertools.product(positives, negatives):
            expected[anchor, positive, negative] = 1 / len(triplets.anchors) / len(positives) / len(negatives)
    counted = np.zeros_like(expected)
    np.add.at(counted, tuple(seen.T), 1)
    possible = expected > 0
    assert not counted[~possible].any()
    excess = (counted[possible] - draws * expected[possible]) ** 2 / (draws * expected[possible])
    degrees = possible.sum() - 1
    assert excess.sum() < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_triplet_is_the_same_in_any_batch_order_and_process(strategy: Strategy) -> None:
    whole = Triplets(strategy, SCAN, PRESENT, seed=4).draw(np.arange(1000))
    triplets = Triplets(strategy, SCAN, PRESENT, seed=4)
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(triplets.draw(order), whole[order])
    workers = [triplets.draw(np.arange(start, 1000, 3)) for start in range(3)]
    assert all(np.array_equal(part, whole[start::3]) for start, part in enumerate(workers))
    assert np.array_equal(np.concatenate([triplets.draw(np.array([item])) for item in range(20)]), whole[:20])
    assert triplets.draw(np.array([], int)).shape == (0, 3)


def test_another_seed_gives_other_triplets() -> None:
    items = np.arange(300)
    first, second = (Triplets("scan", SCAN, None, seed=seed).draw(items) for seed in (0, 1))
    assert (first != second).any(axis=1).mean() > 0.8


def test_the_first_item_is_drawn_fairly_over_seeds() -> None:
    anchors = [int(Triplets("scan", SCAN, None, seed=seed).draw(np.array([0]))[0, 0]) for seed in range(900)]
    counts = np.bincount(anchors, minlength=len(SCAN))
    assert counts[7] == 0  # the only slice of its scan
    assert all(60 < count < 145 for count in np.delete(counts, 7))


@pytest.mark.parametrize(
    ("strategy", "scan", "present", "words"),
    [
        ("scan", [3, 3, 3], [0, 1, 1], "of one scan.*; organ would serve"),
        ("scan", [3, 3, 3], None, "of one scan.*no strategy would serve"),
        ("scan", [1, 2, 3], [0, 0, 1], "the only one of its scan.*; organ would serve"),
        ("organ", [1, 1, 2, 2], [0, 0, 0, 0], "in none of them; scan would serve"),
        ("organ", [1, 1, 2, 2], [1, 1, 1, 1], "in all of them; scan would serve"),
        ("organ", [1, 2], [0, 1], "one with the target and one without.*no strategy would serve"),
        ("mixed", [3, 3, 3, 3], [0, 0, 1, 1], "of one scan.*; organ would serve"),
        ("mixed", [1, 1, 2, 2], [1, 1, 1, 1], "in all of them; scan would serve"),
        ("mixed", [1, 1, 2, 2], [0, 1, 0, 1], "two of one kind.*; scan or organ would serve"),
        ("mixed", [], [], "there are none"),
    ],
)
def test_slices_that_cannot_serve_are_refused_with_what_would(
    strategy: Strategy, scan: list[int], present: list[int] | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Triplets(strategy, np.array(scan, int), None if present is None else np.array(present, bool), seed=0)


def test_presence_is_asked_for_where_the_rule_needs_it() -> None:
    for strategy in ("organ", "mixed"):
        with pytest.raises(InputError, match="needs to know in which slices"):
            Triplets(strategy, SCAN, None, seed=0)
    with pytest.raises(InputError, match="known of 3 slices"):
        Triplets("organ", SCAN, PRESENT[:3], seed=0)
    with pytest.raises(InputError, match="scan, organ, mixed"):
        Triplets("random", SCAN, None, seed=0)  # type: ignore[arg-type]
