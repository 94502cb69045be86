"""Local contrast: a pixel of one view of a slice must find the same place in another view, among places of that slice.

What the global loss leaves out, and what a decoder needs: features that tell neighbouring tissue apart whatever the
rotation, scale and brightness. After the local loss of Chaitanya, Erdil, Karani and Konukoglu 2020, "Contrastive
learning of global and local features for medical image segmentation with limited annotations", arXiv 2006.10511:
negatives are of the same slice alone, so that the same organ in two patients is never pushed apart.

Everything draws from torch's global generator, which a training step seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from polycl.checkpoints import NetworkConfig
from polycl.contrast.loss import unit
from polycl.segmenter.network import UNetDecoder

POINTS = 64
"""Places compared in a slice."""
EDGE = 0.97
"""Places further out in a view than this share of its half side are left out: beside them there is nothing to see."""
TISSUE = 0.15
"""A pixel whose surroundings have less than this share of the window is air."""


class LocalHead(nn.Module):
    """The encoder's features to one embedding a pixel, `[B, size, X, Y]`, through the decoder of the U-Net."""

    def __init__(self, widths: Sequence[int], config: NetworkConfig, size: int = 64) -> None:
        super().__init__()
        self.decoder = UNetDecoder(widths, config)
        width = self.decoder.head.in_channels
        self.layers = nn.Sequential(nn.Conv2d(width, size, 1), nn.ReLU(inplace=True), nn.Conv2d(size, size, 1))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.layers(self.decoder.features(features))


@dataclass(frozen=True)
class LocalViews:
    """Two views of each slice, `[B, 1, S, S]`, and where the same places are in both.

    Attributes:
        places: `[2, B, POINTS, 2]`, x and y in each view, from -1 to 1.
        seen: bool `[B, POINTS]`, places that both views show.
    """

    first: torch.Tensor
    second: torch.Tensor
    places: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, slices: torch.Tensor, *, degrees: float = 20.0, scale: float = 0.2, shift: float = 0.15) -> LocalViews:
        """Rotated, scaled (by up to e^scale), shifted (by a share of half a side) and other in brightness and contrast.

        `slices` are float `[B, 1, S, S]` in [0, 1].
        """
        points = _points_in_tissue(slices)
        views, places = [], []
        for _ in range(2):
            warp = _warp(slices, degrees, scale, shift)
            grid = F.affine_grid(warp, list(slices.shape), align_corners=False)
            views.append(_other_intensities(F.grid_sample(slices, grid, align_corners=False)))
            # a warp takes places of the view to places of the slice
            places.append(torch.linalg.solve(warp[:, :, :2], (points - warp[:, None, :, 2]).mT).mT)
        both = torch.stack(places)
        return cls(views[0], views[1], both, (both.abs() < EDGE).all(dim=3).all(dim=0))


def local_loss(embeddings: torch.Tensor, views: LocalViews, temperature: float) -> torch.Tensor:
    """InfoNCE of each place with itself in the other view against the other places of the slice; the mean over places.

    Shape:
        embeddings: `[2B, E, X, Y]`, of the first views, then of the second; result: scalar.
    """
    here, there = (
        unit(F.grid_sample(view.float(), at[:, :, None], align_corners=False)[..., 0].mT)
        for view, at in zip(embeddings.chunk(2), views.places, strict=True)
    )
    hidden = ~views.seen
    alike = (here @ there.mT) / temperature
    itself = torch.arange(alike.shape[1], device=alike.device).expand(alike.shape[:2])
    total = alike.new_zeros(())
    for rows in (alike, alike.mT):
        logits = rows.masked_fill(hidden[:, None, :], -1e4)
        each = F.cross_entropy(logits.flatten(0, 1), itself.flatten(), reduction="none")
        total = total + (each * views.seen.flatten()).sum()
    return total / (2 * views.seen.sum().clamp(min=1))


def _points_in_tissue(slices: torch.Tensor) -> torch.Tensor:
    """`[B, POINTS, 2]`: pixel centres drawn from what is not air, each once; from air too where there is too little."""
    side = slices.shape[-1]
    tissue = (F.avg_pool2d(slices, 3, stride=1, padding=1) > TISSUE).float().flatten(1) + 1e-6
    index = torch.multinomial(tissue, POINTS)
    return (torch.stack([index % side, index // side], dim=-1) + 0.5) / side * 2 - 1


def _warp(slices: torch.Tensor, degrees: float, scale: float, shift: float) -> torch.Tensor:
    """`[B, 2, 3]`, for `affine_grid`."""
    angle, factor, x, y = (2 * torch.rand(4, len(slices), device=slices.device) - 1).unbind(0)
    angle, factor = angle * math.radians(degrees), torch.exp(factor * scale)
    cosine, sine = torch.cos(angle) * factor, torch.sin(angle) * factor
    rows = [torch.stack([cosine, -sine, x * shift], dim=1), torch.stack([sine, cosine, y * shift], dim=1)]
    return torch.stack(rows, dim=1)


def _other_intensities(slices: torch.Tensor) -> torch.Tensor:
    contrast, brightness, noise = torch.rand(3, len(slices), 1, 1, 1, device=slices.device).unbind(0)
    changed = (slices - 0.5) * torch.exp((2 * contrast - 1) * 0.4) + 0.5 + (2 * brightness - 1) * 0.15
    return (changed + torch.randn_like(slices) * 0.04 * noise).clamp(0, 1)
