"""Two annotated slices between which the object is lost: it is one object if both directions then find the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fake_sam2 import FakeSam2, Told
from polycl.errors import Cancelled
from polycl.propagate.compose import agreement
from polycl.propagate.engine import Features, Recall, Tracked
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.runs import Mark, facing, plan
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.volume import Volume

pytestmark = pytest.mark.unit

SHAPE = (64, 56, 40)
X, Y, Z = np.indices(SHAPE)
Mask = NDArray[np.bool_]
DARK = range(11, 29)


def cylinder(x: float, low: int, high: int) -> Mask:
    inside: Mask = (np.hypot(X - x, Y - 25) < 4) & (low <= Z) & (high > Z)
    return inside


VESSEL = cylinder(30, 4, 36)
LESIONS = cylinder(22, 4, 11) | cylinder(38, 29, 36)
"""Both are to be seen on all slices but the dark ones, 36 mm of them, and annotated on two that lie 52 mm apart."""


def annotated(organ: Mask, engine: FakeSam2) -> Propagation:
    shown = organ.copy()
    shown[:, :, DARK.start : DARK.stop] = False
    image = Volume(np.where(shown, 100, -100).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    session = Propagation(image, engine, parameters=PropagateParameters(edges=False))
    session.put(1, {z: Seed(organ[:, :, z]) for z in (7, 33)})
    return session


def there(session: Propagation) -> list[int]:
    return np.flatnonzero((session.run().voxels == 1).any(axis=(0, 1))).tolist()


def test_what_is_found_alike_from_both_sides_is_one_object() -> None:
    engine = Told()
    session = annotated(VESSEL, engine)
    assert there(session) == list(range(4, 36))
    steps = len(engine.steps)
    assert there(session) == list(range(4, 36))
    assert len(engine.steps) == steps, "nothing is done again"


def test_what_is_not_is_two() -> None:
    engine = Told()
    session = annotated(LESIONS, engine)
    bright = [*range(4, DARK.start), *range(DARK.stop, 36)]
    assert there(session) == bright
    assert any(recall.there for step in engine.steps for recall in step), "it was tried"
    steps = len(engine.steps)
    session.put(1, {34: Seed(LESIONS[:, :, 34])})
    assert there(session) == bright
    assert not any(recall.there for step in engine.steps[steps:] for recall in step), "but once"


@pytest.mark.parametrize("organ", [VESSEL, LESIONS], ids=["one", "two"])
def test_who_cancels_a_trial_gets_the_same_later(organ: Mask) -> None:
    engine = Told()
    session = annotated(organ, engine)

    def trying() -> bool:
        return any(recall.there for step in engine.steps for recall in step)

    with pytest.raises(Cancelled):
        session.run(cancelled=trying)
    np.testing.assert_array_equal(session.run().voxels, annotated(organ, Told()).run().voxels)


def test_what_was_added_since_a_cancelled_trial_comes_first() -> None:
    """As regions may grow then, and in a trial they may not."""
    engine = Told()
    session = annotated(LESIONS, engine)
    with pytest.raises(Cancelled):
        session.run(cancelled=lambda: any(recall.there for step in engine.steps for recall in step))
    steps = len(engine.steps)
    session.put(1, {34: Seed(LESIONS[:, :, 34])})
    session.run()
    told = [{recall.there for recall in step} for step in engine.steps[steps:]]
    assert told[0] == {False}
    assert {True} in told
    assert {True, False} not in told


def test_a_trial_shows_no_larger_region() -> None:
    """What is taken for the object may be anything: here all of a frame."""

    class Bold(Told):
        def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
            found = super().track(features, recalls)
            everything = torch.ones(16, 16, dtype=torch.bool)
            return [
                self._tracked(everything) if recall.there else one for one, recall in zip(found, recalls, strict=True)
            ]

    engine = Bold()
    annotated(LESIONS, engine).run()
    assert engine.encoded <= SHAPE[2], "no slice was encoded again"


def test_progress_counts_the_trial() -> None:
    said: list[tuple[int, int]] = []
    annotated(VESSEL, Told()).run(lambda done, total: said.append((done, total)))
    done, total = said[-1]
    assert done == total
    assert [one for one, _ in said] == sorted(one for one, _ in said)


def test_runs_that_face_one_another() -> None:
    marks = [Mark(3, 1), Mark(9, 2), Mark(14, 3, present=False), Mark(20, 4), Mark(21, 5), Mark(30, 6)]
    pairs = facing(plan(1, marks, 0, 40, meet=0.6))
    assert [(up.start.z, down.start.z) for up, down in pairs] == [(3, 9), (21, 30)]
    assert all((up.step, down.step) == (1, -1) for up, down in pairs)


def test_agreement_counts_slices_that_either_lost() -> None:
    wide, half = torch.full((4, 4), 1.0), torch.full((4, 4), -1.0)
    half[:2] = 1.0
    assert agreement({1: wide, 2: wide}, {1: wide, 2: half}, {1, 2}) == pytest.approx((1 + 2 / 3) / 2)
    assert agreement({1: wide}, {2: wide}, {1, 2}) == 0
    assert agreement({1: wide}, {1: wide, 2: wide}, {1, 2}) == 0.5
    assert agreement({}, {}, set()) == 0
