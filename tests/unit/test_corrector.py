"""The 3D network that corrects what a segmenter finds, by annotated slices: grids, training, and its use."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl import checkpoints
from polycl.checkpoints import load_as
from polycl.corrector.examples import Examples, Patient, annotated
from polycl.corrector.grids import annotated_at, resampled, shape_at
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.corrector.loading import load_correctors
from polycl.corrector.network import CorrectorNetwork
from polycl.corrector.training import Recipe, Report, score, train
from polycl.devices import choose
from polycl.errors import Cancelled, InputError, ModelError
from polycl.odds import STEPS
from polycl.propagate.guides import SegmenterGuide
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]
Mask = NDArray[np.bool_]
HEADER = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(4.0, 4.0, 4.0), features=(4, 4, 4, 4, 4, 4))
WHERE = choose("cpu", "fp32")
X, Y, Z = np.indices((40, 36, 24))


def ball(radius: float, z: int = 12) -> Mask:
    inside: Mask = (X - 20) ** 2 + (Y - 18) ** 2 + (2 * (Z - z)) ** 2 < radius**2
    return inside


def volume(bright: Mask) -> Volume:
    return Volume(np.where(bright, 60, -100).astype(np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))


def odds(mask: Mask, sure: float = 3.0) -> NDArray[np.int8]:
    return np.where(mask, sure * STEPS, -sure * STEPS).astype(np.int8)


def corrector(network: CorrectorNetwork | None = None) -> Corrector:
    return Corrector(HEADER, network or CorrectorNetwork(HEADER), WHERE)


def patient() -> Patient:
    """Of whom the segmenter finds but the upper half."""
    return Patient(volume(ball(10)), {"liver": odds(ball(10) & (Z > 12))}, {"liver": ball(10)})


class TestGrids:
    def test_what_is_even_stays_so_at_any_spacing(self) -> None:
        for shape in ((40, 36, 24), (20, 18, 24), (50, 11, 7), (1, 1, 1)):
            even = resampled(torch.full((2, 40, 36, 24), 7.5), shape)
            assert even.shape == (2, *shape)
            torch.testing.assert_close(even, torch.full_like(even, 7.5))

    def test_places_stay_along_each_axis(self) -> None:
        ramps = torch.from_numpy(np.stack([X, Y, Z]).astype(np.float32))
        coarse = resampled(ramps, (20, 18, 12))
        inner = coarse[:, 2:-2, 2:-2, 2:-2]
        expected = torch.from_numpy(np.indices((20, 18, 12)).astype(np.float32))[:, 2:-2, 2:-2, 2:-2] * 2 + 0.5
        torch.testing.assert_close(inner, expected, atol=1e-3, rtol=0)

    def test_noise_is_averaged_where_voxels_grow(self) -> None:
        noise = torch.randn(1, 40, 36, 24, generator=torch.Generator().manual_seed(0))
        assert float(resampled(noise, (10, 9, 6)).std()) < 0.25

    def test_shapes_are_of_the_same_extent(self) -> None:
        assert shape_at((40, 36, 24), (2.0, 2.0, 4.0), (4.0, 4.0, 4.0)) == (20, 18, 24)
        assert shape_at((2, 2, 1), (0.5, 0.5, 1.0), (4.0, 4.0, 4.0)) == (1, 1, 1)

    @limits(max_examples=40, deadline=None)
    @given(depth=st.integers(1, 90), seen=st.integers(1, 60), share=st.floats(0, 1))
    def test_an_annotated_slice_lies_where_it_was(self, depth: int, seen: int, share: float) -> None:
        z = min(depth - 1, int(share * depth))
        shown = annotated_at({z: ball(8)[:, :, 12]}, depth, (20, 18, seen))[0]
        [at] = np.flatnonzero((shown != 0).any(dim=0).any(dim=0))
        assert at / seen <= (z + 0.5) / depth <= (at + 1) / seen
        assert set(shown[:, :, at].unique().tolist()) == {-1.0, 1.0}
        assert int((shown == 1).sum()) * 4 == pytest.approx(ball(8)[:, :, 12].sum(), rel=0.1)

    def test_of_two_slices_on_one_of_its_voxels_the_nearer_to_the_middle_counts_in_any_order(self) -> None:
        one, other = ball(8)[:, :, 12], ball(4)[:, :, 12]
        for slices in ({4: one, 5: other}, {5: other, 4: one}):  # of 3 to 5 in one, whose middle is 4
            shown = annotated_at(slices, 9, (20, 18, 3))
            torch.testing.assert_close(shown, annotated_at({4: one}, 9, (20, 18, 3)))

    def test_what_is_too_small_for_its_voxels_is_still_shown(self) -> None:
        dot = np.zeros((40, 36), dtype=bool)
        dot[20, 18] = True
        shown = annotated_at({0: dot}, 1, (10, 9, 1))[0, :, :, 0]
        assert torch.nonzero(shown == 1).tolist() == [[5, 4]]


class TestInference:
    @pytest.mark.parametrize("shape", [(4, 4, 1), (60, 60, 1), (16, 16, 16)])
    def test_small_volumes_are_corrected_too(self, shape: tuple[int, int, int]) -> None:
        mask = np.ones(shape, dtype=bool)
        mask[: shape[0] // 2] = False
        image = Volume(np.zeros(shape, np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
        found = odds(mask)
        np.testing.assert_array_equal(corrector().corrected(image, found, {0: mask[:, :, 0]}), found)

    def test_new_weights_change_nothing(self) -> None:
        found = odds(ball(10))
        after = corrector().corrected(volume(ball(10)), found, {12: ball(10)[:, :, 12]})
        np.testing.assert_array_equal(after, found)
        assert after.dtype == np.int8

    def test_what_is_far_from_all_that_was_found_stays(self) -> None:
        wide = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 0.5), features=(4,) * 6)
        network = CorrectorNetwork(wide)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found = odds(ball(4), 2)
        after = Corrector(wide, network, WHERE).corrected(volume(ball(4)), found, {})
        assert after[20, 18, 12] > found[20, 18, 12]
        assert after[20, 23, 12] > found[20, 23, 12]
        np.testing.assert_array_equal(after[:, :4], found[:, :4])

    def test_where_in_the_volume_it_lies_makes_no_difference(self) -> None:
        fine = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 1.0), features=(4,) * 6)
        network = CorrectorNetwork(fine)
        torch.nn.init.normal_(network.unet.final_conv.weight, generator=torch.Generator().manual_seed(0))
        one = Corrector(fine, network, WHERE)
        image, found, drawn = volume(ball(6, 5)), odds(ball(4, 5)), ball(6, 5)[:, :, 6]
        after = one.corrected(image, found, {6: drawn})
        hollow = one.corrected(image, found, {6: drawn & ~ball(3, 5)[:, :, 6]})
        assert (after != hollow).any(), "the outline tells"
        ends = ((11, 3), (2, 9), (7, 1))
        moved = Volume(np.pad(image.voxels, ends, constant_values=-100), image.affine)
        elsewhere = one.corrected(moved, np.pad(found, ends, constant_values=-48), {13: np.pad(drawn, ends[:2])})
        np.testing.assert_array_equal(elsewhere, np.pad(after, ends, constant_values=-48))

    def test_it_looks_at_what_was_annotated_where_nothing_was_found(self) -> None:
        fine = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(0.5, 0.5, 0.5), features=(4,) * 6)
        network = CorrectorNetwork(fine)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found, drawn = odds(ball(4), 2), np.roll(ball(4)[:, :, 12], 9, axis=0)
        after = Corrector(fine, network, WHERE).corrected(volume(ball(4)), found, {20: drawn})
        assert (after[:, :, 20][drawn] > found[:, :, 20][drawn]).all()

    def test_what_is_far_from_all_that_was_annotated_stays(self) -> None:
        long = Volume(np.full((8, 8, 120), 60.0, np.float32), np.diag([4.0, 4.0, 5.0, 1.0]))
        network = CorrectorNetwork(HEADER)
        torch.nn.init.constant_(network.unet.final_conv.bias, 5.0)
        found, drawn = odds(np.ones(long.shape, bool)), np.ones((8, 8), bool)
        changed = (corrector(network).corrected(long, found, {60: drawn}) != found).any(axis=(0, 1))
        assert changed[11:110].all()
        assert not changed[:10].any()
        assert not changed[111:].any()
        assert (corrector(network).corrected(long, found, {}) != found).all(), "nothing was annotated"

    def test_who_stops_it_is_heard_at_each_layer_and_not_later(self) -> None:
        calls, one, image, found = [], corrector(), volume(ball(10)), odds(ball(10))

        def stop() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            one.corrected(image, found, {12: ball(10)[:, :, 12]}, stop)
        assert len(calls) == 3
        one.corrected(image, found, {12: ball(10)[:, :, 12]})
        assert len(calls) == 3, "nothing of it stays"
        one.corrected(image, found, {12: ball(10)[:, :, 12]}, lambda: calls.append(1))
        assert len(calls) > 15

    def test_nothing_found_and_nothing_annotated_stays(self) -> None:
        found = odds(ball(10) & False)
        np.testing.assert_array_equal(corrector().corrected(volume(ball(10)), found, {}), found)

    def test_it_knows_the_labels_of_its_segmenter_alone(self) -> None:
        one = corrector()
        assert one.knows("tiny", "liver")
        assert not one.knows("tiny", "spleen")
        assert not one.knows("other", "liver")

    def test_values_that_are_no_numbers_are_borne(self) -> None:
        image = Volume(np.where(ball(10), np.nan, -100).astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0]))
        network = CorrectorNetwork(HEADER)
        torch.nn.init.normal_(network.unet.final_conv.weight)
        after = corrector(network).corrected(image, odds(ball(10)), {12: ball(10)[:, :, 12]})
        assert len(np.unique(after)) > 2

    def test_loading_refuses_what_is_none(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        path = tmp_path / "c.safetensors"
        sha256 = checkpoints.save(path, CorrectorNetwork(HEADER).state_dict(), HEADER)
        assert Corrector.load(path, sha256=sha256, device="cpu").header == HEADER
        for refused, options in ((tiny_checkpoint, {}), (path, {"sha256": "0" * 64}), (tmp_path / "no", {})):
            with pytest.raises(ModelError):
                Corrector.load(refused, device="cpu", **options)
        other = HEADER.model_copy(update={"features": (8,) * 6})
        checkpoints.save(path, CorrectorNetwork(HEADER).state_dict(), other)
        with pytest.raises(ModelError, match="do not fit"):
            Corrector.load(path, device="cpu")

    def test_an_unusable_one_is_left_out_with_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        here = Settings(state=tmp_path / "state", weights=tmp_path, device="cpu")
        checkpoints.save(tmp_path / "good.safetensors", CorrectorNetwork(HEADER).state_dict(), HEADER)
        other = HEADER.model_copy(update={"features": (8,) * 6})
        checkpoints.save(tmp_path / "bad.safetensors", CorrectorNetwork(HEADER).state_dict(), other)
        for name, wrong in (("negative", {"features": (-1,) * 6}), ("flat", {"spacing": (0.0, 4.0, 4.0)})):
            impossible = HEADER.model_copy(update=wrong)
            checkpoints.save(tmp_path / f"{name}.safetensors", CorrectorNetwork(HEADER).state_dict(), impossible)
        checkpoints.save(tmp_path / "c@2.safetensors", CorrectorNetwork(HEADER).state_dict(), HEADER)
        assert [one.header for one in load_correctors(here, {"tiny"})] == [HEADER]
        assert "do not fit" in caplog.text
        assert load_correctors(here, {"nobody"}) == []


class TestExamples:
    def test_they_are_the_same_in_each_run_and_hold_what_was_annotated(self) -> None:
        one, again = (Examples([patient()], HEADER, size=16, items=8, seed=4) for _ in range(2))
        for index in range(8):
            seen, mask = one[index]
            assert seen.shape == (4, 16, 16, 16)
            assert mask.shape == (1, 16, 16, 16)
            torch.testing.assert_close(seen, again[index][0])
            given_slice = seen[3]
            assert given_slice.abs().max() <= 1
            sure = given_slice.abs() > 0.9
            agree = (given_slice[sure] > 0) == (mask[0][sure] > 0)
            assert agree.float().mean() > 0.7  # a slice may be annotated inexactly
        assert not torch.equal(one[0][0], one[1][0])

    def test_slices_are_annotated_mostly_near_the_middle(self) -> None:
        random = np.random.default_rng(0)
        drawn = [annotated(ball(12), (2.0, 2.0, 4.0), random) for _ in range(300)]
        places = np.array([z for slices in drawn for z in slices])
        assert set(places) <= set(np.flatnonzero(ball(12).any(axis=(0, 1))))
        assert abs(places.mean() - 12) < 0.5
        assert {len(slices) for slices in drawn} == {1, 2}
        exact = [np.array_equal(mask, ball(12)[:, :, z]) for slices in drawn for z, mask in slices.items()]
        assert 0.6 < np.mean(exact) < 0.9
        assert all(mask.any() for slices in drawn for mask in slices.values())


class TestTraining:
    RECIPE = Recipe(steps=6, batch=1, size=32, validate_every=3, keep_every=1, warm_up=1, average=0.5)

    @pytest.mark.slow
    def test_it_learns_to_add_what_the_segmenter_misses(self, tmp_path: Path) -> None:
        losses: list[float] = []
        recipe = Recipe(
            steps=40,
            batch=1,
            size=32,
            learning_rate=0.03,
            validate_every=20,
            warm_up=1,
            average=0.8,
            keep_every=20,
            seed=3,  # with four features a layer, others need more steps
        )

        def report(now: Report) -> None:
            losses.append(now.loss)

        path = tmp_path / "c.safetensors"
        best = train(HEADER, [patient()], [patient()], path, recipe=recipe, where=WHERE, report=report)
        assert losses[-1] < losses[0]
        learned = Corrector.load(path, device="cpu", precision="fp32")
        assert score(learned, [patient()]) == pytest.approx(best, abs=0.02)  # weights are stored as halves
        assert best > score(corrector(), [patient()]) + 0.05
        assert learned.header.provenance.figures["validation_dice"] == pytest.approx(best, abs=1e-4)

    @pytest.mark.slow
    def test_an_interrupted_run_ends_with_the_same_weights(self, tmp_path: Path) -> None:
        def run(path: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
            class Killed(Exception):
                pass

            def report(now: Report) -> None:
                if stop is not None and now.step >= stop:
                    raise Killed

            try:
                train(HEADER, [patient()], [patient()], path, recipe=self.RECIPE, where=WHERE, report=report)
            except Killed:
                assert path.with_suffix(".resume").is_file()
                return {}
            assert not path.with_suffix(".resume").exists()
            return load_as(CorrectorHeader, path)[1]

        whole = run(tmp_path / "whole.safetensors")
        assert run(tmp_path / "cut.safetensors", stop=3) == {}
        rest = run(tmp_path / "cut.safetensors")
        for name, one in whole.items():
            torch.testing.assert_close(rest[name], one)

    def test_a_loss_that_is_no_number_is_told(self, tmp_path: Path) -> None:
        broken = Patient(volume(ball(10)), {"liver": odds(ball(10))}, {"liver": ball(10)})
        start = {name: one * np.nan for name, one in CorrectorNetwork(HEADER).state_dict().items()}
        with pytest.raises(InputError, match="not finite"):
            train(HEADER, [broken], [], tmp_path / "c.safetensors", recipe=self.RECIPE, where=WHERE, start=start)
        assert not list(tmp_path.iterdir()), "nothing of it is kept, nor gone on from"


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


class TestCommand:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Path:
        for folder in ("images", "labels"):
            (tmp_path / "set" / folder).mkdir(parents=True)
        for name in ("one", "two"):
            image = volume(ball(10))
            write_volume(image, tmp_path / "set" / "images" / f"{name}.nii.gz")
            write_volume(image.with_voxels(ball(10).astype(np.uint8)), tmp_path / "set" / "labels" / f"{name}.nii.gz")
        return tmp_path / "set"

    @pytest.mark.slow
    def test_it_trains_and_goes_on_from_a_checkpoint(self, dataset: Path, tmp_path: Path, run: Run) -> None:
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        common = ["--segmenter", "tiny", "--target", "liver=1", "--train", "one", "--steps", 1, "--size", 32]
        code, out, err = run("train-corrector", dataset, "-o", first, "--validate", "two", *common)
        assert code == 0, err
        assert "best validation Dice" in out
        header, weights = load_as(CorrectorHeader, first)
        assert (header.segmenter, header.labels, header.provenance.data) == ("tiny", ("liver",), ("one",))
        assert {one.dtype for one in weights.values()} == {torch.float16}
        assert first.stat().st_size < 16e6
        code, _, err = run("train-corrector", dataset, "-o", second, "--start", first, *common)
        assert code == 0, err
        assert load_as(CorrectorHeader, second)[0].provenance.parent == "first.safetensors"
        code, out, err = run("models", "show", second)
        assert (code, '"segmenter": "tiny"' in out) == (0, True), err

    def test_it_refuses_what_cannot_work(self, dataset: Path, tmp_path: Path, run: Run, tiny_checkpoint: Path) -> None:
        output = tmp_path / "a.safetensors"
        usual = {"--segmenter": "tiny", "--target": "liver=1", "-o": output}
        for changed, message in (
            ({"-o": tmp_path / "a.pt"}, "must end in .safetensors"),
            ({"--segmenter": "nobody"}, "nobody"),
            ({"--target": "heart=1"}, "no label heart; its labels are liver, spleen"),
            ({"--target": "liver"}, "is no target"),
            ({"--target": "liver=9"}, "shows any of liver"),
            ({"--train": "three"}, "no image"),
            ({"--validate": "*"}, "held out"),
            ({"--size": 40}, "multiple of 16"),
            ({"--start": tiny_checkpoint}, "header"),
        ):
            options = [part for pair in (usual | changed).items() for part in pair]
            code, _, err = run("train-corrector", dataset, *options)
            assert (code, message in err) == (1, True), (changed, err)
            assert not output.exists()
