"""What to label next: measures of doubt, selection by properties, and scores that are kept."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.acquisition import measures, selection
from polycl.acquisition.scores import Place, Scores, ScoreStore, score
from polycl.acquisition.selection import Candidate, Method
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.inference import BATCH_PIXELS
from polycl.volume import Volume

pytestmark = pytest.mark.unit

METHODS: tuple[Method, ...] = ("uncertain", "diverse", "mixed")
NONE_LABELLED = np.zeros((0, 3), dtype=np.float32)
ALIKE = np.ones(2, np.float32)


def candidate(image: str, seed: int, slices: int = 5, likely: bool = True) -> Candidate:
    draw = np.random.default_rng(seed)
    embeddings = draw.normal(size=(slices, 3)).astype(np.float32)
    doubt = draw.random((slices, 2), np.float32)
    numbers = np.arange(slices) * 2 + 1
    return Candidate(image, numbers, doubt, doubt * 3, np.full(slices, likely), embeddings, np.arange(slices))


pools = st.integers(0, 10_000).flatmap(
    lambda seed: st.lists(st.integers(1, 6), min_size=1, max_size=7).map(
        lambda sizes: [candidate(f"image {at}", seed + at, size) for at, size in enumerate(sizes)]
    )
)


@given(pools, st.integers(0, 9), st.sampled_from(METHODS), st.integers(0, 4))
@settings(deadline=None)
def test_picks_are_of_different_images_and_their_slices(
    pool: list[Candidate], count: int, method: Method, labelled: int
) -> None:
    covered = np.random.default_rng(1).normal(size=(labelled, 3)).astype(np.float32)
    picks = selection.choose(method, pool, covered, count)
    assert len(picks) == min(count, len(pool))
    assert len({pick.image for pick in picks}) == len(picks)
    by_image = {one.image: one for one in pool}
    assert all(pick.slice in by_image[pick.image].numbers for pick in picks)
    assert picks == selection.choose(method, pool, covered, count), "the same again"
    assert picks == selection.choose(method, pool, covered, len(pool))[:count], "fewer are the first of more"


@given(pools)
@settings(deadline=None)
def test_the_most_doubtful_come_first(pool: list[Candidate]) -> None:
    picks = selection.uncertain(pool, len(pool), ALIKE)
    scores = [pick.score for pick in picks]
    assert scores == sorted(scores, reverse=True)
    for pick in picks:
        one = next(one for one in pool if one.image == pick.image)
        doubts = one.doubt.sum(axis=1)
        assert doubts[list(one.numbers).index(pick.slice)] == doubts.max()


def structures(image: str, doubt: list[list[float]], area: list[list[float]]) -> Candidate:
    count = len(doubt)
    embeddings = np.zeros((count, 3), np.float32)
    columns = (np.array(doubt, np.float32), np.array(area, np.float32))
    return Candidate(image, np.arange(count), *columns, np.ones(count, bool), embeddings, np.arange(count))


def test_doubt_counts_by_the_size_of_its_structure() -> None:
    """A large organ with 4 of 80 cm² in doubt, a small one with 1 of 4, and both on one slice."""
    large = structures("large", [[4, 0]], [[80, 0]])
    small = structures("small", [[0, 1]], [[0, 4]])
    both = structures("both", [[0, 0], [4, 1]], [[0, 0], [80, 4]])
    pool = [large, small, both]
    sizes = selection.typical_sizes(pool)
    np.testing.assert_allclose(sizes, [80, 4], rtol=1e-5)  # slices without a structure do not make it smaller
    assert [pick.image for pick in selection.choose("uncertain", pool, NONE_LABELLED, 3)] == ["both", "small", "large"]
    assert both.pick(sizes).slice == 1
    picks = selection.choose("uncertain", [large, small], NONE_LABELLED, 2, sizes=np.array([1, 9], np.float32))
    assert [pick.image for pick in picks] == ["large", "small"], "by the sizes given"


def test_a_structure_that_is_found_nowhere_has_no_endless_weight() -> None:
    np.testing.assert_array_equal(selection.typical_sizes([structures("a", [[1, 1]], [[9, 0]])]), [9, 1])
    assert list(selection.typical_sizes([])) == [1]


@given(pools, st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_k_centre_takes_the_slice_furthest_from_what_is_covered(pool: list[Candidate], labelled: int, at: int) -> None:
    """By brute force: each pick is the slice with the largest distance to the labelled slices and the picks before."""
    covered = list(np.random.default_rng(2).normal(size=(labelled, 3)).astype(np.float32))
    picks = selection.diverse(pool, np.array(covered), at)
    left = {one.image: one for one in pool}
    for pick in picks:
        gaps = {
            (name, int(number)): min(math.dist(embedding, other) for other in covered)
            for name, one in left.items()
            for number, embedding in zip(one.numbers, one.embeddings, strict=True)
        }
        assert gaps[pick.image, pick.slice] == pytest.approx(max(gaps.values()), rel=1e-3)
        covered += list(left.pop(pick.image).embeddings)


@given(pools, st.integers(2, 5))
@settings(deadline=None)
def test_a_twin_of_what_is_labelled_comes_last(pool: list[Candidate], times: int) -> None:
    twin = candidate("twin", 99_999)
    picks = selection.diverse([twin, *pool], np.repeat(twin.embeddings, times, axis=0), len(pool) + 1)
    assert picks[-1].image == "twin"


def test_with_nothing_labelled_the_most_ordinary_comes_first() -> None:
    line = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]], dtype=np.float32)
    pool = [
        Candidate(
            str(at), np.array([7]), *2 * [np.ones((1, 2), np.float32)], np.ones(1, bool), one[None], np.array([0])
        )
        for at, one in enumerate(line)
    ]
    picks = selection.diverse(pool, np.zeros((0, 1), np.float32), 2)
    assert [pick.image for pick in picks] == ["3", "4"], "the mean is 3.2, and 10 is furthest from it"


def test_mixed_chooses_among_the_doubtful() -> None:
    pool = [candidate(str(at), at) for at in range(6)]
    doubtful = {pick.image for pick in selection.uncertain(pool, 3, ALIKE)}
    assert {pick.image for pick in selection.mixed(pool, NONE_LABELLED, 3, ALIKE)} == doubtful
    assert len(selection.mixed(pool, NONE_LABELLED, 6, ALIKE)) == 6
    assert selection.mixed([], NONE_LABELLED, 2, ALIKE) == []


def test_slices_with_something_to_outline_are_preferred() -> None:
    one = candidate("a", 0)
    likely = np.array([False, False, True, False, False])
    most = int(one.doubts(ALIKE).argmax())
    assert most != 2
    assert replace(one, likely=likely).pick(ALIKE).slice == one.numbers[2]
    assert replace(one, likely=np.zeros(5, bool)).pick(ALIKE).slice == one.numbers[most]


def scores(depth: int = 9, area: float = 5.0) -> Scores:
    draw = np.random.default_rng(depth)
    numbers = np.arange(0, depth, 2)
    count = len(numbers)
    place = Place.of(Volume(np.zeros((4, 6, depth), np.int16), np.diag([2.0, 3.0, 5.0, 1.0])))
    doubt = draw.random((count, 2), np.float32)
    return Scores(place, numbers, doubt, np.full((count, 2), area, np.float32), draw.random((count, 3), np.float32))


def test_labelled_slices_are_no_candidates() -> None:
    found = scores()
    rest = Candidate.of("a", found, labelled=(0, 2, 4))
    assert rest is not None
    assert list(rest.numbers) == [6, 8]
    assert Candidate.of("a", found, labelled=range(9)) is None


def test_what_is_known_to_hold_something_is_likely_whatever_the_model_says() -> None:
    for holding in (False, True):
        found = Candidate.of("a", scores(area=0.1), holding=holding)
        assert found is not None
        assert (found.likely == holding).all()


def test_a_label_covers_the_slices_it_tells_of_or_the_nearest() -> None:
    found, known = scores(), np.zeros(9, bool)
    assert len(selection.coverage(found, known)) == 0
    known[3] = True
    np.testing.assert_array_equal(selection.coverage(found, known), found.embeddings[1:3])
    known[:] = True
    np.testing.assert_array_equal(selection.coverage(found, known), found.embeddings)
    np.testing.assert_array_equal(selection.coverage(found, None), found.embeddings)


@given(st.lists(st.integers(0, 99), max_size=30, unique=True).map(sorted), st.integers(1, 9))
def test_evenly_spaced(numbers: list[int], most: int) -> None:
    kept = list(selection.evenly(np.array(numbers, dtype=np.int64), most))
    assert len(kept) == min(most, len(numbers))
    assert kept == sorted(set(kept) & set(numbers))


def test_entropy_and_disagreement_at_their_ends() -> None:
    sure = torch.tensor([1.0, 0.0])[:, None, None]
    even = torch.tensor([0.5, 0.5])[:, None, None]
    other = torch.tensor([0.0, 1.0])[:, None, None]
    assert measures.entropy(sure).item() == pytest.approx(0, abs=1e-5)
    assert measures.entropy(even).item() == pytest.approx(math.log(2))
    assert measures.disagreement(torch.stack([sure, other])).item() == pytest.approx(math.log(2), abs=1e-5)
    assert measures.disagreement(torch.stack([even, even])).item() == pytest.approx(0, abs=1e-6), "unsure, but agreed"
    three = torch.tensor([[0.2, 0.8, 0.0], [0.2, 0.0, 0.8]])[:, :, None, None]
    assert measures.disagreement(three).flatten().tolist() == pytest.approx([0.423, 0.423], abs=1e-3)
    swapped = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])[:, :, None, None]
    assert measures.disagreement(swapped).flatten().tolist()[1] == pytest.approx(0, abs=1e-6), "agreed on the third"


@given(st.integers(0, 500))
@settings(deadline=None)
def test_views_that_contradict_each_other_are_in_doubt(seed: int) -> None:
    views = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).softmax(dim=2)
    doubt = measures.disagreement(views)
    assert doubt.shape == (2, 2, 4, 5)
    assert doubt.min() >= 0
    assert doubt.max() <= math.log(2) + 1e-5
    assert (doubt <= measures.entropy(views.mean(dim=0))[:, None] + 1e-5).all()


def test_a_network_that_only_looks_at_brightness_disagrees_at_its_threshold_alone() -> None:
    slices = torch.full((2, 1, 32, 48), 0.2)
    slices[1] = 0.52

    def bright(seen: torch.Tensor) -> torch.Tensor:
        assert seen.shape[-2] % 16 == seen.shape[-1] % 16 == 0
        return torch.cat([0.5 - seen, seen - 0.5], dim=1) * 400

    views = measures.views_of(bright, slices)
    assert views.shape == (3, 2, 2, 32, 48)
    below, at = measures.disagreement(views)[:, 0]
    assert below.max() < 1e-3
    assert at.min() > 0.3


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return make_phantom(0, shape=(48, 40, 11), spacing=(8.0, 8.0, 20.0)).image


def test_scores_of_a_volume(segmenter: Segmenter, phantom: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    found = score(segmenter, phantom, lambda: waits.append(1), most=6)
    assert list(found.numbers) == [0, 2, 4, 6, 8, 10]
    assert found.embeddings.shape == (6, 16)
    assert np.isfinite(found.embeddings).all()
    assert found.disagreement.shape == found.area.shape == (6, len(segmenter.header.labels))
    assert (found.disagreement >= 0).all()
    assert found.disagreement.max() > 0
    body_cm2 = 48 * 40 * 0.8 * 0.8
    assert (found.area.sum(axis=1) <= body_cm2).all()
    assert waits
    few = score(segmenter, phantom, most=2, among=np.array([4, 5, 8]))
    assert list(few.numbers) == [4, 8]
    np.testing.assert_allclose(few.disagreement, found.disagreement[[2, 4]], rtol=1e-3, atol=1e-3)
    # one slice at a time gives the same: batches do not mix
    monkeypatch.setitem(BATCH_PIXELS, "cpu", 1)
    again = score(segmenter, phantom, most=6)
    np.testing.assert_allclose(again.disagreement, found.disagreement, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again.embeddings, found.embeddings, rtol=1e-3, atol=1e-4)


def test_scores_do_not_depend_on_the_order_of_axes(segmenter: Segmenter, phantom: Volume) -> None:
    turned = Volume(phantom.voxels.transpose(2, 0, 1)[::-1], phantom.affine[:, [2, 0, 1, 3]] @ flip(phantom.shape[2]))
    one, other = score(segmenter, phantom), score(segmenter, turned)
    np.testing.assert_allclose(one.disagreement, other.disagreement, rtol=1e-4, atol=1e-4)
    where, there = one.place.slice(3), other.place.slice(3)
    assert where["ras"] == there["ras"]
    assert (where["number"], where["of"], there["of"]) == (3, 11, 11)
    assert (there["axis"], there["index"]) == ("i", 11 - 1 - 3)


def flip(count: int) -> np.ndarray:
    """Affine of the same grid with its first axis reversed."""
    change = np.diag([-1.0, 1.0, 1.0, 1.0])
    change[0, 3] = count - 1
    return change


def test_the_place_of_a_slice() -> None:
    affine = np.diag([-2.0, -3.0, 5.0, 1.0])
    affine[:3, 3] = (10, 20, 100)
    told = Place.of(Volume(np.zeros((5, 7, 9), np.int16), affine)).slice(4)
    assert told == {"number": 4, "of": 9, "axis": "k", "index": 4, "ras": [6.0, 11.0, 120.0]}


def test_scores_are_kept_by_model_and_content(tmp_path: Path) -> None:
    store, found = ScoreStore(tmp_path), scores()
    assert store.get("w", "c") is None
    store.put("w", "c", found)
    again = store.get("w", "c")
    assert again is not None
    assert again.place == found.place
    for name in ("numbers", "disagreement", "area", "embeddings"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert store.get("other", "c") is store.get("w", "other") is None


@pytest.mark.parametrize("data", [b"", b"damaged" * 9])
def test_damaged_scores_are_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    store = ScoreStore(tmp_path)
    store.put("w", "c", scores())
    (tmp_path / "w" / "c.safetensors").write_bytes(data)
    assert store.get("w", "c") is None
    assert not store.has("w", "c")


def test_scores_of_old_models_go(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    for number, weights in enumerate(("a", "b", "live")):
        store.put(weights, "c", scores())
        os.utime(tmp_path / weights, (number + 1, number + 1))
    (tmp_path / "live" / ".left.12345678").write_bytes(b"")
    store.sweep("live")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "live"]
    assert [one.name for one in (tmp_path / "live").iterdir()] == ["c.safetensors"]
