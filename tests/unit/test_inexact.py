"""Outlines that are off by some mm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from organ_slice import SPACING, X, Y, disc

from polycl.inexact import shifted, tighter, wider
from polycl.metrics import dice

pytestmark = pytest.mark.unit

MM, ANGLES = st.floats(0, 5), st.floats(0, 2 * np.pi)


@given(MM)
def test_a_disc_gets_smaller_or_larger_by_so_many_mm(mm: float) -> None:
    """But for the pixels that its rim lies in, on average half of one."""
    less, more = tighter(disc(20), SPACING, mm), wider(disc(20), SPACING, mm)
    assert (dice(less, disc(20 - mm)) or 0) > 0.94
    assert (dice(more, disc(20 + mm)) or 0) > 0.94
    assert not (less & ~disc(20)).any()
    assert not (disc(20) & ~more).any()


@given(MM, ANGLES)
def test_a_disc_is_moved_by_so_many_mm_to_half_a_pixel(mm: float, angle: float) -> None:
    moved = shifted(disc(15), SPACING, mm, angle)
    centres = [np.array([(X[one]).mean() * SPACING[0], (Y[one]).mean() * SPACING[1]]) for one in (disc(15), moved)]
    np.testing.assert_allclose(
        centres[1] - centres[0], mm * np.array([np.cos(angle), np.sin(angle)]), atol=max(SPACING) / 2
    )


def test_nothing_is_left_of_what_is_too_small() -> None:
    assert not tighter(disc(2), SPACING, 3).any()
    assert not shifted(disc(2), SPACING, 500, 0).any()


def test_what_is_everywhere_stays_and_nothing_stays_nothing() -> None:
    """There is no pixel outside to be near to, and none inside."""
    nothing = np.zeros_like(disc(2))
    assert tighter(~nothing, SPACING, 3).all()
    assert not tighter(nothing, SPACING, 3).any()
    assert wider(~nothing, SPACING, 3).all()
    assert not wider(nothing, SPACING, 3).any()
