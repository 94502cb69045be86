"""Data sets, training crops and the fine-tuning loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polycl import checkpoints, devices
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.dataset import LabelledSlice, Target, find_cases, labelled_slices
from polycl.errors import InputError, NotFoundError
from polycl.segmenter.augment import Augmentation, TrainingCrops, spatial_view
from polycl.segmenter.mirror import mirrored
from polycl.segmenter.removal import without_one
from polycl.segmenter.training import Report, Schedule, TrainingData, exponential_average, finetune
from polycl.segmenter.unenhanced import unenhanced
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

LESION = [Target("organ", (1, 2))]
STILL = Augmentation(rotation_degrees=0, scale=(1, 1), anisotropy=0, brightness_hu=0, contrast=(1, 1))


def make_case(folder: Path, name: str, *, label: bool = True, flip: bool = False) -> None:
    """A bright square organ with a spot, in air."""
    hu = np.full((40, 40, 3), -1000, dtype=np.int16)
    ids = np.zeros((40, 40, 3), dtype=np.uint8)
    hu[5:35, 5:35], hu[8:20, 10:28] = 0, 150
    ids[8:20, 10:28], ids[10:12, 12:14] = 1, 2
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    write_volume(Volume(hu, affine), folder / "images" / f"{name}.nii.gz")
    if label:
        write_volume(Volume(ids[:, :, : 2 if flip else 3], affine), folder / "labels" / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("b", "a", "c"):
        make_case(tmp_path, name)
    return tmp_path


def test_cases_are_paired_by_name_in_name_order(dataset: Path) -> None:
    assert [case.name for case in find_cases(dataset)] == ["a", "b", "c"]
    assert all(case.label is not None and case.label.name == case.image.name for case in find_cases(dataset))
    assert [case.name for case in find_cases(dataset, ["a", "[bx]"])] == ["a", "b"]


def test_a_missing_label_is_named_where_it_is_needed(dataset: Path) -> None:
    make_case(dataset, "d", label=False)
    with pytest.raises(InputError, match="none for d"):
        find_cases(dataset)
    assert len(find_cases(dataset, labelled=False)) == 4


def test_a_folder_that_is_no_data_set_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="images/"):
        find_cases(tmp_path)


def test_a_label_of_another_grid_is_refused(dataset: Path) -> None:
    make_case(dataset, "e", flip=True)
    with pytest.raises(InputError, match="the label of e"):
        list(labelled_slices(find_cases(dataset, ["e"]), LESION))


def test_ids_are_mapped_to_the_targets(dataset: Path) -> None:
    slices = list(labelled_slices(find_cases(dataset, ["a"]), [Target("spot", (2,)), Target("organ", (1,))]))
    assert len(slices) == 3
    assert slices[0].classes[10, 12] == 1
    assert slices[0].classes[8, 10] == 2


@pytest.mark.parametrize("text", ["liver", "=1", "liver=0", "liver=x", "liver="])
def test_a_target_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(InputError, match="liver=1,2"):
        Target.parse(text)


def one_slice() -> LabelledSlice:
    hu = np.full((60, 40), -1000, dtype=np.int16)
    classes = np.zeros((60, 40), dtype=np.uint8)
    hu[10:30, 5:15], classes[10:30, 5:15] = 150, 1
    return LabelledSlice(hu, classes, (2.0, 3.0), "a", 0)


def view(
    preprocessing: Preprocessing, options: Augmentation, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = one_slice()
    seen = torch.from_numpy((chosen.hu > 0).astype(np.float32))[None]
    return spatial_view(seen, chosen, preprocessing, options, random)


def test_image_and_classes_stay_together_under_any_view() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(20):
        image, classes = view(Preprocessing(size=64, spacing=2.0), Augmentation(), rng)
        organ = image[0] > 0.5
        seen += int(organ.sum())
        assert (organ == (classes[0] > 0)).float().mean() > 0.98
    assert seen > 0


def test_an_unmoved_view_has_the_networks_spacing_and_the_slices_sides() -> None:
    image, classes = view(Preprocessing(size=128, spacing=1.0), STILL, _Middle())
    # 20 pixels of 2 mm by 10 of 3 mm, on pixels of 1 mm; the body's centre is the crop's, not the slice's
    assert int(classes.sum()) == pytest.approx(40 * 30, rel=0.05)
    rows = torch.nonzero(classes[0].any(dim=1)).flatten()
    columns = torch.nonzero(classes[0].any(dim=0)).flatten()
    assert rows[0] == pytest.approx(64 - 20, abs=1)
    assert columns[0] == pytest.approx(64 - 15, abs=1)
    assert image.min() == 0


class _Middle(np.random.Generator):
    """Draws the middle of every range."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low=0.0, high=1.0, size=None):  # type: ignore[no-untyped-def]
        return (np.asarray(low) + np.asarray(high)) / 2 * np.ones(size or ())


