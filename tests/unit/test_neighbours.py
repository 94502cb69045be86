"""What a network sees beside a slice: the same in training, on volumes and in files of slices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polycl import checkpoints
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.dataset import Case, LabelledSlice, Target, labelled_slices
from polycl.neighbours import neighbours
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.augment import Augmentation, TrainingCrops
from polycl.segmenter.mirror import mirrored
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.self_training import outlined
from polycl.segmenter.transfer import widened
from polycl.slices import SliceGrid
from polycl.volume import Volume, write_volume
from polycl.window import Window
from random_weights import shared_out

pytestmark = pytest.mark.unit

BESIDE = (4.0, 10.0)
WINDOW = Window(level=40, width=400)
NETWORK = NetworkConfig(features=(4, 4, 8, 8, 8, 4), classes=3, channels=5)
HEADER = Header(
    network=NETWORK,
    preprocessing=Preprocessing(window=WINDOW, spacing=8.0, size=32, beside=BESIDE),
    labels={"liver": 1, "spleen": 2},
)


def stack(depth: int, mm: float) -> Volume:
    return Volume(np.zeros((1, 1, depth), np.int16), np.diag([1.0, 1.0, mm, 1.0]))


def test_the_nearest_to_each_distance_below_then_above() -> None:
    assert neighbours(10, stack(20, 3.0), [4.5, 9.0]) == [10, 8, 12, 7, 13]
    assert neighbours(10, stack(20, 5.0), [4.5, 9.0]) == [10, 9, 11, 8, 12]
    assert neighbours(10, stack(20, 40.0), [4.5, 9.0]) == [10, 9, 11, 9, 11], "at least the next ones"
    assert neighbours(10, stack(20, 3.0), []) == [10]


@given(st.integers(1, 30), st.floats(0.2, 20), st.lists(st.floats(0.1, 50), max_size=4), st.data())
def test_past_the_ends_it_is_the_last_slice(depth: int, mm: float, beside: list[float], data: st.DataObject) -> None:
    z = data.draw(st.integers(0, depth - 1))
    found = neighbours(z, stack(depth, mm), beside)
    assert found[0] == z
    assert len(found) == 1 + 2 * len(beside)
    assert all(0 <= one < depth for one in found)
    assert all(below <= z <= above for below, above in zip(found[1::2], found[2::2], strict=True))


@pytest.fixture(scope="module")
def ct() -> Volume:
    """Six slices 5 mm apart that differ."""
    volume = make_phantom(0, shape=(40, 36, 6), spacing=(8.0, 9.0, 5.0)).image
    rising = volume.voxels + np.arange(6, dtype=np.int16) * 10
    return volume.with_voxels(rising.astype(np.int16)).canonical()


def test_channels_are_what_those_slices_look_like_by_themselves(ct: Volume) -> None:
    grid = SliceGrid.of(ct, 8.0, 16)
    alone = grid.read(ct, WINDOW, 0, 6)[:, 0]
    seen = grid.read(ct, WINDOW, 1, 5, BESIDE)
    for row, z in enumerate(range(1, 5)):
        torch.testing.assert_close(seen[row], alone[neighbours(z, ct, BESIDE)])


def test_training_sees_the_same_slices_as_a_volume_shows(ct: Volume, tmp_path: Path) -> None:
    write_volume(ct, tmp_path / "a.nii.gz")
    made = list(labelled_slices([Case("a", tmp_path / "a.nii.gz", None)], [Target("organ", (1,))], beside=BESIDE))
    for z, one in enumerate(made):
        expected = np.moveaxis(ct.voxels[:, :, neighbours(z, ct, BESIDE)], 2, 0)
        np.testing.assert_array_equal([one.hu, *one.beside], expected)
    preprocessing = Preprocessing(size=32, spacing=8.0, beside=BESIDE)
    crops = TrainingCrops(made, [], preprocessing, items=4, seed=0, augmentation=Augmentation(), classes=2)
    image, classes, _ = crops[0]
    assert image.shape == (5, 32, 32)
    assert classes.shape == (1, 32, 32)
    assert len({channel.mean().item() for channel in image}) > 1


def test_all_that_is_seen_is_mirrored() -> None:
    hu = np.full((30, 8), -1000, np.int16)
    hu[4:24] = 40
    classes = np.zeros(hu.shape, np.uint8)
    classes[6, 2] = 1
    above = hu.copy()
    above[20, 5] = 99
    (made,) = mirrored([LabelledSlice(hu, classes, (1.0, 1.0), "a", 0, beside=(hu, above))])
    assert 99 not in made.hu
    assert made.beside[1][7, 5] == made.beside[1][20, 5] == 99


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ["unet", "resnet18"])
def test_a_widened_network_says_at_first_what_it_said(architecture: str, channels: int) -> None:
    torch.manual_seed(0)
    config = NETWORK.model_copy(update={"architecture": architecture, "norm": "instance"})
    before = SegmentationNetwork(config.model_copy(update={"channels": channels})).eval()
    after = SegmentationNetwork(config).eval()
    after.load_state_dict(widened(before.state_dict(), channels, 5))
    seen = torch.rand(2, 5, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(after(seen), before(seen[:, :channels]))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, ct: Volume) -> Segmenter:
    """One that looks beside a slice, with random weights."""
    torch.manual_seed(3)
    network = SegmentationNetwork(NETWORK)
    seen = SliceGrid.of(ct, 8.0, 16).read(ct, WINDOW, 0, 6, BESIDE)
    path = tmp_path_factory.mktemp("models") / "wide.safetensors"
    checkpoints.save(path, shared_out(network, seen).state_dict(), HEADER)
    return Segmenter.load(path, device="cpu", precision="fp32")


def test_a_slice_gets_the_same_outlines_alone_in_the_volume_and_as_a_training_slice(
    segmenter: Segmenter, ct: Volume, tmp_path: Path
) -> None:
    write_volume(ct, tmp_path / "a.nii.gz")
    whole = segmenter.segment(ct).voxels
    assert whole.any()
    other = ct.voxels.copy()
    other[:, :, 3] = -1000
    changed = (segmenter.segment(ct.with_voxels(other)).voxels != whole).any(axis=(0, 1))
    assert {2, 4} & set(np.flatnonzero(changed)), "what lies beside a slice counts"
    assert not changed[0], "and nothing further away"
    made = labelled_slices([Case("a", tmp_path / "a.nii.gz", None)], [Target("organ", (1,))], beside=BESIDE)
    for z, one in enumerate(outlined(segmenter, [(one, {1, 2}) for one in made])):
        alone = segmenter.segment(ct, only=range(z, z + 1)).voxels[:, :, z]
        np.testing.assert_array_equal(alone, whole[:, :, z])
        assert (one.classes == alone).mean() > 0.97, "cropped to the body on this slice, not in the volume"


def test_a_header_whose_channels_do_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="channels"):
        Header(network=NetworkConfig(channels=3))
    with pytest.raises(ValidationError, match="channels"):
        Header(preprocessing=Preprocessing(beside=(3.0,)))
