"""What the small SAM 2 learns from: objects of scans, and clips of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from balls import RULES, SPACING, ball, clips, patient, write_balls
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.dataset import find_cases
from polycl.errors import InputError
from polycl.propagate.training.seeds import BOX_END, BOX_START, POSITIVE, Shake, box_points, click_points, shaky
from polycl.propagate.training.store import ObjectStore
from polycl.propagate.training.structures import StructureRules, structures
from polycl.propagate.training.validation import plain
from polycl.propagate.training.views import DrawnView, Look, View

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_balls(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def store(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return ObjectStore.build(find_cases(dataset), tmp_path_factory.mktemp("objects"))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_bright_ball_is_a_structure_by_threshold_and_the_two_balls_are_two() -> None:
    image, _ = patient(0)
    layers = dict(structures(image.voxels, SPACING, StructureRules(volume_ml=(1.0, 500.0))))
    ids = layers["above 80"]
    left, right = ids[ball((60, 72, 40), 24)], ids[ball((110, 72, 40), 18)]
    assert overlap(ids == np.bincount(right).argmax(), ball((110, 72, 40), 18)) > 0.8
    assert np.bincount(left[left > 0]).argmax() != np.bincount(right).argmax()


def test_borders_of_watershed_regions_lie_on_edges() -> None:
    image, _ = patient(0)
    layers = dict(structures(image.voxels, SPACING, StructureRules(volume_ml=(0.5, 500.0))))
    ids = layers["region 3.5"]
    inside = ball((110, 72, 40), 18)
    best = max(overlap(ids == value, inside) for value in np.unique(ids[inside]) if value)
    assert best > 0.7


def test_merged_regions_are_fewer_and_stay_below_the_largest_volume() -> None:
    image, _ = patient(0)
    rules = StructureRules(volume_ml=(0.5, 400.0), merged=(0.5,))
    layers = dict(structures(image.voxels, SPACING, rules))
    sizes = np.bincount(layers["merged 0.5"].ravel())[1:] * np.prod(SPACING) / 1000
    assert sizes.max() <= 200.0
    assert layers["merged 0.5"].max() < layers["region 2"].max() * 2


def test_a_lesion_belongs_to_its_organ_and_is_an_object_of_its_own(store: ObjectStore) -> None:
    scan = store.scans[0]
    kinds = [layer.kind for layer in scan.layers]
    ids = scan.ids(store.folder)
    organ, lesion = ids[kinds.index("label")] == 1, ids[kinds.index("lesion")] > 0
    assert lesion.any()
    assert organ[lesion].all()
    assert not (ids[kinds.index("label")] == 2).any()


def test_a_store_is_not_made_twice_and_a_lost_file_is_told(dataset: Path, tmp_path: Path) -> None:
    first = ObjectStore.build(find_cases(dataset), tmp_path)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = ObjectStore.build(find_cases(dataset), tmp_path)
    assert again == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written
    (tmp_path / f"{first.scans[0].key}.hu.npy").unlink()
    with pytest.raises(InputError, match="remove the store"):
        first.scans[0].hu(tmp_path)


def test_a_batch_depends_on_seed_and_number_alone(store: ObjectStore) -> None:
    ahead, behind = clips(store), clips(store)
    wanted = [ahead[number] for number in (0, 1, 2)]
    for number in (2, 0, 1):
        for one, other in zip(wanted[number], behind[number], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert not torch.equal(wanted[0].images, wanted[1].images)


def test_clips_start_on_the_object_and_count_where_it_is_known(store: ObjectStore) -> None:
    for batch in (clips(store)[number] for number in range(20)):
        assert (batch.masks[:, 0].flatten(1).sum(1) >= RULES.least_pixels).all()
        assert batch.memories[:, 0].flatten(1).any(1).all()
        steps = np.abs(np.diff(batch.frames))
        assert (np.sign(np.diff(batch.frames)) == (-1 if batch.reverse else 1)).all()
        if steps[0] > 1:  # from afar: the slice before is told, and costs nothing
            assert batch.told[:, 1].all()
            assert not batch.counts[:, 1].any()
        else:
            assert batch.counts[:, 0].all()


def test_where_a_labelled_object_ends_the_truth_is_empty_and_counts(store: ObjectStore) -> None:
    rules = {"kinds": {"label": 1.0}, "far": 0.0, "length": 6, "gaps_mm": (9.0, 10.0), "seeds": {"mask": 1.0}}
    ended = [
        bool((~batch.masks.flatten(2).any(2) & batch.counts).any())
        for batch in (clips(store, **rules)[number] for number in range(12))
    ]
    assert any(ended)


def test_clips_may_be_laid_so_that_the_object_ends_in_them(store: ObjectStore) -> None:
    def share(ending: float) -> float:
        """Of clips that reach the object's end."""
        drawn = clips(store, kinds={"label": 1.0}, far=0.0, length=4, gaps_mm=(4.0, 5.0), ending=ending)
        ended = [~batch.masks[:, 1:].flatten(2).any(2).all(1) for batch in (drawn[number] for number in range(15))]
        return float(torch.cat(ended).float().mean())

    assert share(1.0) > 0.7 > share(0.0)


