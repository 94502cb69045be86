"""The PolyCL U-Net in its parts: encoder, decoder, projection head.

The encoder is what contrastive pre-training learns and fine-tuning starts from. Blocks are MONAI's.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from polycl.checkpoints import NetworkConfig

STRIDE = 16
"""Input sides are multiples of this, so that every level halves evenly."""


def _block_options(config: NetworkConfig) -> dict[str, object]:
    return {
        "act": ("LeakyReLU", {"negative_slope": config.negative_slope, "inplace": True}),
        "norm": ("instance", {"affine": True}) if config.norm == "instance" else "batch",
        "bias": True,
        "dropout": config.dropout,
    }


class UNetEncoder(nn.Module):
    """Slices `[B, channels, X, Y]` to five feature maps, `[B, f_0, X, Y]` to `[B, f_4, X/16, Y/16]`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.features[:5]
        self.widths: tuple[int, ...] = widths
        options = _block_options(config)
        levels = [TwoConv(2, config.channels, widths[0], **options)]
        levels += [Down(2, narrow, wide, **options) for narrow, wide in pairwise(widths)]
        self.levels = nn.ModuleList(levels)

    def forward(self, slices: torch.Tensor) -> list[torch.Tensor]:
        features = [self.levels[0](slices)]
        for level in self.levels[1:]:
            features.append(level(features[-1]))
        return features


class ResNet18Encoder(nn.Module):
    """As `UNetEncoder`, with a ResNet-18 trunk: widths f_0, 64, 64, 128, 256 at strides 1 to 16."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from monai.networks.nets import resnet18

        channels = config.channels
        trunk = resnet18(
            spatial_dims=2, n_input_channels=channels, conv1_t_stride=2, shortcut_type="B", bias_downsample=False
        )
        self.widths = (config.features[0], 64, 64, 128, 256)
        self.stem = TwoConv(2, channels, config.features[0], **_block_options(config))
        self.halved = nn.Sequential(trunk.conv1, trunk.bn1, trunk.act)
        self.quartered = nn.Sequential(trunk.maxpool, trunk.layer1)
        self.layer2, self.layer3 = trunk.layer2, trunk.layer3

    def forward(self, slices: torch.Tensor) -> list[torch.Tensor]:
        features = [self.stem(slices), self.halved(slices)]
        for level in (self.quartered, self.layer2, self.layer3):
            features.append(level(features[-1]))
        return features


class UNetDecoder(nn.Module):
    """Five feature maps to logits `[B, classes, X, Y]`; upsamples bilinearly, cheaper on a CPU than deconvolution."""

    def __init__(self, widths: Sequence[int], config: NetworkConfig) -> None:
        super().__init__()
        options = _block_options(config)
        outputs = [*config.features[3:0:-1], config.features[5]]
        inputs = [widths[4], *outputs[:-1]]
        self.levels = nn.ModuleList(
            UpCat(2, low, skip, out, **options, upsample="nontrainable", halves=out < low)
            for low, skip, out in zip(inputs, reversed(widths[:4]), outputs, strict=True)
        )
        self.head = nn.Conv2d(outputs[-1], config.classes, kernel_size=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.head(self.features(features))

    def features(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the last layer sees, `[B, f_5, X, Y]`."""
        low = features[-1]
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            low = level(low, skip)
        return low


Pooling = Literal["average", "max", "grid"]

GRID = 4
"""Cells a side of the pooling `grid`."""


class ProjectionHead(nn.Module):
    """The deepest feature map to an embedding `[B, size]`, by pooling over the slice and two linear layers.

    `average` and `max` pool the whole slice, `grid` averages each of `GRID` x `GRID` cells and so knows where things
    are. After instance norm a channel's average over the slice is nearly the same for all slices: `average` then leaves
    nothing to tell them apart by, `max` and `grid` do.
    """

    def __init__(self, width: int, size: int = 256, pooling: Pooling = "average") -> None:
        super().__init__()
        self.pooling = pooling
        pooled = width * GRID**2 if pooling == "grid" else width
        self.layers = nn.Sequential(nn.Linear(pooled, width), nn.ReLU(inplace=True), nn.Linear(width, size))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.layers(self._pooled(features[-1]))

    def _pooled(self, deepest: torch.Tensor) -> torch.Tensor:
        if self.pooling == "max":
            return deepest.amax(dim=(2, 3))
        if self.pooling == "grid":
            return F.adaptive_avg_pool2d(deepest, GRID).flatten(1)
        return deepest.mean(dim=(2, 3))


class SegmentationNetwork(nn.Module):
    """Slices `[B, channels, X, Y]` in [0, 1], sides multiples of `STRIDE`, to logits `[B, classes, X, Y]`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        self.decoder = UNetDecoder(self.encoder.widths, config)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(slices))


def build_encoder(config: NetworkConfig) -> UNetEncoder | ResNet18Encoder:
    """The encoder that `config.architecture` names."""
    return ResNet18Encoder(config) if config.architecture == "resnet18" else UNetEncoder(config)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place. The network must be in evaluation mode."""
    for module in list(network.modules()):
        if isinstance(module, Convolution) and isinstance(getattr(module.adn, "N", None), nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.adn.N)
            module.adn.N = nn.Identity()
    return network
