"""What a label does not tell is neither learned nor scored: the loss, the slices, the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled import NAMES, SHAPE, phantom, save

from polycl.checkpoints import Header
from polycl.dataset import LabelledSlice
from polycl.learning import slices
from polycl.learning.examples import Example, split
from polycl.learning.patients import Patients
from polycl.learning.scores import score
from polycl.segmenter.augment import TrainingCrops
from polycl.segmenter.training import Schedule, marginal
from polycl.volume import Volume

pytestmark = pytest.mark.unit

seeds = st.integers(0, 2**31 - 1)


def drawn(seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[3, C, 5, 4]`, what is known of each item, and class ids that only use what is known."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, 5, 4, generator=generator) * 3
    known = torch.rand(3, classes, generator=generator) > 0.5
    known[:, 0] = True
    ids = torch.randint(0, classes, (3, 1, 5, 4), generator=generator)
    return logits, known, torch.where(known.gather(1, ids.flatten(1)).view_as(ids), ids, 0)


@given(seeds)
def test_the_unknown_is_background_and_what_is_known_keeps_its_probability(seed: int) -> None:
    logits, known, _ = drawn(seed)
    before, after = logits.softmax(dim=1), marginal(logits, known).softmax(dim=1)
    mask = known[:, :, None, None].expand_as(logits)
    assert not after[~mask].any()
    foreground = mask.clone()
    foreground[:, 0] = False
    torch.testing.assert_close(after[foreground], before[foreground])
    torch.testing.assert_close(after[:, 0], before[:, 0] + (before * ~mask).sum(dim=1))


@given(seeds, st.sampled_from(["dice", "dice-ce"]))
def test_the_loss_does_not_tell_background_from_the_unknown(seed: int, loss: str) -> None:
    logits, known, ids = drawn(seed)
    criterion = Schedule(loss=loss).criterion(4)  # type: ignore[arg-type]
    unknown = ~known[:, 1, None, None]
    swapped = logits.clone()
    swapped[:, 0] = torch.where(unknown, logits[:, 1], logits[:, 0])
    swapped[:, 1] = torch.where(unknown, logits[:, 0], logits[:, 1])
    torch.testing.assert_close(criterion(marginal(swapped, known), ids), criterion(marginal(logits, known), ids))


@given(seeds)
def test_a_slice_of_which_nothing_is_known_pulls_at_nothing(seed: int) -> None:
    logits, known, ids = drawn(seed, classes=2)
    known[0, 1], ids[0] = False, 0
    logits.requires_grad_()
    Schedule().criterion(2)(marginal(logits, known), ids).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad[0], torch.zeros_like(logits[0]), atol=1e-7, rtol=0)


def test_where_all_is_known_nothing_changes() -> None:
    logits, known, _ = drawn(0)
    assert marginal(logits, torch.ones_like(known)) is logits


def test_crops_carry_what_is_known(tiny_header: Header) -> None:
    hu, classes = np.zeros((20, 20), np.int16), np.zeros((20, 20), np.uint8)
    for known, expected in ((None, [1, 1, 1]), ((2,), [1, 0, 1]), ((), [1, 0, 0])):
        one = LabelledSlice(hu, classes, (4.0, 4.0), "a", 0, known)
        crops = TrainingCrops([one], [], tiny_header.preprocessing, items=1, seed=0, classes=3)
        assert crops[0][2].tolist() == [bool(value) for value in expected]


@pytest.fixture
def partial(tmp_path: Path) -> Example:
    """A phantom on which the spleen was painted on two slices, and the liver is known all over."""
    image, label = phantom(0)
    painted = sorted(np.unique(np.nonzero(label.voxels == NAMES["spleen"])[2]))[:1]
    voxels = label.voxels.copy()
    hidden = np.isin(np.arange(SHAPE[2]), painted, invert=True)
    voxels[(voxels == NAMES["spleen"]) & hidden] = 0
    first = int(painted[0])
    known = {"liver": "all", "spleen": ((first, first + 1),)}
    saved = save(tmp_path, "case", image, label.with_voxels(voxels), known=known)
    return Example(patient="p", image=saved.image, label=saved.label, record=saved.record)


def test_slices_know_what_the_label_tells(partial: Example, tmp_path: Path) -> None:
    shown, empty, problems = slices.build([partial], NAMES, tmp_path / "cache")
    assert not problems
    both = [*shown, *empty]
    assert sorted(one.index for one in both) == list(range(SHAPE[2]))
    assert all(one.classes.any() for one in shown)
    assert not any(one.classes.any() for one in empty)
    (start, stop) = partial.record.known["spleen"][0]  # type: ignore[misc]
    for one in both:
        assert one.known == ((1, 2) if start <= one.index < stop else (1,))
    image, label = partial.read()
    for one in both:
        # cropped to the body, nothing of the label lost
        for value in NAMES.values():
            assert (one.classes == value).sum() == (label.voxels[:, :, one.index] == value).sum()
        assert one.hu.max() == image.voxels[:, :, one.index].max()


def test_slices_come_with_what_lies_beside_them(partial: Example, tmp_path: Path) -> None:
    shown, empty, _ = slices.build([partial], NAMES, tmp_path / "cache", beside=(1.0,))
    image, _ = partial.read()
    for one in [*shown, *empty]:
        below, above = max(one.index - 1, 0), min(one.index + 1, SHAPE[2] - 1)
        for seen, z in zip(one.beside, (below, above), strict=True):
            assert seen.shape == one.hu.shape
            assert seen.max() == image.voxels[:, :, z].max()
    alone, _, _ = slices.build([partial], NAMES, tmp_path / "cache")
    assert not alone[0].beside


def test_values_are_mapped_by_name(tmp_path: Path) -> None:
    image, label = phantom(1)
    other = {"spleen": 1, "tumour": 3, "liver": 2}
    renumbered = label.with_voxels(np.array([0, 2, 1, 3], np.uint8)[label.voxels])
    saved = [
        save(tmp_path / "a", "case", image, label),
        save(tmp_path / "b", "case", image, renumbered, labels=other),
    ]
    examples = [Example(patient="p", image=one.image, label=one.label, record=one.record) for one in saved]
    one, two = (slices.build([example], NAMES, tmp_path / example.record.sha256)[0] for example in examples)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.classes, second.classes)


def test_slices_are_found_again_and_those_of_others_go(partial: Example, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    slices.build([partial], NAMES, folder)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    (folder / ".half.hu.npy.12").write_bytes(b"half")
    slices.build([partial], NAMES, folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    next(folder.glob("*.hu.npy")).write_bytes(b"damaged")
    shown, _, _ = slices.build([partial], NAMES, folder)
    assert shown[0].hu.any()
    slices.build([partial], {"liver": 1}, folder)
    assert len(list(folder.glob("*.json"))) == 2, "one label, and the hashes"


def test_a_label_whose_image_is_gone_is_left_out(partial: Example, tmp_path: Path) -> None:
    gone = partial.model_copy(update={"image": tmp_path / "gone.nii.gz"})
    shown, _, problems = slices.build([gone, partial], NAMES, tmp_path / "cache")
    assert len(problems) == 1
    assert len(shown)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 70))
def test_the_chosen_slices_are_known_few_and_spread(known: list[bool], most: int) -> None:
    mask = np.array(known)
    numbers = slices.chosen(mask, most)
    assert mask[numbers].all()
    assert len(numbers) == len(set(numbers)) == min(most, mask.sum())
    if 2 <= most <= mask.sum():
        assert {numbers[0], numbers[-1]} == {np.flatnonzero(mask)[0], np.flatnonzero(mask)[-1]}


@given(st.integers(1, 5000))
def test_many_labels_need_no_more_disk_than_few(examples: int) -> None:
    assert 4 <= slices.slices_each(examples) <= slices.MOST_SLICES
    assert slices.slices_each(examples) * examples <= max(slices.MOST_SLICES, 4 * examples)


@dataclass
class Answer:
    """A segmenter that always gives this label map."""

    header: Header
    voxels: np.ndarray

    def segment(self, image: Volume) -> Volume:
        return image.with_voxels(self.voxels)


def test_scores_look_only_where_the_label_tells(partial: Example, tiny_header: Header) -> None:
    _, label = partial.read()
    known = partial.record.known_slices("spleen")
    voxels = label.voxels.copy()
    voxels[:, :, ~known] = np.where(voxels[:, :, ~known] == 0, 2, voxels[:, :, ~known])
    found = score(Answer(tiny_header, voxels), [partial])  # type: ignore[arg-type]
    assert {cell.label: cell.dice for cell in found.cells} == {"liver": 1.0, "spleen": 1.0}
    voxels[:, :, known] = np.where(voxels[:, :, known] == 2, 0, voxels[:, :, known])
    found = score(Answer(tiny_header, voxels), [partial])  # type: ignore[arg-type]
    assert {cell.label: cell.dice for cell in found.cells} == {"liver": 1.0, "spleen": 0.0}
    assert found.dice == 0.5


def test_a_structure_marked_absent_is_scored_and_an_unknown_one_is_not(tmp_path: Path, tiny_header: Header) -> None:
    image, label = phantom(0)
    saved = save(tmp_path, "case", image, label, labels={"liver": 1}, known={"spleen": "all"})
    (example,), _ = split([saved], NAMES, lambda one: one, Patients(tmp_path / "p.json"))
    found = score(Answer(tiny_header, np.zeros(SHAPE, np.uint8)), [example])  # type: ignore[arg-type]
    assert [(cell.label, cell.dice) for cell in found.cells] == [("spleen", None)]


def test_labels_are_split_by_patient_in_the_order_they_were_saved(tmp_path: Path) -> None:
    image, label = phantom(0)
    saved = [save(tmp_path, f"case_{number}", image, label, minute=9 - number) for number in range(7)]
    saved.append(save(tmp_path, "nothing", image, label, known={}, minute=-1))
    person = {"case_6": "A", "case_5": "B", "case_4": "C", "case_3": "C"}
    train, validation = split(saved, NAMES, lambda image: person.get(image, image), Patients(tmp_path / "p.json"))
    assert [one.record.image for one in validation] == ["case_4", "case_3", "case_0"]
    assert [one.record.image for one in train] == ["case_6", "case_5", "case_2", "case_1"]
    assert not {one.patient for one in train} & {one.patient for one in validation}


def test_the_weight_of_the_background_grows_to_that_of_all_else() -> None:
    schedule = Schedule(steps=100, background=0.01, tighten=0.5)
    assert [schedule.background_at(step) for step in (0, 25, 50, 99)] == pytest.approx([0.01, 0.1, 1, 1])
    assert {Schedule(background=0.1).background_at(step) for step in (0, 2999)} == {0.1}
    # sure of a target where there is background: the loss that this costs is what the weight scales
    logits, ids = torch.tensor([[[[0.0]], [[4.0]]]]), torch.zeros(1, 1, 1, 1, dtype=torch.long)
    pair = torch.cat([logits, logits], dim=3), torch.cat([ids, ids + 1], dim=3)
    costs = [schedule.criterion(2, step)(*pair) for step in (0, 25, 50)]
    assert costs[0] < costs[1] < costs[2]
