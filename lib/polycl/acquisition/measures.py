"""How much a segmenter doubts its own answer on a slice.

It sees each slice as it is and changed as a training crop may be (`polycl.segmenter.augment`): larger and darker,
smaller and brighter. It was taught to answer the same; where it does not it has not learned enough. Mirrored slices are
no use here: an organ on the wrong side of the body was never trained on, and every slice would be in doubt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from polycl.segmenter.network import STRIDE

VIEWS: tuple[tuple[float, float], ...] = ((1.0, 0.0), (0.8, 0.05), (1.2, -0.05))
"""Scale, and what is added to the windowed values in [0, 1], of each view; the first is the slice as it is."""
LEAST = 1e-7
Network = Callable[[torch.Tensor], torch.Tensor]


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the classes of `[..., C, X, Y]`, `[..., X, Y]`: 0 where one is certain, ln C at most."""
    return -(probabilities * probabilities.clamp_min(LEAST).log()).sum(dim=-3)


def disagreement(probabilities: torch.Tensor) -> torch.Tensor:
    """How far views `[V, ..., C, X, Y]` contradict each other over each class but the first, `[..., C - 1, X, Y]`.

    In nats, 0 to ln 2: the mutual information between the view and whether a pixel is of the class, entropy of the mean
    less mean of the entropies (BALD, Houlsby et al. 2011). A rim where every view is equally unsure adds to the
    entropy, but nothing to this.
    """
    each = torch.stack([1 - probabilities, probabilities], dim=-3)[..., 1:, :, :, :]
    return (entropy(each.mean(dim=0)) - entropy(each).mean(dim=0)).clamp_min(0)


def changed(slices: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
    """Windowed slices `[B, 1, X, Y]` at another scale, sides still multiples of the stride, and brighter by `shift`."""
    if scale != 1:
        slices = F.interpolate(slices, size=_sides(slices, scale), mode="bilinear", align_corners=False)
    return (slices + shift).clamp(0, 1) if shift else slices


def views_of(network: Network, slices: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """Probabilities `[V, B, C, X, Y]` of windowed slices `[B, 1, X, Y]` in each of `VIEWS`, on the slices' own pixels.

    `network` maps slices to logits. `first` are the logits of the slices as they are, where those are known.
    """
    seen = []
    for number, (scale, shift) in enumerate(VIEWS):
        logits = first if number == 0 and first is not None else network(changed(slices, scale, shift))
        probabilities = logits.float().softmax(dim=1)
        if probabilities.shape[-2:] != slices.shape[-2:]:
            size = (slices.shape[-2], slices.shape[-1])
            probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
        seen.append(probabilities)
    return torch.stack(seen)


def _sides(slices: torch.Tensor, scale: float) -> tuple[int, int]:
    x, y = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in slices.shape[-2:])
    return x, y
