"""What a clip's result costs: masks, the network's own estimate of them, and whether the object is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from polycl.propagate.training.clips import ClipBatch
from polycl.propagate.training.unroll import Step


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts. `edge` is that of the mean binary cross entropy over a whole slice, beside a Dice loss."""

    dice: float = 1.0
    edge: float = 3.0
    iou: float = 0.1
    presence: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The loss to go down by; for the log its parts, and the mean Dice of slices with the object after the seed."""

    total: torch.Tensor
    dice: torch.Tensor
    parts: dict[str, torch.Tensor]


def clip_loss(steps: Sequence[Step], clips: ClipBatch, weights: LossWeights) -> Loss:
    """The loss of a batch of clips.

    Where the decoder gives several masks, the best pays, as in SAM. Slices without the object have no Dice: their mask
    pays by cross entropy alone. In stills every object is there, which teaches nothing about presence.
    """
    logits = torch.stack([step.logits for step in steps], dim=1) if _even(steps) else None
    parts = []
    if logits is not None:
        ious = torch.stack([step.ious for step in steps], dim=1)
        presence = torch.stack([step.presence[:, 0] for step in steps], dim=1)
        parts.append(_pixel_terms(logits, ious, presence, clips.masks, clips.counts))
    else:
        for t, step in enumerate(steps):
            here = slice(t, t + 1)
            parts.append(
                _pixel_terms(
                    step.logits[:, None], step.ious[:, None], step.presence, clips.masks[:, here], clips.counts[:, here]
                )
            )
    terms = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    counted = clips.counts.sum().clamp(min=1)
    means = {name: value.sum() / counted for name, value in terms.items() if name != "overlap"}
    if clips.masks.shape[1] == 1:
        del means["presence"]
    total = sum(getattr(weights, name) * value for name, value in means.items())
    shown = clips.counts & clips.masks.flatten(2).any(2)
    if clips.masks.shape[1] > 1:
        shown[:, 0] = False
    overlap = (terms["overlap"] * shown).sum() / shown.sum().clamp(min=1)
    assert isinstance(total, torch.Tensor)
    return Loss(total, overlap.detach(), {name: value.detach() for name, value in means.items()})


def _even(steps: Sequence[Step]) -> bool:
    return len({step.logits.shape[1] for step in steps}) == 1


def _pixel_terms(
    logits: torch.Tensor, ious: torch.Tensor, presence: torch.Tensor, masks: torch.Tensor, counts: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Terms `[B, T]`, zero where a slice does not count.

    Args:
        logits: `[B, T, M, s, s]`; ious: `[B, T, M]`; presence: `[B, T]`; masks: bool `[B, T, S, S]`; counts: `[B, T]`.
    """
    # at half the pixels a side: half a pixel of the outline is lost, and three quarters of the time is saved
    truth = (F.avg_pool2d(masks.flatten(0, 1)[:, None].float(), 2) > 0.5).float()
    fine = F.interpolate(logits.flatten(0, 1), size=truth.shape[-2:], mode="bilinear", align_corners=False)
    edge = F.binary_cross_entropy_with_logits(fine, truth.expand_as(fine), reduction="none").mean((2, 3))
    share = fine.sigmoid()
    both, either = (share * truth).sum((2, 3)), share.sum((2, 3)) + truth.sum((2, 3))
    there = (truth.sum((2, 3)) > 0).float()
    dice = (1 - 2 * both / (either + 1)) * there
    with torch.no_grad():
        hard = (fine > 0).float()
        hit, area = (hard * truth).sum((2, 3)), hard.sum((2, 3)) + truth.sum((2, 3))
        real_iou = hit / (area - hit).clamp(min=1)
        overlap = 2 * hit / area.clamp(min=1)
    best = (edge * 3 + dice).argmin(1, keepdim=True)
    counted = counts.flatten(0, 1)[:, None]
    shape = counts.shape
    here = there[:, 0].view(shape)
    return {
        "dice": (dice.gather(1, best) * counted).view(shape),
        "edge": (edge.gather(1, best) * counted).view(shape),
        "iou": ((ious.flatten(0, 1) - real_iou).abs().mean(1, keepdim=True) * there * counted).view(shape),
        "presence": F.binary_cross_entropy_with_logits(presence, here, reduction="none") * counts,
        "overlap": (overlap.gather(1, best) * counted).view(shape),
    }
