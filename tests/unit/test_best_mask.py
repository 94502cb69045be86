"""Which of a SAM's candidates a click means, and how much of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from polycl.clicks import best_mask
from polycl.sam import Masks, Prompts

pytestmark = pytest.mark.unit

LEFT, RIGHT = (slice(2, 6), slice(2, 6)), (slice(2, 6), slice(12, 18))


def masks(*candidates: tuple[tuple[slice, slice], ...], scores: tuple[float, ...] = (0.9, 0.8)) -> Masks:
    """Candidates [10, 20] that hold these boxes of rows and columns."""
    logits = np.full((len(candidates), 10, 20), -1, np.float32)
    for number, boxes in enumerate(candidates):
        for box in boxes:
            logits[number][box] = 1
    return Masks(
        logits, np.array(scores[: len(candidates)], np.float32), np.zeros((len(candidates), 256, 256), np.float32)
    )


def points(*inside: tuple[int, int], outside: tuple[tuple[int, int], ...] = (), box: bool = False) -> Prompts:
    """Points as (column, row), and a box around everything."""
    labels = [1] * len(inside) + [0] * len(outside)
    return Prompts(np.array([*inside, *outside]), np.array(labels), np.array([0, 0, 19, 9]) if box else None)


def held(mask: NDArray[np.bool_]) -> list[bool]:
    return [bool(mask[box].all()) for box in (LEFT, RIGHT)]


def test_islands_that_no_click_is_in_are_left_out() -> None:
    mask = best_mask(masks((LEFT, RIGHT)), points((3, 3)))
    assert held(mask) == [True, False]
    assert mask.sum() == 16


def test_each_click_keeps_its_own_piece() -> None:
    assert held(best_mask(masks((LEFT, RIGHT)), points((3, 3), (14, 4)))) == [True, True]


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    corner = (slice(6, 8), slice(6, 8))
    assert best_mask(masks((LEFT, corner)), points((3, 3))).sum() == 20


def test_a_box_keeps_all_that_is_found_in_it() -> None:
    assert held(best_mask(masks((LEFT, RIGHT)), points((3, 3), box=True))) == [True, True]


def test_where_the_click_itself_is_missed_all_stays_for_the_next_click_to_correct() -> None:
    assert held(best_mask(masks((LEFT, RIGHT)), points((9, 9)))) == [True, True]


def test_the_candidate_that_obeys_most_points_wins_over_a_surer_one() -> None:
    asked = points((3, 3), outside=((14, 4),))
    assert held(best_mask(masks((LEFT, RIGHT), (LEFT,)), asked)) == [True, False]
    assert held(best_mask(masks((RIGHT,), (LEFT,)), asked)) == [True, False]
