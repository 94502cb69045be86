"""Segmenters that know nothing, and find something all the same."""

import torch

from polycl.segmenter.network import SegmentationNetwork


def shared_out(network: SegmentationNetwork, slices: torch.Tensor) -> SegmentationNetwork:
    """The network, in training mode, scaled so that its classes share the pixels of `slices` [B, C, X, Y]."""
    with torch.no_grad():
        for _ in range(30):
            logits = network(slices)
        network.decoder.head.bias -= logits.mean(dim=(0, 2, 3))
    return network
