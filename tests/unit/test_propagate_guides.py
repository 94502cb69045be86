"""Segmenters that recognise what is propagated: who is asked what, and how much of a say they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl.errors import Cancelled
from polycl.metrics import dice
from polycl.odds import MOST, STEPS, packed, unpacked
from polycl.propagate.engine import Hint, Lean
from polycl.propagate.frames import Region
from polycl.propagate.guides import SHARE, SUREST, YIELDS, Say, SegmenterGuide
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed, with_ends
from polycl.propagate.session import Propagation
from polycl.segmenter import Segmenter
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (64, 56, 40)
X, Y, Z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
Mask = NDArray[np.bool_]
Odds = NDArray[np.int8]
Volume3 = NDArray[np.float32]
SURE = 100


def cylinder(radius: float, low: int, high: int) -> Mask:
    return (np.hypot(X - 30, Y - 25) < radius) & (low <= Z) & (high > Z)


def ct(bright: Mask) -> Volume:
    return Volume(np.where(bright, 100, -100).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))


class Known:
    """Finds what it is told to."""

    def __init__(self, **organs: Mask) -> None:
        self.name, self.organs, self.asked = "known", organs, 0

    def on_slice(self, z: int) -> Mapping[str, Odds]:
        return {name: np.where(mask[:, :, z], SURE, -SURE).astype(np.int8) for name, mask in self.organs.items()}

    def everywhere(self, label: str, check: Callable[[], None]) -> Odds:
        self.asked += 1
        check()
        return np.where(self.organs[label], SURE, -SURE).astype(np.int8)

    def corrects(self, label: str) -> bool:
        return False

    def corrected(self, label: str, found: Odds, annotated: Mapping[int, Mask], check: Callable[[], None]) -> Odds:
        return found


COLUMN = cylinder(8, 10, 40)
ORGAN = cylinder(8, 10, 24)
"""The table below the patient is as bright as the organ; who knows the organ knows where it ends."""


def found(session: Propagation, label: int = 1) -> Mask:
    return np.asarray(session.run().voxels == label)


def last(mask: Mask) -> int:
    return int(np.flatnonzero(mask.any(axis=(0, 1)))[-1])


def test_who_knows_the_object_tells_where_it_ends() -> None:
    guide = Known(bone=cylinder(3, 0, 40), organ=ORGAN)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[guide])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    assert last(found(session)) == 23
    assert (session.recognised[1].guide, session.recognised[1].label) == ("known", "organ")
    assert guide.asked == 1


@pytest.mark.parametrize(("around", "kinds"), [(-100, [Hint, Lean]), (100, [Hint])])
def test_tissue_is_heard_beside_who_knows_the_object(around: int, kinds: list[type]) -> None:
    """Who knows it has less of a say where tissue has one."""
    image = ct(COLUMN)
    image.voxels[~COLUMN] = around
    engine = FakeSam2()
    session = Propagation(image, engine, guides=[Known(organ=ORGAN)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    session.run()
    hints = [recall.hints for step in engine.steps for recall in step]
    assert hints
    assert all([type(one) for one in some] == kinds for some in hints)
    share = hints[0][0].share  # type: ignore[union-attr]
    assert share == pytest.approx(SHARE * (1 - YIELDS) if around < 0 else SHARE, abs=0.02)
    surest = max(float(np.abs(some[0].odds).max()) for some in hints)
    assert surest == SUREST if around < 0 else surest > 6


@pytest.mark.parametrize("gap", [0, 5])
def test_who_finds_it_in_one_piece_tells_that_seeds_far_apart_are_of_one_object(gap: int) -> None:
    """They are its ends, 9 diameters apart; without that they might be two of a kind."""
    thin, engine = cylinder(3, 5, 36), FakeSam2()
    session = Propagation(ct(thin), engine, guides=[Known(organ=thin & ((Z < 18) | (18 + gap <= Z)))])
    session.put(1, {z: Seed(thin[:, :, z]) for z in (6, 34)})
    session.run()
    recalls = [recall for step in engine.steps for recall in step]
    between = [recall.there for recall in recalls if [slot for slot, _ in recall.spatial].count(0) == 2]
    assert session.recognised
    assert between
    assert set(between) == {gap == 0}


def test_nobody_is_believed_who_finds_something_else() -> None:
    other = Known(bone=cylinder(3, 0, 40), fat=~COLUMN)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[other])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    alone = Propagation(ct(COLUMN), FakeSam2())
    alone.put(1, {15: Seed(COLUMN[:, :, 15])})
    np.testing.assert_array_equal(found(session), found(alone))
    assert session.recognised == {}
    assert other.asked == 0


def test_the_best_of_several_is_asked() -> None:
    rough, good = Known(organ=cylinder(7, 10, 20)), Known(organ=ORGAN)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[rough, good])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    assert last(found(session)) == 23
    assert (rough.asked, good.asked) == (0, 1)


class Whole(Known):
    """Finds on a slice what it is told to, as likely as it is told, and something else once it sees the volume."""

    def __init__(self, on_slice: dict[str, Volume3], whole: dict[str, Volume3]) -> None:
        super().__init__()
        self.likely, self.whole = on_slice, whole

    def on_slice(self, z: int) -> Mapping[str, Odds]:
        return {name: packed(torch.from_numpy(odds[:, :, z])) for name, odds in self.likely.items()}

    def everywhere(self, label: str, check: Callable[[], None]) -> Odds:
        return packed(torch.from_numpy(self.whole[label]))


def likely(mask: Mask, inside: float) -> Volume3:
    return np.where(mask, inside, -7.0).astype(np.float32)


@pytest.mark.parametrize("odds", [-1.5, -2.5, -3.5])
def test_who_is_unsure_of_the_object_still_knows_it(odds: float) -> None:
    """A segmenter that finds the background likelier, but the object far likelier here than around it."""
    unsure = {"organ": likely(ORGAN, odds)}
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Whole(unsure, unsure)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    assert last(found(session)) == 23
    assert session.recognised[1].label == "organ"


def test_who_drops_the_object_once_it_sees_the_volume_does_not_know_it() -> None:
    nothing = likely(ORGAN & False, 6)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Whole({"organ": likely(ORGAN, 6)}, {"organ": nothing})])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    assert last(found(session)) == 39
    assert session.recognised == {}


def test_the_second_best_is_heard_where_the_best_was_wrong() -> None:
    tight, nothing = cylinder(7, 10, 24), likely(ORGAN & False, 6)
    on_slice = {"bladder": likely(ORGAN, 6), "liver": likely(tight, 6)}
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Whole(on_slice, on_slice | {"bladder": nothing})])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    assert last(found(session)) == 23
    assert session.recognised[1].label == "liver"


WALL = (np.hypot(X - 30, Y - 25) < 9) & (np.hypot(X - 30, Y - 25) > 6.5)
THIN = WALL | ((np.abs(Y - 25) < 1) & (np.hypot(X - 30, Y - 25) < 24))


def test_what_is_too_thin_for_the_networks_pixels_is_outlined_as_the_segmenter_has_it() -> None:
    """A ring and a line of one voxel, in masks of 16 pixels a side."""
    session = Propagation(ct(THIN), FakeSam2(), guides=[Known(organ=THIN)])
    session.put(1, {15: Seed(THIN[:, :, 15])})
    assert dice(found(session)[:, :, 20], THIN[:, :, 20]) > 0.95


def test_pieces_that_only_the_segmenter_has_are_not_added() -> None:
    island = (X == 55) & (np.abs(Y - 25) < 12)
    session = Propagation(ct(THIN), FakeSam2(), guides=[Known(organ=THIN | island)])
    session.put(1, {15: Seed(THIN[:, :, 15])})
    assert not found(session)[55, :, 20].any()


def test_a_clicked_slice_is_as_fine_as_the_others() -> None:
    ring = cylinder(9, 0, 40) & ~cylinder(5.1, 0, 40)
    session = Propagation(ct(ring), FakeSam2(), guides=[Known(organ=ring)])
    session.put(1, {15: Seed(points=np.array([[30.0, 32.0]]), labels=np.array([1]))})
    np.testing.assert_array_equal(found(session)[:, :, 15], ring[:, :, 15])


def test_a_correction_takes_its_say_away() -> None:
    """Whoever paints the object beyond where the segmenter ends it is right."""
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Known(organ=ORGAN)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    session.run()
    session.put(1, {30: Seed(COLUMN[:, :, 30])})
    corrected = found(session)
    assert last(corrected) == 39
    assert corrected[30, 25, 10:40].all()


def test_who_is_cut_short_by_an_emptied_slice_is_heard_up_to_there() -> None:
    """Emptying the first slice that is wrong changes nothing on those that are right."""
    engine = FakeSam2()
    session = Propagation(ct(COLUMN), engine, guides=[Known(organ=ORGAN)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    before = found(session)
    engine.steps.clear()
    session.put(1, {20: Seed(np.zeros_like(COLUMN[:, :, 20]))})
    corrected = found(session)
    recalls = [recall for step in engine.steps for recall in step]
    assert len(recalls) == 4, "no other slices are visited"
    assert all(any(isinstance(one, Hint) for one in recall.hints) for recall in recalls)
    assert len(engine.prompts) == 1, "there is nothing to remember"
    np.testing.assert_array_equal(corrected, before & (Z < 20))


def test_who_finds_nothing_is_not_heard_where_the_object_is_said_to_be() -> None:
    image = ct(COLUMN)
    for last, end in ((None, 24), (33, 34)):
        session = Propagation(image, FakeSam2(), guides=[Known(organ=ORGAN)])
        session.put(1, with_ends({15: Seed(ORGAN[:, :, 15])}, image, None, last))
        found = session.run().voxels == 1
        assert list(np.flatnonzero(found.any(axis=(0, 1)))) == list(range(10, end))
        assert session.recognised


def test_who_knows_the_object_on_one_of_the_annotated_slices_knows_it() -> None:
    """Elsewhere it may fail: there it is contradicted, and not heard."""
    upper = ORGAN & (Z > 15)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Known(organ=upper)])
    session.put(1, {z: Seed(ORGAN[:, :, z]) for z in (12, 20)})
    result = found(session)
    assert session.recognised[1].label == "organ"
    assert last(result) == 23
    assert result[30, 25, 10:20].all()


def test_a_guide_is_forgotten_with_its_object() -> None:
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Known(organ=ORGAN)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    session.run()
    session.remove(1, 15)
    assert session.recognised == {}
    session.put(1, {15: Seed(cylinder(3, 10, 40)[:, :, 15])})
    session.run()
    assert session.recognised == {}


def test_what_is_redrawn_as_something_else_is_recognised_as_that() -> None:
    """And not before who looks is done with it."""
    bone = cylinder(3, 5, 40)
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Known(organ=ORGAN, bone=bone)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    session.run()
    session.put(1, {15: Seed(bone[:, :, 15])})
    with pytest.raises(Cancelled):
        session.run(cancelled=lambda: True)
    assert session.recognised[1].label == "organ"
    session.run()
    assert session.recognised[1].label == "bone"


def test_who_knows_it_only_by_a_later_slice_is_heard_in_all_runs() -> None:
    guide = Known(organ=ORGAN & (Z > 15))
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[guide])
    session.put(1, {12: Seed(ORGAN[:, :, 12])})
    assert last(found(session)) == 39
    session.put(1, {20: Seed(ORGAN[:, :, 20])})
    fresh = Propagation(ct(COLUMN), FakeSam2(), guides=[guide])
    fresh.put(1, {z: Seed(ORGAN[:, :, z]) for z in (12, 20)})
    np.testing.assert_array_equal(found(session), found(fresh))
    assert last(found(session)) == 23


def test_what_is_recognised_anew_counts_in_runs_that_would_have_stayed() -> None:
    """One slice is redrawn so that it is something else, which goes on below the other."""
    narrow, wide = Z < 16, Z >= 16
    some = (cylinder(7.5, 10, 40) & narrow) | (cylinder(8, 10, 40) & wide)
    other = (cylinder(7.2, 0, 40) & narrow) | (cylinder(10, 0, 40) & wide)
    bright = (cylinder(8, 0, 40) & narrow) | (cylinder(10, 0, 40) & wide)

    def session(radius: float) -> Propagation:
        as_drawn = PropagateParameters(appearance=0.0, haste=False)
        guides, region = [Known(some=some, other=other)], Region(14, 9, 32, 32)
        made = Propagation(ct(bright), FakeSam2(), parameters=as_drawn, guides=guides, region=region)
        made.put(1, {12: Seed(cylinder(8, 0, 40)[:, :, 12]), 20: Seed(cylinder(radius, 0, 40)[:, :, 20])})
        return made

    redrawn = session(8)
    assert np.flatnonzero(found(redrawn).any(axis=(0, 1)))[0] == 10
    assert redrawn.recognised[1].label == "some"
    redrawn.put(1, {20: Seed(cylinder(10, 0, 40)[:, :, 20])})
    result = found(redrawn)
    assert redrawn.recognised[1].label == "other"
    assert np.flatnonzero(result.any(axis=(0, 1)))[0] == 0
    np.testing.assert_array_equal(result, found(session(10)))


def test_clicks_are_recognised_too() -> None:
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Known(organ=ORGAN)])
    session.put(1, {15: Seed(points=np.array([[30.0, 25.0]]), labels=np.array([1]))})
    assert last(found(session)) == 23


def test_who_cancels_is_heard_while_a_segmenter_works() -> None:
    class Slow(Known):
        def everywhere(self, label: str, check: Callable[[], None]) -> Odds:
            cancelled.append(True)
            return super().everywhere(label, check)

    cancelled: list[bool] = []
    session = Propagation(ct(COLUMN), FakeSam2(), guides=[Slow(organ=ORGAN)])
    session.put(1, {15: Seed(COLUMN[:, :, 15])})
    with pytest.raises(Cancelled):
        session.run(cancelled=lambda: bool(cancelled))


def disc(radius: float) -> Mask:
    return np.asarray(np.hypot(*np.meshgrid(np.arange(64) - 32, np.arange(64) - 32)) < radius)


def cone(radius: float, slope: float = 0.2) -> NDArray[np.float32]:
    """Log-odds that fall off evenly from a centre, 0 at `radius`."""
    away = np.hypot(*np.meshgrid(np.arange(64) - 32, np.arange(64) - 32))
    return ((radius - away) * slope).astype(np.float32)


def test_its_say_grows_with_agreement() -> None:
    sharp = {radius: np.where(disc(radius), 6.0, -6.0).astype(np.float32) for radius in (8, 9, 14, 18, 20)}
    shares = [0.0 if (say := Say.of([(odds, disc(20))])) is None else say.share for odds in sharp.values()]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0 < shares[2] < SHARE
    assert shares[-1] == SHARE
    assert Say.of([]) is None


@pytest.mark.parametrize("drawn", [14, 20, 24])
def test_outlines_tighter_or_wider_than_its_own_are_expected_elsewhere_too(drawn: int) -> None:
    say = Say.of([(cone(20), disc(drawn))])
    assert say is not None
    expected = np.sign(drawn - 20) * 0.5 * 0.2 * abs(drawn - 20)
    assert say.shift == pytest.approx(expected, abs=0.3)
    assert (say.shift == 0) == (drawn == 20)


def test_a_hint_decides_where_the_network_is_less_sure() -> None:
    logits = torch.tensor([[2.0, -2.0], [30.0, -1024.0]])
    hint = Hint(np.array([[-6.0, 6.0], [-6.0, 6.0]], np.float32), 0.5)
    assert (hint.blend(logits) > 0).tolist() == [[False, True], [True, False]]


def test_log_odds_fit_into_a_byte() -> None:
    odds = torch.linspace(-20, 20, 1001)
    back = torch.from_numpy(unpacked(packed(odds)))
    inside = odds.abs() <= MOST / STEPS
    torch.testing.assert_close(back[inside], odds[inside], atol=0.5 / STEPS + 1e-6, rtol=0)
    assert back.max() == -back.min() == MOST / STEPS


def test_a_segmenter_is_asked_about_one_slice_and_then_all(tiny_checkpoint: Path) -> None:
    segmenter = Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")
    volume = ct(COLUMN)
    guide = SegmenterGuide(segmenter, "tiny", volume)
    assert set(guide.on_slice(15)) == set(segmenter.header.labels)
    assert guide.on_slice(15) is guide.on_slice(15)
    odds = np.stack(list(guide.on_slice(15).values()))
    likeliest = segmenter.segment(volume, only=range(15, 16)).voxels[:, :, 15]
    ids = np.array(list(segmenter.header.labels.values()))
    found = likeliest > 0
    rows = np.searchsorted(ids, likeliest[found])
    np.testing.assert_array_equal(odds[:, found][rows, np.arange(len(rows))], odds[:, found].max(axis=0))
    assert found.any()
    assert odds[:, ~found].max() <= 0, "the background has half at least"
    name = next(iter(segmenter.header.labels))
    whole = guide.everywhere(name, lambda: None)
    outlined = segmenter.segment(volume, [name]).voxels == segmenter.header.labels[name]
    assert unpacked(whole[outlined]).min() >= np.log(0.5) - 0.1, "the likeliest of three has a third at least"
    assert (outlined[whole > 0]).all()
    assert outlined.any()


def test_where_a_segmenter_agrees_other_tissue_is_the_object_too() -> None:
    """Teeth in a jaw are no end of it for who knows the jaw."""
    jaw = cylinder(8, 10, 30)
    voxels = np.where(jaw, 100, -100).astype(np.int16)
    voxels[:, :, 18:24][jaw[:, :, 18:24]] = 1500
    volume = Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0]))
    alone, helped = (Propagation(volume, FakeSam2(), guides=each) for each in ([], [Known(jaw=jaw)]))
    for session in (alone, helped):
        session.put(1, {14: Seed(jaw[:, :, 14])})
    assert last(found(alone)) == 17
    assert last(found(helped)) == 29
