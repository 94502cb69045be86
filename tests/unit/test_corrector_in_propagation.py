"""The 3D corrector in a propagation: when it is asked, what it is shown, and what its answers make void."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from one_ball import HEADER, Mask, Y, Z, ball, odds, volume

from fake_sam2 import FakeSam2
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.errors import Cancelled
from polycl.propagate.guides import SegmenterGuide
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.segmenter import Segmenter
from polycl.volume import Volume

pytestmark = pytest.mark.unit


class Upper(Segmenter):
    """Finds but half of the ball."""

    def __init__(self) -> None:
        self.asked = 0

    def likelihoods(self, volume: Volume, z: int) -> dict[str, Any]:
        return {"liver": odds(ball(10) & (Y > 17))[:, :, z]}

    def likelihood(self, volume: Volume, label: str, progress: Any = None) -> NDArray[np.int8]:
        return odds(ball(10) & (Y > 17))


class Told(Corrector):
    """Finds the ball, whatever it is given, once a slice is annotated."""

    def __init__(self, header: CorrectorHeader = HEADER) -> None:
        self.header, self.given = header, []

    def corrected(
        self, volume: Volume, found: Any, annotated: Mapping[int, Mask], check: Any = None
    ) -> NDArray[np.int8]:
        self.given.append({z: mask.copy() for z, mask in annotated.items()})
        return odds(ball(10), 7)


class Learning(Told):
    """Finds less with each slice that is annotated."""

    def corrected(
        self, volume: Volume, found: Any, annotated: Mapping[int, Mask], check: Any = None
    ) -> NDArray[np.int8]:
        super().corrected(volume, found, annotated, check)
        return odds(ball(11.5 - 1.5 * len(annotated)), 7)


class TestInPropagation:
    def session(self, correctors: list[Corrector], seed: Mask, **how: Any) -> Propagation:
        image = volume(ball(10) | (Y > 30))
        guide = SegmenterGuide(Upper(), "tiny", image, correctors)
        session = Propagation(image, FakeSam2(), guides=[guide], parameters=PropagateParameters(**how))
        session.put(1, {12: Seed(seed)})
        return session

    def test_an_object_that_its_segmenter_has_but_half_of_is_recognised_and_corrected(self) -> None:
        told = Told()
        session = self.session([told], ball(10)[:, :, 12])
        session.run()
        assert session.recognised[1].label == "liver"
        np.testing.assert_array_equal(session.recognised[1].likelihood, odds(ball(10), 7))
        assert [list(slices) for slices in told.given] == [[12]]
        np.testing.assert_array_equal(told.given[0][12], ball(10)[:, :, 12])

    def test_a_point_at_which_the_network_finds_nothing_is_not_shown_as_absence(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Told()
        session = self.session([told], ball(10)[:, :, 12])
        nothing = np.zeros((40, 36), dtype=bool)
        monkeypatch.setattr("polycl.propagate.group.Group._prompted_plane", lambda *_: nothing)
        session.put(1, {14: Seed(points=np.array([[20.0, 18.0]]), labels=np.array([1]))})
        session.run()
        assert [list(slices) for slices in told.given] == [[12]]

    def test_a_later_correction_does_not_ask_it_again(self) -> None:
        told = Told()
        session = self.session([told], ball(10)[:, :, 12])
        session.run()
        session.put(1, {14: Seed(ball(8)[:, :, 14])})
        session.run()
        assert len(told.given) == 1

    def test_an_annotation_that_is_redrawn_is_shown_to_it_anew(self) -> None:
        told = Told()
        session = self.session([told], ball(10)[:, :, 12], appearance=0.0)
        session.run()
        session.put(1, {16: Seed(ball(10)[:, :, 16])})
        session.run()
        redrawn = (ball(10) & ~ball(5))[:, :, 12]
        session.put(1, {12: Seed(redrawn)})
        again = session.run()
        assert [sorted(slices) for slices in told.given] == [[12], [12, 16]]
        np.testing.assert_array_equal(told.given[1][12], redrawn)
        fresh = self.session([Told()], redrawn, appearance=0.0)
        fresh.put(1, {16: Seed(ball(10)[:, :, 16])})
        np.testing.assert_array_equal(again.voxels, fresh.run().voxels)

    @pytest.mark.parametrize("through", [True, False], ids=["done", "cancelled"])
    def test_who_takes_a_redrawn_slice_back_has_the_first_answer_again(self, through: bool) -> None:
        told = Learning()
        session = self.session([told], ball(10)[:, :, 12], appearance=0.0, tissue=0.0)
        session.run()
        session.put(1, {16: Seed(ball(10)[:, :, 16])})
        first = session.run().voxels
        session.put(1, {12: Seed((ball(10) & ~ball(5))[:, :, 12])})
        asked = iter([False, False, not through])  # at the second seed, at the answer, at the first slice
        if through:
            assert (session.run().voxels != first).any()
        else:
            with pytest.raises(Cancelled):
                session.run(cancelled=lambda: len(told.given) > 1 and next(asked))
        assert len(told.given) == 2
        session.put(1, {12: Seed(ball(10)[:, :, 12])})
        np.testing.assert_array_equal(session.run().voxels, first)
        assert len(told.given) == 2

    def test_progress_counts_what_a_new_answer_makes_void(self) -> None:
        session, steps = self.session([Learning()], ball(10)[:, :, 12]), []
        session.run()
        session.put(1, {16: Seed(ball(10)[:, :, 16])})
        session.run()
        session.put(1, {12: Seed((ball(10) & ~ball(5))[:, :, 12])})
        session.run(lambda done, total: steps.append((done, total)))
        assert all(done <= total for done, total in steps)
        assert steps[-1][0] == steps[-1][1]

    def test_what_it_answers_to_a_redrawn_annotation_counts_for_all_runs(self) -> None:
        class Follows(Told):
            def corrected(
                self, volume: Volume, found: Any, annotated: Mapping[int, Mask], check: Any = None
            ) -> NDArray[np.int8]:
                super().corrected(volume, found, annotated, check)
                return odds(ball(10) & ((annotated[12].sum() > 250) | (Z > 9)), 7)

        whole, redrawn = ball(10)[:, :, 12], (ball(10) & ~ball(5))[:, :, 12]
        sessions = [self.session([Follows()], seed, appearance=0.0) for seed in (whole, redrawn)]
        for session in sessions:
            session.put(1, {10: Seed(ball(10)[:, :, 10])})
            session.run()
        sessions[0].put(1, {12: Seed(redrawn)})
        np.testing.assert_array_equal(sessions[0].run().voxels, sessions[1].run().voxels)

    def test_something_else_is_not(self) -> None:
        told = Told()
        session = self.session([told], Y[:, :, 12] > 31)
        session.run()
        assert (session.recognised, told.given) == ({}, [])

    def test_nor_is_what_it_has_not_learned(self) -> None:
        told = Told(HEADER.model_copy(update={"labels": ("spleen",)}))
        session = self.session([told], ball(10)[:, :, 12])
        session.run()
        assert told.given == []
