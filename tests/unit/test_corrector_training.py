"""Training of the 3D corrector: examples, runs that are interrupted, and `polycl train-corrector`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from one_ball import HEADER, WHERE, Z, ball, corrector, odds, volume

from polycl.checkpoints import load_as
from polycl.corrector.examples import Examples, Patient, annotated
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.corrector.network import CorrectorNetwork
from polycl.corrector.training import Recipe, Report, score, train
from polycl.errors import InputError
from polycl.volume import write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


def patient() -> Patient:
    """Of whom the segmenter finds but the upper half."""
    return Patient(volume(ball(10)), {"liver": odds(ball(10) & (Z > 12))}, {"liver": ball(10)})


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
