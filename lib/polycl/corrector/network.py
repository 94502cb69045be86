"""The corrector's network: MONAI's 3D U-Net, whose output is added to the segmenter's log-odds."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNet
from torch import nn

from polycl.corrector.header import CorrectorHeader

MULTIPLE = 16
"""Sides of its input are multiples of it: the U-Net halves four times."""
MOST = 10.0
"""Log-odds of a segmenter, at most: what is surer is as sure as that."""
ODDS_SCALE, SEED_SCALE = 0.2, 2.0
"""What log-odds and annotated slices are multiplied with, so that all channels are of like size."""


class CorrectorNetwork(nn.Module):
    """`[B, windows + 2, X, Y, Z]` to log-odds `[B, 1, X, Y, Z]`; with new weights those that it was given.

    The channels are the CT through each window, from -1 to 1, the segmenter's log-odds, and the annotated slices: 1
    where the structure is, -1 where it is not, 0 on all other slices.
    """

    def __init__(self, header: CorrectorHeader) -> None:
        super().__init__()
        self.unet = BasicUNet(
            spatial_dims=3,
            in_channels=len(header.windows) + 2,
            out_channels=1,
            features=header.features,
            act=("LeakyReLU", {"negative_slope": 0.01, "inplace": True}),
            norm=("instance", {"affine": True}),
            upsample="nontrainable",
        )
        last = self.unet.final_conv
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """See the class."""
        image, odds, annotated = seen[:, :-2], seen[:, -2:-1], seen[:, -1:]
        scaled = torch.cat([image, ODDS_SCALE * odds, SEED_SCALE * annotated], dim=1)
        change: torch.Tensor = self.unet(scaled.contiguous(memory_format=torch.channels_last_3d))
        return odds + change.float()
