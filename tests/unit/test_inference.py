"""Segmenting a volume: any axis order, any number of slices, the caller's grid."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from polycl import checkpoints, devices
from polycl.checkpoints import Header
from polycl.errors import ModelError, NotFoundError
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.inference import count_certain, keep_largest
from polycl.segmenter.network import SegmentationNetwork
from polycl.volume import Volume
from polycl.window import Window

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def ct() -> Volume:
    return make_phantom(0, shape=(48, 40, 6), spacing=(8.0, 9.0, 30.0)).image


def reordered(volume: Volume, axes: tuple[int, ...], flips: tuple[int, ...]) -> Volume:
    """The same voxels at the same places, stored in another axis order."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(axes):
        matrix[old, new] = flips[new]
        matrix[old, 3] += volume.shape[old] - 1 if flips[new] < 0 else 0
    voxels = volume.voxels.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    return Volume(np.ascontiguousarray(voxels), volume.affine @ matrix)


def test_the_result_has_the_images_grid_and_the_models_ids(segmenter: Segmenter, ct: Volume) -> None:
    result = segmenter.segment(ct)
    assert result.same_grid(ct)
    assert result.voxels.dtype == np.uint8
    assert set(np.unique(result.voxels)) == {0, 1, 2}


def test_every_axis_order_gives_the_same_patient(segmenter: Segmenter, ct: Volume) -> None:
    expected = segmenter.segment(ct).canonical().voxels
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            other = reordered(ct, axes, flips)
            result = segmenter.segment(other)
            assert result.shape == other.shape
            np.testing.assert_array_equal(result.canonical().voxels, expected)


def test_the_number_of_slices_in_a_batch_does_not_matter(segmenter: Segmenter, ct: Volume) -> None:
    whole = segmenter.segment(ct)
    for z in range(ct.shape[2]):
        one = Volume(ct.voxels[:, :, z : z + 1], ct.affine)
        box = segmenter.segment(one, crop=False).voxels[:, :, 0]
        full = segmenter.segment(ct, crop=False).voxels[:, :, z]
        np.testing.assert_array_equal(box, full)
    assert whole.shape == ct.shape


def test_slices_are_seen_with_those_beside_them_across_what_is_read_at_once(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(-150, 240, (24, 20, 39)).astype(np.int16)
    ct = Volume(noise, np.diag([16.0, 18.0, 5.0, 1.0]))
    preprocessing = segmenter.header.preprocessing.model_copy(update={"beside": (10.0,)})
    header = segmenter.header.model_copy(update={"preprocessing": preprocessing, "largest": {}})
    monkeypatch.setattr("polycl.segmenter.inference.BATCH_PIXELS", {"cpu": 5 * 96 * 96})
    below_and_above = torch.nn.Conv2d(3, 3, kernel_size=1)
    with torch.no_grad():
        below_and_above.weight[:, :, 0, 0] = 5 * torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    whole = Segmenter(header, below_and_above, segmenter.where)
    found = whole.likelihood(ct, "liver")
    assert (np.diff(found.astype(int), axis=2) != 0).any(axis=(0, 1)).all()
    for z in range(39):
        np.testing.assert_array_equal(found[:, :, z], whole.likelihoods(ct, z)["liver"])


def test_likelihoods_are_the_networks_log_odds(segmenter: Segmenter, ct: Volume) -> None:
    preprocessing = segmenter.header.preprocessing.model_copy(update={"spacing": 8.0})
    header = segmenter.header.model_copy(update={"preprocessing": preprocessing, "largest": {}})
    native = Volume(np.asarray(ct.voxels)[:48, :32], np.diag([8.0, 8.0, 30.0, 1.0]))  # so that nothing is resampled
    alike = Segmenter(header, copy.deepcopy(segmenter._network), segmenter.where)
    window = header.preprocessing.window.apply(torch.from_numpy(np.moveaxis(native.voxels, 2, 0).copy()))
    shares = alike.logits(window[:, None].float()).softmax(dim=1).numpy()
    for label, index in header.labels.items():
        odds = np.moveaxis(np.log(shares[:, index] / (1 - shares[:, index])), 0, 2)
        expected = np.clip(np.round(odds * 16), -127, 127)
        found = alike.likelihood(native, label)
        assert found.shape == native.shape
        assert found.dtype == np.int8
        assert np.abs(found - expected).max() <= 1, "a byte holds steps of a sixteenth"
        np.testing.assert_array_equal(alike.likelihoods(native, 4)[label], found[:, :, 4])
        np.testing.assert_array_equal(alike.likelihood_of(native, list(header.labels))[label], found)


def test_what_is_likely_is_what_is_segmented(segmenter: Segmenter, ct: Volume) -> None:
    brightness = torch.nn.Conv2d(1, 3, kernel_size=1)
    with torch.no_grad():
        brightness.weight[:, 0, 0, 0] = torch.tensor([0.0, 40.0, -40.0])
        brightness.bias[:] = torch.tensor([0.0, -26.0, 8.0])
    one_piece = segmenter.header.model_copy(update={"largest": {"liver": 1}})
    strict, lax = (Segmenter(one, brightness, segmenter.where) for one in (one_piece, segmenter.header))
    canonical = ct.canonical()
    likely, found = strict.likelihood(canonical, "liver") > 0, strict.segment(canonical, ["liver"]).voxels > 0
    assert 0 < likely.sum() < (lax.likelihood(canonical, "liver") > 0).sum(), "the largest piece alone"
    np.testing.assert_array_equal(likely, found)


def test_only_the_labels_asked_for_are_kept(segmenter: Segmenter, ct: Volume) -> None:
    both, one = segmenter.segment(ct).voxels, segmenter.segment(ct, ["spleen"]).voxels
    np.testing.assert_array_equal(one, np.where(both == 2, 2, 0))
    assert not segmenter.segment(ct, []).voxels.any()


def test_an_unknown_label_lists_the_known(segmenter: Segmenter, ct: Volume) -> None:
    with pytest.raises(NotFoundError, match="its labels are liver, spleen"):
        segmenter.segment(ct, ["kidney"])


def test_progress_ends_at_the_last_slice(segmenter: Segmenter, ct: Volume) -> None:
    seen: list[tuple[int, int]] = []
    segmenter.segment(ct, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)


def test_padding_far_below_air_does_not_matter(segmenter: Segmenter, ct: Volume) -> None:
    padded = ct.voxels.copy()
    padded[padded < -1000] = -3024
    np.testing.assert_array_equal(segmenter.segment(ct.with_voxels(padded)).voxels, segmenter.segment(ct).voxels)


def test_precisions_agree_about_nearly_all_voxels(tiny_checkpoint: Path, segmenter: Segmenter, ct: Volume) -> None:
    rough = Segmenter.load(tiny_checkpoint, device="cpu", precision="bf16")
    assert (rough.segment(ct).voxels == segmenter.segment(ct).voxels).mean() > 0.97


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path: Path, tiny_header: Header) -> None:
    path = tmp_path / "odd.safetensors"
    checkpoints.save(path, {"a": torch.zeros(1)}, tiny_header)
    with pytest.raises(ModelError, match="do not fit"):
        Segmenter.load(path)


