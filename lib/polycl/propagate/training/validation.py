"""How well a network follows labelled objects of scans that it does not learn from, at little cost.

Clips stand for volumes here: a clean mask on one slice, and the mean Dice of the next ones. What counts in the end is
the Dice of whole volumes; see `polycl propagate` and `polycl evaluate`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from polycl.devices import Device
from polycl.propagate.architecture import Sam2Config, build
from polycl.propagate.training.clips import ClipRules, Clips
from polycl.propagate.training.seeds import Shake
from polycl.propagate.training.store import ObjectStore
from polycl.propagate.training.unroll import Unroll
from polycl.propagate.training.views import View

RULES = ClipRules(
    length=10,
    kinds={"label": 1.0},
    seeds={"mask": 1.0},
    far=0.0,
    two=0.0,
    told=0.0,
    gaps_mm=(2.0, 5.0),
    fill=(0.4, 0.55),
    shake=Shake(grow=0.0, shift=0.0, waves=0.0),
)
"""As propagation is used: ten slices on from a mask that is right."""


def plain(view: View) -> View:
    """The same frames, straight and smooth."""
    return View(
        size=view.size,
        frames=view.frames,
        play=0.0,
        rotation_degrees=0.0,
        anisotropy=0.0,
        brightness=0.0,
        contrast=(1.0, 1.0),
        noise=0.0,
        blur=0.0,
        narrow=0.0,
        flip=(0.0, 0.0),
    )


class Validation:
    """The same clips every time."""

    def __init__(self, store: ObjectStore, view: View, *, batches: int = 12, batch: int = 4) -> None:
        self.clips = Clips(store, RULES, plain(view), batches=batches, batch=batch, seed=1)

    @torch.no_grad()
    def score(self, network: torch.nn.Module, config: Sam2Config, where: Device) -> float:
        """Mean Dice over the slices after the seed that hold the object or where the network believes so."""
        copy = build(config)
        copy.load_state_dict(network.state_dict())
        unroll = Unroll(copy.to(where.device).eval(), previous_mask=config.previous_mask)
        scores = []
        for number in range(len(self.clips)):
            clips = self.clips[number].to(where.device)
            with torch.autocast(where.device.type, where.dtype, enabled=where.dtype != torch.float32):
                steps = unroll(clips)
            for t in range(1, len(steps)):
                fine = F.interpolate(
                    steps[t].logits[:, :1], size=clips.masks.shape[-2:], mode="bilinear", align_corners=False
                )
                hard = (fine[:, 0] > 0) & (steps[t].presence > 0)[..., None]
                truth = clips.masks[:, t]
                both, either = (hard & truth).sum((1, 2)), hard.sum((1, 2)) + truth.sum((1, 2))
                scores += (2 * both / either)[either > 0].tolist()
        return sum(scores) / len(scores) if scores else 0.0
