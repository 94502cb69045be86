"""Outlines of slices: what tells how they follow the CT, what is made again, and which label has a voxel."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl.errors import Cancelled
from polycl.propagate import outlines
from polycl.propagate.features import Scene
from polycl.propagate.frames import FrameGrid, Region
from polycl.propagate.guides import Guides, Recognised
from polycl.propagate.outlines import Annotated, Outline, Outliner, paint
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.runs import Mark
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.sam import EmbeddingCache
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SIDE, DEPTH = 64, 16
X, Y = np.indices((SIDE, SIDE))
Mask = NDArray[np.bool_]


def disc(radius: float) -> Mask:
    return np.asarray(np.hypot(X - 31, Y - 32) < radius)


def ct(radius: float = 20, depth: int = DEPTH) -> Volume:
    planes = [np.where(disc(radius), 100.0 + 4 * z, 0.0) for z in range(depth)]
    noise = np.random.default_rng(0).normal(0, 15, (SIDE, SIDE, depth))
    return Volume((np.stack(planes, axis=2) + noise).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often slices are tried, and outlined by their looks."""
    calls: Counter[str] = Counter()
    for name in ("contour", "tried"):
        original = getattr(outlines, name)

        def counting(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(outlines, name, counting)
    return calls


def outliner(known: Mask | None = None, **how: Any) -> Outliner:
    engine, guides = FakeSam2(), Guides()
    if known is not None:
        guides.recognised[1] = recognised(known)
    scene = Scene(ct(), "ct", engine, engine.frames, EmbeddingCache(1 << 20), PropagateParameters(**how), guides)
    return Outliner(scene, FrameGrid(Region(0, 0, SIDE, SIDE), engine.size, (SIDE, SIDE)))


def recognised(known: Mask) -> Recognised:
    odds = np.where(known[:, :, None], 100, -100).astype(np.int8)
    return Recognised("known", "organ", np.repeat(odds, DEPTH, axis=2), frozenset())


def frame(mask: Mask) -> torch.Tensor:
    """Logits of masks, which have a quarter of a frame's pixels a side; frames run against the axes."""
    logits = torch.from_numpy(np.where(mask.T[::-1, ::-1], 6.0, -6.0).astype(np.float32))
    return torch.nn.functional.avg_pool2d(logits[None, None], 4)[0, 0]


SHOWN = {Mark(8, 1): Annotated(disc(20), disc(20), None)}


def areas(made: dict[int, Outline]) -> dict[int, int]:
    return {z: int((one.logits > 0).sum()) for z, one in made.items()}


def test_nothing_joins_an_object_that_is_small_beside_the_next_annotated_slice() -> None:
    found = {8: frame(disc(20)), 10: frame(disc(16)), 12: frame(disc(13))}
    plain = areas(outliner(edges=False, appearance=0.0).outlines(1, found, SHOWN, {}, lambda: None))
    moved = areas(outliner(edges=False).outlines(1, found, SHOWN, {}, lambda: None))
    assert moved[10] > 1.1 * plain[10]
    assert moved[12] == plain[12]
    assert moved[8] == plain[8], "what was annotated stays"


def test_who_cancels_is_heard_and_what_was_made_is_kept(counted: Counter[str]) -> None:
    found, made = {z: frame(disc(18)) for z in range(DEPTH)}, outliner()
    many = {z + DEPTH * n: logits for z, logits in found.items() for n in (0, 1)}  # more than are made at a time
    made.scene = replace(made.scene, volume=ct(depth=2 * DEPTH))
    times = iter(range(10))

    def stop() -> None:
        if next(times) == 2:  # once for what is tried, once for the first slices
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        made.outlines(1, many, SHOWN, {}, stop)
    assert counted == {"tried": 1, "contour": 15}, "not the annotated one"
    again = areas(made.outlines(1, many, SHOWN, {}, lambda: None))
    assert counted == {"tried": 1, "contour": 31}
    fresh = outliner()
    fresh.scene = made.scene
    assert again == areas(fresh.outlines(1, many, SHOWN, {}, lambda: None))


def test_edges_are_tried_beside_slices_that_are_not_annotated_alone(counted: Counter[str]) -> None:
    shown = {Mark(z, z): Annotated(disc(20), disc(20), None) for z in range(10)}
    heard = []
    outliner().outlines(1, {z: frame(disc(19)) for z in range(12)}, shown, {}, lambda: heard.append(counted["tried"]))
    assert counted["tried"] == 1, "the last of them, for the two slices above"
    every_other = {mark: one for mark, one in shown.items() if mark.z % 2}
    heard.clear()
    outliner().outlines(
        1, {z: frame(disc(19)) for z in range(12)}, every_other, {}, lambda: heard.append(counted["tried"])
    )
    assert heard == [1, 5, 6], "who cancels is heard between some and the next"


def test_a_point_tells_nothing_of_edges_and_hides_nobody_who_does() -> None:
    found = {z: frame(disc(18)) for z in (8, 12, 14)}
    point = {Mark(12, 2): Annotated(disc(18), None, None)}
    plain = outliner(appearance=0.0, edges=False).outlines(1, found, SHOWN | point, {}, lambda: None)
    alone = outliner(appearance=0.0).outlines(1, found, SHOWN, {}, lambda: None)
    both = outliner(appearance=0.0).outlines(1, found, SHOWN | point, {}, lambda: None)
    assert (plane(alone, 14) != plane(plain, 14)).any()
    for z in (12, 14):
        np.testing.assert_array_equal(plane(both, z), plane(alone, z))


def test_threads_do_not_call_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start threads of its own in each of them."""
    callers = []
    for name in ("shown", "restore", "masks"):
        original = getattr(FrameGrid, name)

        def noted(*args: Any, original: Any = original, **options: Any) -> Any:
            callers.append(threading.current_thread())
            return original(*args, **options)

        monkeypatch.setattr(FrameGrid, name, noted)
    outliner(disc(18)).outlines(1, FOUND, SHOWN, {10: 0.7, 12: 0.7}, lambda: None)
    assert set(callers) == {threading.main_thread()}


def test_no_more_is_kept_than_there_is_memory_for(counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found, little = {z: frame(disc(18)) for z in range(DEPTH)}, outliner(state_mib=1)
    few = areas(little.outlines(1, found, SHOWN, {}, lambda: None))
    assert counted.pop("contour") == DEPTH - 1
    monkeypatch.setattr(outlines, "_bytes", lambda outline: 1 << 18)  # so that there is memory for four
    assert areas(little.outlines(1, found, SHOWN, {}, lambda: None)) == few
    assert not counted["contour"]
    assert areas(little.outlines(1, found, SHOWN, {}, lambda: None)) == few
    assert counted.pop("contour") == DEPTH - 1 - 4
    little.outlines(2, found, SHOWN, {}, lambda: None)
    counted.clear()
    little.outlines(2, found, SHOWN, {}, lambda: None)
    assert counted.pop("contour") == DEPTH - 1, "others have it all"
    little.forget(1)
    little.outlines(2, found, SHOWN, {}, lambda: None)
    counted.clear()
    little.outlines(2, found, SHOWN, {}, lambda: None)
    assert counted.pop("contour") == DEPTH - 1 - 4


def plane(made: dict[int, Outline], z: int) -> Mask:
    (x0, x1, y0, y1), logits = made[z]
    whole = np.zeros((SIDE, SIDE), dtype=bool)
    whole[x0:x1, y0:y1] = logits > 0
    return whole


FOUND = {8: frame(disc(20)), 10: frame(disc(17)), 12: frame(disc(17))}


@pytest.mark.parametrize(
    ("found", "shown", "shares"),
    [
        (FOUND | {10: frame(disc(16))}, SHOWN, {}),
        (FOUND | {8: frame(disc(28))}, SHOWN, {}),
        (FOUND, SHOWN | {Mark(12, 2): Annotated(disc(25), None, None)}, {}),
        (FOUND, {Mark(8, 2): Annotated(disc(26), disc(26), None)}, {}),
        (FOUND, SHOWN, {10: 0.7}),
    ],
    ids=["found", "joins", "another slice", "redrawn", "a segmenter's share"],
)
def test_what_changes_an_outline_has_it_made_again(found: Any, shown: Any, shares: Any) -> None:
    known = disc(17) & (np.abs(X - 31) > 1)
    fresh, kept = outliner(known), outliner(known)
    before = plane(kept.outlines(1, FOUND, SHOWN, {}, lambda: None), 10)
    expected = plane(fresh.outlines(1, found, shown, shares, lambda: None), 10)
    assert (before != expected).any()
    np.testing.assert_array_equal(plane(kept.outlines(1, found, shown, shares, lambda: None), 10), expected)


def test_other_edges_have_it_made_again() -> None:
    redrawn = {Mark(8, 2): Annotated(disc(12), disc(12), None)}
    kept = outliner(appearance=0.0)
    before = plane(kept.outlines(1, FOUND, SHOWN, {}, lambda: None), 10)
    expected = plane(outliner(appearance=0.0).outlines(1, FOUND, redrawn, {}, lambda: None), 10)
    assert (before != expected).any()
    np.testing.assert_array_equal(plane(kept.outlines(1, FOUND, redrawn, {}, lambda: None), 10), expected)


def test_edges_are_tried_again_with_another_segmenter(counted: Counter[str]) -> None:
    kept = outliner(disc(17))
    kept.outlines(1, FOUND, SHOWN, {}, lambda: None)
    kept.scene.guides.recognised[1] = recognised(disc(20))
    kept.outlines(1, FOUND, SHOWN, {}, lambda: None)
    assert counted["tried"] == 2


def test_what_another_segmenter_tells_has_it_made_again() -> None:
    one, other = (disc(17) & (np.abs(axis - 31) > 1) for axis in (X, Y))
    kept = outliner(one)
    before = plane(kept.outlines(1, FOUND, SHOWN, {10: 0.7}, lambda: None), 10)
    kept.scene.guides.recognised[1] = recognised(other)
    expected = plane(outliner(other).outlines(1, FOUND, SHOWN, {10: 0.7}, lambda: None), 10)
    np.testing.assert_array_equal(plane(kept.outlines(1, FOUND, SHOWN, {10: 0.7}, lambda: None), 10), expected)
    assert (before != expected).any()


def test_edges_are_followed_as_the_annotated_slices_next_to_it_tell() -> None:
    shown = {Mark(4, 1): Annotated(disc(20), disc(20), None), Mark(12, 2): Annotated(disc(12), disc(12), None)}
    found = {z: frame(disc(18)) for z in (3, 4, 12, 13)}
    both = outliner(appearance=0.0).outlines(1, found, shown, {}, lambda: None)
    for z, mark in ((3, Mark(4, 1)), (13, Mark(12, 2))):
        alone = outliner(appearance=0.0).outlines(1, found, {mark: shown[mark]}, {}, lambda: None)
        np.testing.assert_array_equal(plane(both, z), plane(alone, z))
    assert (plane(both, 3) != plane(both, 13)).any()


def test_the_surest_has_the_voxel() -> None:
    out = np.zeros((5, 5, 2), np.uint8)
    sure, unsure = np.full((3, 3), 2.0, np.float32), np.full((2, 5), 1.0, np.float32)
    sure[0] = -1
    paint([(7, {1: Outline((0, 3, 0, 3), sure)}), (2, {1: Outline((1, 3, 0, 5), unsure)})], out)
    assert not out[:, :, 0].any()
    assert out[:, :, 1].tolist() == [[0] * 5, [7, 7, 7, 2, 2], [7, 7, 7, 2, 2], [0] * 5, [0] * 5]


class TestKept:
    """What is outlined how often in a session."""

    def test_a_correction_outlines_again_what_it_changes(self, counted: Counter[str]) -> None:
        session = Propagation(ct(), FakeSam2())
        session.put(1, {4: Seed(disc(19))})
        session.run()
        assert counted == {"contour": DEPTH - 1, "tried": 1}
        session.put(1, {10: Seed(disc(20))})
        corrected = session.run().voxels
        assert counted == {"contour": 2 * DEPTH - 1 - 6, "tried": 2}, "not below the first"
        session.run()
        assert counted == {"contour": 2 * DEPTH - 1 - 6, "tried": 2}
        fresh = Propagation(ct(), FakeSam2())
        fresh.put(1, {4: Seed(disc(19)), 10: Seed(disc(20))})
        np.testing.assert_array_equal(corrected, fresh.run().voxels)

    def test_a_seed_that_is_taken_back_leaves_nothing(self) -> None:
        session = Propagation(ct(), FakeSam2())
        session.put(1, {4: Seed(disc(19))})
        first = session.run().voxels
        session.put(1, {10: Seed(disc(12))})
        assert (session.run().voxels != first).any()
        session.remove(1, 10)
        np.testing.assert_array_equal(session.run().voxels, first)
        session.put(1, {4: Seed(disc(16))})
        fresh = Propagation(ct(), FakeSam2())
        fresh.put(1, {4: Seed(disc(16))})
        np.testing.assert_array_equal(session.run().voxels, fresh.run().voxels)
