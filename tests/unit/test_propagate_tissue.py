"""What an object's tissue says about the next slice: how distinct it is, and for and against which pixels it speaks."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polycl.propagate.engine import LARGEST, Hint, Lean, Recall
from polycl.propagate.tissue import JOINS, KEPT_OUT, LEAST, Counted, OneKind, Tissue

pytestmark = pytest.mark.unit
SIDE = 32


def disk(radius: float, row: float = 16, column: float = 16) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def plane(inside: float, outside: float, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, 10, (SIDE, SIDE))
    return (np.where(mask, inside, outside) + noise).astype(np.float32)


def test_an_object_in_fat_is_distinct_and_one_in_its_own_kind_tells_nothing() -> None:
    mask = disk(8)
    tissue = Tissue.of(plane(40, -100, mask), mask)
    assert tissue is not None
    assert isinstance(tissue.kind, OneKind)
    assert tissue.kind.median == pytest.approx(40, abs=3)
    assert tissue.kind.deviation == pytest.approx(10, abs=2)
    assert tissue.distinct == 1
    assert Tissue.of(plane(40, 42, mask), mask) is None
    assert Tissue.of(np.full((SIDE, SIDE), np.nan, np.float32), mask) is None


def test_what_is_beyond_the_slice_tells_nothing() -> None:
    mask = disk(8)
    hu = np.where(disk(14), plane(40, 42, mask), np.nan).astype(np.float32)
    assert Tissue.of(hu, mask) is None
    assert Tissue.of(np.where(mask, hu, np.nan), mask) is None


def test_some_of_the_same_around_it_makes_it_tell_less() -> None:
    mask, beside = disk(8), disk(4, 16, 27)
    alone, touched = (Tissue.of(plane(40, -100, one), mask) for one in (mask, mask | beside))
    assert alone is not None
    assert touched is not None
    assert 0 < touched.distinct < alone.distinct


def test_it_speaks_for_tissue_that_stayed_and_against_what_came_instead() -> None:
    mask = disk(8)
    tissue = Tissue(OneKind(40, LEAST), distinct=0.5, area=200)
    hu = np.full((SIDE, SIDE), 40, np.float32)
    hu[:, 16:] = 22  # neither alike nor unlike
    hu[:10] = -100
    hu[20, 12] = np.nan
    odds = tissue.lean(hu, mask, 2.0).odds
    assert odds[14, 12] == 1.0
    assert odds[14, 20] == 0.0
    assert odds[9, 14] == -1.0
    assert odds[8, 13] == -KEPT_OUT
    assert odds[7, 13] == 0.0
    assert odds[20, 12] == 0.0
    assert odds[16, 8] == JOINS
    assert odds[16, 7] == 0.0
    assert set(np.unique(odds)) == {-KEPT_OUT, -1.0, 0.0, JOINS, 1.0}


def test_it_is_still_there_as_far_as_its_tissue_is() -> None:
    mask = disk(8)
    tissue = Tissue(OneKind(40, LEAST), distinct=0.5, area=int(mask.sum()))
    hu = np.full((SIDE, SIDE), 40, np.float32)
    assert tissue.stays(hu, mask) == 0.5
    upper = disk(8) & (np.mgrid[:SIDE, :SIDE][0] < 16)
    assert tissue.stays(np.where(upper, -100, hu), mask) == pytest.approx(0.5 * (1 - upper.sum() / mask.sum()))
    assert tissue.stays(np.full_like(hu, -100), mask) == 0
    assert tissue.stays(np.full_like(hu, np.nan), mask) == 0
    assert tissue.stays(hu, disk(0)) == 0


def test_the_smaller_it_gets_the_less_likely_it_goes_on() -> None:
    mask, hu = disk(8), np.full((SIDE, SIDE), 40, np.float32)
    tissue = Tissue(OneKind(40, LEAST), distinct=1, area=int(mask.sum()))
    assert tissue.stays(hu, disk(4)) == pytest.approx(disk(4).sum() / mask.sum())


def test_of_what_has_swollen_it_says_nothing() -> None:
    mask, hu = disk(8), np.full((SIDE, SIDE), 40, np.float32)
    tissue = Tissue(OneKind(40, LEAST), distinct=1, area=int(mask.sum()))
    assert tissue.stays(hu, disk(9)) == 1
    assert tissue.stays(hu, disk(10)) == 0


def test_a_lean_adds_to_what_the_network_finds() -> None:
    logits = torch.tensor([[-1.0, 1.0], [-1024.0, 20.0]])
    lean = Lean(np.array([[1.5, -1.5], [1.0, 0.0]], np.float32))
    torch.testing.assert_close(lean.blend(logits), torch.tensor([[0.5, -0.5], [1 - LARGEST, LARGEST]]))


def test_tissue_is_heard_after_who_knows_the_object() -> None:
    """What a segmenter leaves in doubt tissue decides, and not the other way round."""
    logits = torch.tensor([[1.0, 1.0, 6.0]])
    hints = Hint(np.array([[-1.0, -6.0, -1.0]], np.float32), 0.7), Lean(np.array([[1.0, 1.0, 0.0]], np.float32))
    recall = Recall((), (), 1, hints=hints)
    torch.testing.assert_close(recall.told(logits), torch.tensor([[0.6, -2.9, 1.1]]))
    assert torch.equal(Recall((), (), 1).told(logits), logits)


class TestOfMoreThanOneKind:
    """A bone: a row of it is dense, the next spongy, and the third marrow; in muscle, of HU between those."""

    MASK = disk(8)
    BONE = DENSE, SPONGY, MARROW = 325, 175, -75
    MUSCLE = 25

    @classmethod
    def bone(cls, like_muscle: float = 0) -> NDArray[np.float32]:
        """HU of one that is like muscle within so many pixels of its middle."""
        hu = plane(cls.MUSCLE, cls.MUSCLE, cls.MASK)
        rows = np.mgrid[:SIDE, :SIDE][0]
        own = cls.MASK & ~disk(like_muscle)
        hu[own] += np.array(cls.BONE)[rows % len(cls.BONE)][own] - cls.MUSCLE
        return hu

    def test_it_is_told_by_how_often_each_hu_is_found_where_one_median_tells_nothing(self) -> None:
        tissue = Tissue.of(self.bone(), self.MASK)
        assert tissue is not None
        assert isinstance(tissue.kind, Counted)
        assert tissue.distinct > 0.7
        looks = tissue.kind.likeness(np.array([*self.BONE, self.MUSCLE, np.nan]))
        assert looks.alike.tolist() == [True, True, True, False, False]
        assert looks.unlike.tolist() == [False, False, False, True, False]
        assert looks.joins.any()
        assert not (looks.joins & ~looks.alike).any()
        assert not (looks.kept_out & ~looks.unlike).any()

    def test_one_kind_is_taken_for_one(self) -> None:
        tissue = Tissue.of(plane(self.DENSE, self.MUSCLE, self.MASK), self.MASK)
        assert tissue is not None
        assert isinstance(tissue.kind, OneKind)

    def test_it_tells_the_less_the_more_of_it_is_like_what_is_around(self) -> None:
        some, more = (Tissue.of(self.bone(radius), self.MASK) for radius in (3, 5))
        assert some is not None
        assert more is not None
        assert 0 < more.distinct < some.distinct < 1