def test_an_item_depends_on_seed_and_number_alone(dataset: Path) -> None:
    slices = list(labelled_slices(find_cases(dataset), LESION))
    first, again, other = (
        TrainingCrops(slices, [], Preprocessing(size=32), items=8, seed=seed, augmentation=Augmentation())
        for seed in (1, 1, 2)
    )
    _ = first[3]
    torch.testing.assert_close(first[5], again[5])
    assert not torch.equal(first[5][0], other[5][0])
    assert first[5][0].min() >= 0
    assert first[5][0].max() <= 1


def header() -> Header:
    network = NetworkConfig(features=(4, 4, 4, 8, 8, 4))
    return Header(network=network, preprocessing=Preprocessing(size=32, spacing=2.0), labels={"organ": 1})


def run(dataset: Path, output: Path, *, steps: int, stop: int | None = None) -> float:
    cases = find_cases(dataset)
    schedule = Schedule(steps=steps, batch=4, validate_every=10, warm_up=5, average=0.8, learning_rate=1e-2)

    def report(now: Report) -> None:
        if stop is not None and now.step >= stop:
            raise KeyboardInterrupt

    return finetune(
        header(),
        TrainingData(list(labelled_slices(cases, LESION)), [], [(case, LESION) for case in cases]),
        output,
        schedule=schedule,
        augmentation=Augmentation(),
        report=report,
        where=devices.choose("cpu", "fp32"),
    )


@pytest.mark.slow
def test_it_learns_a_bright_organ_and_ships_its_figure(dataset: Path, tmp_path: Path) -> None:
    best = run(dataset, tmp_path / "m.safetensors", steps=60)
    assert best > 0.8
    loaded, _ = checkpoints.load(tmp_path / "m.safetensors")
    assert loaded.provenance.figures["validation_dice"] == pytest.approx(best, abs=1e-4)
    assert not list(tmp_path.glob("*.resume"))


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "whole.safetensors", steps=20)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "cut.safetensors", steps=20, stop=10)
    run(dataset, tmp_path / "cut.safetensors", steps=20)
    _, whole = checkpoints.load(tmp_path / "whole.safetensors")
    _, cut = checkpoints.load(tmp_path / "cut.safetensors")
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=0, atol=0, msg=name)


def test_the_average_forgets_the_first_weights() -> None:
    kept, steps = torch.zeros(1), torch.ones(1)
    update = exponential_average(0.99)
    for count in range(1, 60):
        update([kept], [steps], torch.tensor(count))
    assert float(kept) > 0.999


def test_the_empty_half_is_mirrored_onto_the_other() -> None:
    hu = np.full((30, 8), -1000, dtype=np.int16)
    hu[4:24] = 40
    hu[6, 2], hu[20, 5] = 150, 99
    left = np.zeros(hu.shape, dtype=np.uint8)
    left[6, 2] = 1
    both = left.copy()
    both[20, 5] = 1
    one, two, none = (LabelledSlice(hu, classes, (1.0, 1.0), "a", 0) for classes in (left, both, left * 0))
    (made,) = mirrored([one, two, none])
    assert not made.classes.any()
    assert made.hu[20, 5] == 99
    assert made.hu[27 - 20, 5] == 99, "the body's middle is at 13.5"
    assert 150 not in made.hu
    np.testing.assert_array_equal(made.hu[4:24], made.hu[4:24][::-1])


def test_negatives_come_from_each_pool(dataset: Path) -> None:
    slices = list(labelled_slices(find_cases(dataset), LESION))
    dark, bright = (
        [LabelledSlice(np.full((20, 20), hu, np.int16), np.zeros((20, 20), np.uint8), (2.0, 2.0), "n", 0)]
        for hu in (-1000, 3000)
    )
    crops = TrainingCrops(slices, [dark, [], bright], Preprocessing(size=16), items=60, seed=0, negative_share=1.0)
    means = [float(crops[item][0].mean()) for item in range(60)]
    assert 15 < sum(mean < 0.2 for mean in means) < 45
    assert not any(crops[item][1].any() for item in range(60))