def test_an_encoder_is_not_a_segmenter(tmp_path: Path, tiny_header: Header) -> None:
    path = tmp_path / "encoder.safetensors"
    checkpoints.save(path, {"a": torch.zeros(1)}, tiny_header.model_copy(update={"kind": "encoder"}))
    with pytest.raises(ModelError, match="polycl finetune makes one"):
        Segmenter.load(path)


def test_largest_components_are_kept_in_place() -> None:
    labels = np.zeros((9, 9, 4), dtype=np.uint8)
    labels[0:4, 0:4], labels[6:8, 6:8, 1:3], labels[8, 0, 0], labels[5, 2, 2] = 1, 1, 1, 2
    two = labels.copy()
    keep_largest(two, 1, 2)
    assert two[8, 0, 0] == 0
    assert np.count_nonzero(two == 1) == 64 + 8
    one = np.asfortranarray(labels)[::-1]
    keep_largest(one, 1, 1)
    assert np.count_nonzero(one == 1) == 64
    assert np.count_nonzero(one == 2) == 1
    untouched = np.zeros((2, 2, 2), dtype=np.uint8)
    keep_largest(untouched, 1, 1)
    assert not untouched.any()


def test_sure_pixels_are_counted_by_class() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0], logits[0, 2, 0, 1], logits[0, 2, 1, 0] = 9.0, 9.0, 1.0
    assert count_certain(logits).tolist() == [[1, 1, 2], [0, 1, 1]]


def test_a_label_that_is_nowhere_sure_is_dropped(tiny_checkpoint: Path, ct: Volume) -> None:
    header, weights = checkpoints.load(tiny_checkpoint)
    network = SegmentationNetwork(header.network)
    network.load_state_dict(weights)
    with torch.no_grad():
        for parameter in network.decoder.head.parameters():
            parameter.mul_(1e-3)  # the same classes, at a probability of a third
    where = devices.choose("cpu", "fp32")
    lax = Segmenter(header, copy.deepcopy(network), where).segment(ct)
    assert set(np.unique(lax.voxels)) == {0, 1, 2}
    strict = Segmenter(header.model_copy(update={"certain": 0.3}), network, where).segment(ct)
    assert not strict.voxels.any()


def test_more_contrast_is_a_narrower_window(segmenter: Segmenter, ct: Volume) -> None:
    header = segmenter.header.model_copy(update={"contrast": 1.6})
    window = Window(level=header.preprocessing.window.level, width=header.preprocessing.window.width / 1.6)
    narrow = segmenter.header.model_copy(
        update={"preprocessing": header.preprocessing.model_copy(update={"window": window})}
    )
    first, second = (Segmenter(one, copy.deepcopy(segmenter._network), segmenter.where) for one in (header, narrow))
    assert first.window == window
    found = first.segment(ct).voxels
    np.testing.assert_array_equal(found, second.segment(ct).voxels)
    assert (found != segmenter.segment(ct).voxels).any()


def test_smoothing_averages_whole_volumes_and_leaves_chosen_slices_alone(segmenter: Segmenter, ct: Volume) -> None:
    header = segmenter.header.model_copy(update={"smooth": 60.0, "largest": {}})
    smooth = Segmenter(header, copy.deepcopy(segmenter._network), segmenter.where)
    plain = Segmenter(header.model_copy(update={"smooth": 0.0}), copy.deepcopy(segmenter._network), segmenter.where)
    first, second = (one.segment(ct).canonical().voxels.astype(int) for one in (smooth, plain))
    assert (first != second).any()
    changes = [int((np.diff(labels, axis=2) != 0).sum()) for labels in (first, second)]
    assert changes[0] < changes[1], "neighbouring slices agree more"
    only = range(2, 4)
    np.testing.assert_array_equal(smooth.segment(ct, only=only).voxels, plain.segment(ct, only=only).voxels)
