"""Slices outlined by a segmenter that is told which classes are there, and learning from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polycl import checkpoints, devices
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.dataset import LabelledSlice
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.self_training import finetune_twice, outlined
from polycl.segmenter.training import Report, Schedule, TrainingData
from polycl.volume import Volume

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def slices() -> list[LabelledSlice]:
    ct = make_phantom(0, shape=(48, 40, 6), spacing=(8.0, 9.0, 30.0)).image
    unlabelled = np.zeros(ct.shape[:2], np.uint8)
    return [LabelledSlice(ct.voxels[:, :, z], unlabelled, (8.0, 9.0), "p", z) for z in range(ct.shape[2])]


def test_told_of_all_classes_the_outlines_are_the_segmenters(segmenter: Segmenter, slices: list[LabelledSlice]) -> None:
    found = outlined(segmenter, [(one, {1, 2}) for one in slices])
    for one in found:
        alone = Volume(one.hu[:, :, None], np.diag([*one.spacing, 30.0, 1.0]))
        np.testing.assert_array_equal(one.classes, segmenter.segment(alone, only=range(1)).voxels[:, :, 0])
    assert any(one.classes.any() for one in found)


def test_a_class_that_is_not_there_is_outlined_nowhere_and_known(
    segmenter: Segmenter, slices: list[LabelledSlice]
) -> None:
    for one in outlined(segmenter, [(one, {2}) for one in slices]):
        assert not (one.classes == 1).any()
        assert one.known is not None
        assert 1 in one.known


def test_a_class_that_is_there_and_was_not_found_stays_unknown(
    segmenter: Segmenter, slices: list[LabelledSlice]
) -> None:
    air = [LabelledSlice(np.full_like(one.hu, -1000), one.classes, one.spacing, "air", one.index) for one in slices]
    for one in outlined(segmenter, [(one, {1, 2}) for one in (*slices, *air)]):
        found = set(np.unique(one.classes).tolist()) - {0}
        assert set(one.known or ()) == found
    assert any(one.known != (1, 2) for one in outlined(segmenter, [(one, {1, 2}) for one in air]))


STEPS = 6


def twice(
    labelled: Sequence[LabelledSlice], unlabelled: Sequence[LabelledSlice], output: Path, stop: int | None = None
) -> dict[str, torch.Tensor]:
    """The weights after both rounds; the run is interrupted when `stop` steps are done."""

    def report(now: Report) -> None:
        assert now.steps == 2 * STEPS
        if now.step == stop:
            raise KeyboardInterrupt

    network = NetworkConfig(features=(4, 4, 4, 8, 8, 4), classes=3)
    finetune_twice(
        Header(network=network, preprocessing=Preprocessing(size=32, spacing=9.0), labels={"a": 1, "b": 2}),
        TrainingData(labelled, [], []),
        unlabelled,
        output,
        schedule=Schedule(STEPS, 2, warm_up=1, validate_every=3, learning_rate=1e-2),
        augmentation=Augmentation(),
        where=devices.choose("cpu", "fp32"),
        report=report,
    )
    return checkpoints.load(output)[1]


def painted(one: LabelledSlice, at: int) -> LabelledSlice:
    """The slice with class 1 in some place."""
    classes = np.zeros_like(one.classes)
    classes[at : at + 6, 12:20] = 1
    return replace(one, classes=classes)


def test_of_unlabelled_slices_only_what_is_in_them_counts(slices: list[LabelledSlice], tmp_path: Path) -> None:
    labelled, rest = [painted(slices[2], 20)], slices[3:]
    here = twice(labelled, [painted(one, 20) for one in rest], tmp_path / "here.safetensors")
    there = twice(labelled, [painted(one, 4) for one in rest], tmp_path / "there.safetensors")
    without = twice(labelled, rest, tmp_path / "without.safetensors")
    assert all(torch.equal(here[name], there[name]) for name in here), "where a class lies is not looked at"
    assert not all(torch.equal(here[name], without[name]) for name in here), "that it is there is"


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_both_rounds_go_on_where_they_were(slices: list[LabelledSlice], tmp_path: Path, stop: int) -> None:
    labelled, rest = [painted(slices[2], 20)], [painted(one, 20) for one in slices[3:]]
    whole = twice(labelled, rest, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        twice(labelled, rest, tmp_path / "cut.safetensors", stop)
    cut = twice(labelled, rest, tmp_path / "cut.safetensors")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    assert {file.name for file in tmp_path.iterdir()} == {"whole.safetensors", "cut.safetensors"}


@pytest.mark.parametrize("scores", [(0.9, 0.2), (0.2, 0.9)])
def test_the_better_round_is_kept(
    slices: list[LabelledSlice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, float]
) -> None:
    left = [score for score in scores for _ in range(STEPS // 3)]
    monkeypatch.setattr("polycl.segmenter.training.evaluate", lambda *_: left.pop(0))
    twice([painted(slices[2], 20)], [painted(one, 20) for one in slices[3:]], tmp_path / "m.safetensors")
    assert checkpoints.load(tmp_path / "m.safetensors")[0].provenance.figures["validation_dice"] == max(scores)
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
