"""The network and its parts."""

import pytest
import torch

from polycl.checkpoints import NetworkConfig
from polycl.segmenter.network import STRIDE, ProjectionHead, SegmentationNetwork, build_encoder, fold_batch_norm

pytestmark = pytest.mark.unit

SMALL = NetworkConfig(features=(4, 8, 8, 16, 16, 4), classes=3)


@pytest.mark.parametrize("architecture", ["unet", "resnet18"])
def test_logits_have_a_class_axis_and_the_input_size(architecture: str) -> None:
    network = SegmentationNetwork(SMALL.model_copy(update={"architecture": architecture})).eval()
    logits = network(torch.rand(2, 1, 2 * STRIDE, 3 * STRIDE))
    assert logits.shape == (2, 3, 2 * STRIDE, 3 * STRIDE)


def test_the_default_is_the_size_of_the_published_unet() -> None:
    count = sum(p.numel() for p in SegmentationNetwork(NetworkConfig()).parameters())
    assert 1.8e6 < count < 2.1e6


def test_encoder_halves_at_each_level_and_feeds_the_projection() -> None:
    encoder = build_encoder(SMALL)
    features = encoder(torch.rand(2, 1, 64, 32))
    assert [tuple(f.shape[2:]) for f in features] == [(64, 32), (32, 16), (16, 8), (8, 4), (4, 2)]
    assert [f.shape[1] for f in features] == list(encoder.widths)
    assert ProjectionHead(encoder.widths[-1], size=12)(features).shape == (2, 12)


def test_folding_batch_norm_does_not_change_the_logits() -> None:
    torch.manual_seed(0)
    network = SegmentationNetwork(SMALL)
    network.train()
    for _ in range(3):
        network(torch.rand(4, 1, 32, 32))
    network.eval()
    slices = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        before = network(slices)
        after = fold_batch_norm(network)(slices)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_encoder_weights_transfer_to_a_segmenter() -> None:
    encoder, network = build_encoder(SMALL), SegmentationNetwork(SMALL)
    network.encoder.load_state_dict(encoder.state_dict())
    slices = torch.rand(1, 1, 32, 32)
    encoder.eval()
    network.eval()
    torch.testing.assert_close(network.encoder(slices)[-1], encoder(slices)[-1])