def test_without_contrast_medium_organs_lie_close_together_and_bone_stays() -> None:
    classes = np.zeros((64, 64), np.uint8)
    classes[8:28, 8:28], classes[36:56, 8:28] = 1, 2
    hu = np.full((3, 64, 64), -90, np.float32)
    hu[:, 8:28, 8:28], hu[:, 36:56, 8:28], hu[:, 40:50, 45:55], hu[:, 10:20, 45:55] = 110, 200, 700, 150
    inside = (slice(None), slice(12, 24), slice(12, 24)), (slice(None), slice(40, 52), slice(12, 24))
    for seed in range(8):
        drawn = unenhanced(hu, classes, np.random.default_rng(seed))
        assert drawn.dtype == np.float32
        organ, kidney = (float(drawn[one].mean()) for one in inside)
        assert abs(kidney - organ) < 200 - 110
        assert organ < 110
        assert kidney < 160
        assert float(drawn[:, 12:18, 47:53].mean()) < 150  # a vessel
        np.testing.assert_array_equal(drawn[:, 40:50, 45:55], 700)
        np.testing.assert_array_equal(drawn[:, 30:34, 58:], -90)


@pytest.mark.parametrize("option", ["unenhanced", "removed"])
def test_a_share_of_views_is_changed(dataset: Path, option: str) -> None:
    targets = [Target("organ", (1,)), Target("spot", (2,))]
    slices = list(labelled_slices(find_cases(dataset), targets))

    def views(share: float) -> list[torch.Tensor]:
        options = Augmentation(**{option: share})
        crops = TrainingCrops(slices, [], Preprocessing(size=32), items=24, seed=0, augmentation=options)
        return [torch.cat(crops[item][:2]) for item in range(len(crops))]

    plain, half, all_ = views(0.0), views(0.5), views(1.0)
    assert not any(torch.equal(one, other) for one, other in zip(plain, all_, strict=True))
    # With a share the first number drawn decides: views that stay are drawn from the numbers after it.
    changed = sum(torch.equal(one, other) for one, other in zip(half, all_, strict=True))
    assert 4 <= changed <= 20


def test_without_medium_a_kidney_may_be_darker_than_the_liver() -> None:
    classes = np.zeros((48, 48), np.uint8)
    classes[4:20, 4:44], classes[28:44, 4:44] = 1, 2
    hu = np.where(classes == 1, 110, np.where(classes == 2, 200, -90)).astype(np.float32)[None]
    drawn = [unenhanced(hu, classes, np.random.default_rng(seed))[0] for seed in range(60)]
    darker = [float(one[36, 8:40].mean()) < float(one[12, 8:40].mean()) for one in drawn]
    assert 0 < sum(darker) < len(darker)
    assert min(float(one[12, 8:40].std()) for one in drawn) > 3  # noise comes back where it was bent away
    assert max(float(one[3, 8:40].max()) for one in drawn) < 0  # no rim around a label


def test_one_of_several_organs_is_taken_out() -> None:
    classes = np.zeros((32, 32), np.uint8)
    classes[4:12, 4:12], classes[12:20, 4:12] = 1, 2
    hu = np.where(classes > 0, 100, 0).astype(np.int16)
    whole = replace(one_slice(), hu=hu, classes=classes, beside=(hu, hu))
    gone = set()
    for seed in range(8):
        left = without_one(whole, np.random.default_rng(seed))
        (kept,) = np.unique(left.classes[left.classes > 0])
        gone |= {3 - int(kept)}
        assert np.array_equal(left.classes == kept, classes == kept)
        for seen in (left.hu, *left.beside):
            assert seen.dtype == np.int16
            assert (seen[classes == kept] == 100).all()
            assert -110 < seen[classes == 3 - kept].mean() < -80
            assert not seen[:, 16:].any()
            rim = seen[14:18, 12:14] if kept == 1 else seen[6:10, 12:14]
            assert (rim < 0).all()
    assert gone == {1, 2}
    alone = replace(whole, classes=np.where(classes == 1, 1, 0).astype(np.uint8))
    assert without_one(alone, np.random.default_rng(0)) is alone
