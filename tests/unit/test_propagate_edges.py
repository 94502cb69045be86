"""Outlines that follow the edges of the CT."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from polycl.propagate.edges import Edges, Trial, choose, guided, inexact, tried
from polycl.propagate.frames import FrameGrid, Region

pytestmark = pytest.mark.unit

SIDE = 128
X, Y = np.mgrid[:SIDE, :SIDE]
# a star: its arms are lost in masks of few pixels
STAR = np.hypot(X - 64, Y - 60) < 30 + 8 * np.sin(7 * np.arctan2(Y - 60, X - 64))
GRID = FrameGrid(Region(0, 0, SIDE, SIDE), SIDE, (SIDE, SIDE))


def ct(inside: float, outside: float, noise: float = 10.0) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    hu: NDArray[np.float32] = (np.where(STAR, inside, outside) + random.normal(0, noise, STAR.shape)).astype(np.float32)
    return hu


def coarse(mask: NDArray[np.bool_], blur: float = 3.0) -> NDArray[np.float32]:
    """Logits as an enlarged mask of few pixels has them."""
    logits: NDArray[np.float32] = ndimage.gaussian_filter(np.where(mask, 8.0, -8.0).astype(np.float32), blur)
    return logits


def chosen(*trials: Trial) -> Edges | None:
    all_tried = [tried(GRID.box, 1.0, trial, inexact(GRID, SIDE // 4, trial.mask)) for trial in trials]
    return choose([one for one in all_tried if one is not None])


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_an_outline_moves_to_the_edge_of_the_organ() -> None:
    blurred = coarse(ndimage.binary_erosion(STAR))
    followed = Edges(reach=6.0, contrast=100.0, median=100.0).follow(blurred, ct(100, 0), 1.0)
    assert dice(followed > 0, STAR) > 0.98 > dice(blurred > 0, STAR) + 0.03


def test_nothing_is_found_where_there_was_nothing() -> None:
    empty = np.full((SIDE, SIDE), -8.0, np.float32)
    assert (Edges(6.0, 100.0, 100.0).follow(empty, ct(100, 0), 1.0) < 0).all()


def test_far_from_the_object_nothing_changes() -> None:
    followed = Edges(6.0, 100.0, 100.0).follow(coarse(STAR), np.full((SIDE, SIDE), 100.0, np.float32), 1.0)
    assert (followed[:5] < 0).all()


def test_a_guide_without_edges_only_smooths() -> None:
    random = np.random.default_rng(1).random((40, 40)).astype(np.float32)
    flat = guided(np.zeros((40, 40), np.float32), random, 3)
    smooth = ndimage.uniform_filter(ndimage.uniform_filter(random, 7), 7)
    np.testing.assert_allclose(flat[6:-6, 6:-6], smooth[6:-6, 6:-6], atol=1e-4)


def test_where_the_annotated_slice_has_edges_they_are_followed() -> None:
    edges = chosen(Trial(ct(100, 0), STAR))
    assert edges is not None
    assert edges.median == pytest.approx(100, abs=3)


def test_where_the_ct_does_not_show_the_organ_outlines_stay() -> None:
    assert chosen(Trial(ct(50, 50), STAR)) is None


def test_without_an_annotated_mask_outlines_stay() -> None:
    assert chosen() is None
    assert chosen(Trial(np.full((SIDE, SIDE), np.nan, np.float32), STAR)) is None


def test_who_knows_the_outline_needs_no_edges() -> None:
    """With what a segmenter says the outline is right already; a thin wall would only lose by the filter."""
    known = np.where(STAR, 8.0, -8.0).astype(np.float32)
    trial = Trial(ct(100, 0), STAR, lambda logits: 0.3 * logits + 0.7 * known)
    assert chosen(trial) is None


def test_what_is_tried_on_several_slices_counts_on_average() -> None:
    """One slice without a segmenter's say does not turn the filter on for all."""
    known = np.where(STAR, 8.0, -8.0).astype(np.float32)
    right = Trial(ct(100, 0), STAR, lambda logits: 0.3 * logits + 0.7 * known)
    half = Trial(ct(110, 0), STAR, lambda logits: 0.5 * logits + 0.5 * known)
    assert chosen(Trial(ct(110, 0), STAR)) is not None
    assert chosen(right, right, half) is None


def test_a_slice_that_is_no_numbers_tells_nothing() -> None:
    seen, unseen = Trial(ct(100, 0), STAR), Trial(np.full((SIDE, SIDE), np.nan, np.float32), STAR)
    assert chosen(seen, unseen) == chosen(seen) is not None
