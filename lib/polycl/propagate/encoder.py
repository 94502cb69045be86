"""What is done to a trained image encoder before it runs: the same numbers in less time and memory."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from polycl.propagate.attention import attend
from polycl.propagate.package import Hiera

if TYPE_CHECKING:
    from polycl.propagate.package import ImageEncoder, SAM2Base

PATCH = 4
"""Pixels a side of a Hiera's first tokens."""


def prepare(encoder: ImageEncoder, size: int, dtype: torch.dtype) -> None:
    """Make `encoder`, in evaluation mode, ready in place for images of `size` x `size`, to compute in `dtype`."""
    fold_batch_norm(encoder)
    trunk = encoder.trunk
    if isinstance(trunk, Hiera):
        grid = (size // PATCH, size // PATCH)
        with torch.no_grad():
            position = trunk._get_pos_embed(grid).to(dtype)
        trunk._get_pos_embed = _Kept(position, grid)
        for block in trunk.blocks:
            if block.window_size == 0:
                block.attn = WholeAttention(block.attn)
    encoder.neck.position_encoding = _NoPositions()
    encoder.to(dtype)


def fold_fine(network: SAM2Base) -> None:
    """Put the decoder's convolutions of fine features into the neck's, which are as linear, in place.

    The neck makes 256 channels of each pixel, of which the decoder's make 32 and 64, for each frame alike.
    """
    neck, decoder = network.image_encoder.neck, network.sam_mask_decoder
    for level, name in enumerate(("conv_s0", "conv_s1")):
        first, second = neck.convs[-1 - level].conv, getattr(decoder, name)
        neck.convs[-1 - level].conv = _composed(first, second)
        setattr(decoder, name, nn.Identity())


def _composed(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One convolution of 1 x 1 that does what two do after one another."""
    assert first.bias is not None
    assert second.bias is not None
    both = nn.Conv2d(first.in_channels, second.out_channels, 1)
    before, after = first.weight[:, :, 0, 0].double(), second.weight[:, :, 0, 0].double()
    both.weight = nn.Parameter((after @ before)[:, :, None, None].float(), requires_grad=False)
    both.bias = nn.Parameter((after @ first.bias.double() + second.bias.double()).float(), requires_grad=False)
    return both


def fold_batch_norm(module: nn.Module) -> None:
    """Put each batch norm that follows a convolution into it, in place; for a module in evaluation mode."""
    for child in module.modules():
        if isinstance(child, nn.Sequential):
            for n, (first, second) in enumerate(itertools.pairwise(list(child))):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    child[n], child[n + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


class WholeAttention(nn.Module):
    """A Hiera's attention to the whole image, by `attend`."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] to the same shape."""
        batch, height, width, _ = x.shape
        # [3, B, heads, H * W, C / heads], and heads as more of the batch
        parts = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.flatten(1, 2)
        attended = attend(query, key, value).reshape(batch, self.heads, height * width, -1)
        result: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1))
        return result


class _Kept:
    """The position embedding for one size, else interpolated anew for each image."""

    def __init__(self, position: torch.Tensor, grid: tuple[int, int]) -> None:
        self.position, self.grid = position, grid

    def __call__(self, grid: tuple[int, int]) -> torch.Tensor:
        assert tuple(grid) == self.grid  # the engine takes frames of one size
        return self.position


class _NoPositions(nn.Module):
    """In the place of the neck's: it makes those of all levels for each image, and only one, always equal, is used."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.new_zeros(())