def test_structures_of_no_label_do_not_count_where_they_end(store: ObjectStore) -> None:
    rules = {"kinds": {"region": 1.0, "merged": 1.0}, "far": 0.0, "length": 5}
    for batch in (clips(store, **rules)[number] for number in range(12)):
        gone = ~batch.masks.flatten(2).any(2)
        assert not (gone & batch.counts).any()


def test_objects_of_a_clip_share_its_images_and_are_several(store: ObjectStore) -> None:
    drawn = clips(store, objects=4, kinds={"label": 1.0, "threshold": 1.0, "merged": 1.0})
    batches = [drawn[number] for number in range(8)]
    assert all(batch.images.shape[:2] == (2, 3) and batch.masks.shape[:2] == (8, 3) for batch in batches)
    different = [len({tuple(mask.flatten().tolist()) for mask in batch.masks[:4, 0]}) for batch in batches]
    assert max(different) > 1


def test_a_still_has_one_slice_and_its_mask_is_rough(store: ObjectStore) -> None:
    for batch in (clips(store, length=1)[number] for number in range(10)):
        assert batch.masks.shape[1] == 1
        assert batch.seeds == (0,)
        assert batch.counts.all()
        if batch.seed == "mask":
            assert not torch.equal(batch.memories, batch.masks)


def test_a_view_shows_the_front_above_and_the_right_on_the_left(store: ObjectStore) -> None:
    scan = next(scan for scan in store.scans if scan.name == "one")
    number = next(n for n, row in enumerate(scan.objects) if scan.layers[row[0]].kind == "label")
    z = (scan.objects[number][2] + scan.objects[number][3]) // 2
    options = plain(View(size=64))
    axes = np.array([[0.0, -1.0], [-1.0, 0.0]]) * 60.0
    _, _, _, _, x0, x1, y0, y1 = scan.objects[number]
    # the view's centre lies to the patient's right of the object, and in front of it
    centre = np.array([x1 * SPACING[0], y1 * SPACING[1]])
    view = DrawnView(options, axes, centre, 120.0 / 64)
    masks = Look(scan, store.folder, np.array([z]), view).masks(*scan.objects[number][:2])
    rows, columns = np.nonzero(masks[0].numpy())
    assert rows.mean() > 32
    assert columns.mean() > 32
    area = float(masks.sum()) * (120.0 / 64) ** 2
    assert area == pytest.approx(np.pi * 24**2, rel=0.15)
    assert (x1 - x0) * SPACING[0] == pytest.approx(48, abs=4)
    assert (y1 - y0) * SPACING[1] == pytest.approx(48, abs=4)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.integers(2, 20), pixel=st.floats(0.3, 3.0))
def test_a_shaky_mask_is_never_empty_and_stays_near(seed: int, radius: int, pixel: float) -> None:
    axis = torch.arange(64) - 32
    mask = axis[:, None] ** 2 + axis[None] ** 2 <= radius**2
    found = shaky(mask, pixel, Shake(), np.random.default_rng(seed))
    assert found.any()
    far = axis[:, None] ** 2 + axis[None] ** 2 > (radius + 16) ** 2
    assert not (found & far).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_clicks_and_boxes_fit_the_mask(seed: int, count: int) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[10:30, 20:50] = True
    random = np.random.default_rng(seed)
    points, labels = click_points(mask, count, random)
    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
        assert bool(mask[int(y), int(x)]) == (label == POSITIVE)
    assert labels[0] == POSITIVE
    corners, kinds = box_points(mask, random)
    assert kinds.tolist() == [BOX_START, BOX_END]
    assert torch.allclose(corners, torch.tensor([[20.0, 10.0], [49.0, 29.0]]), atol=4.0)
