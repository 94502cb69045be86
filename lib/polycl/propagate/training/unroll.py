"""The network run over a clip, slice by slice with memory, as at run time, with gradients through the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from polycl.propagate.sam2_engine import as_prompt
from polycl.propagate.training.clips import ClipBatch

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

FRAMES = 1000
"""Slices of the volume that the network believes to be in; more than it remembers pointers of."""
SURE = 10.0
"""Logit of a pixel of a given mask, as SAM 2 has it."""


@dataclass
class Step:
    """What the decoder said of one slice: logits `[B, M, S/4, S/4]`, IoU `[B, M]`, presence logits `[B, 1]`.

    The logits are those before SAM 2 empties masks of objects that it believes to be absent, so that they always have a
    gradient.
    """

    logits: torch.Tensor
    ious: torch.Tensor
    presence: torch.Tensor


class Unroll:
    """Runs a network over clips. It listens to the network's mask decoder.

    Args:
        network: the network.
        previous_mask: whether the mask of the slice before prompts the decoder; see `Sam2Config`.
    """

    def __init__(self, network: SAM2Base, *, previous_mask: bool = False) -> None:
        self.network, self.previous_mask = network, previous_mask
        self._said: list[tuple[torch.Tensor, ...]] = []
        network.sam_mask_decoder.register_forward_hook(lambda _module, _args, output: self._said.append(output))

    def __call__(self, clips: ClipBatch) -> list[Step]:
        """One step a slice. On the seed slice of a mask, it is what the decoder makes of that mask as a prompt."""
        network, (count, length) = self.network, clips.images.shape[:2]
        images = clips.images.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        _, features, positions, sizes = network._prepare_backbone_features(network.forward_image(images))
        objects = len(clips.masks) // count
        bank: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        steps: dict[int, Step] = {}
        before: dict[int, torch.Tensor] = {}
        order = [*clips.seeds, *(t for t in range(length) if t not in clips.seeds)]
        for t in order:
            mine = slice(t * count, (t + 1) * count)
            here = [one[:, mine].repeat_interleave(objects, dim=1) for one in features]
            places = [positions[-1][:, mine].repeat_interleave(objects, dim=1)]  # of the others nothing is asked
            kept, steps[t] = self._step(clips, t, here, places, sizes, bank, before.get(t - 1), remember=t != order[-1])
            before[t] = kept.pop("prompt")
            bank["cond_frame_outputs" if t in clips.seeds else "non_cond_frame_outputs"][clips.frames[t]] = kept
        return [steps[t] for t in range(length)]

    def _step(
        self,
        clips: ClipBatch,
        t: int,
        features: list[Any],
        positions: list[Any],
        sizes: list[Any],
        bank: dict[str, Any],
        before: torch.Tensor | None,
        *,
        remember: bool,
    ) -> tuple[dict[str, Any], Step]:
        network = self.network
        prompted = t in clips.seeds
        points = None
        if prompted and clips.seed != "mask":
            points = {"point_coords": clips.points, "point_labels": clips.labels}
        mask = clips.memories[:, t : t + 1].float() if prompted and points is None else None
        given = mask
        if not prompted and self.previous_mask and before is not None:
            given = as_prompt(before)
        # the package takes a mask for the result itself unless told not to
        network.use_mask_input_as_output_without_sam = prompted
        self._said.clear()
        kept, outputs, _, _ = network._track_step(
            frame_idx=clips.frames[t],
            is_init_cond_frame=prompted,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=points,
            mask_inputs=given,
            output_dict=bank,
            num_frames=FRAMES,
            track_in_reverse=clips.reverse,
            prev_sam_mask_logits=None,
        )
        network.use_mask_input_as_output_without_sam = True
        _, _, _, low, masks, pointer, presence = outputs
        kept["obj_ptr"] = pointer
        if mask is None:
            masks, presence = _told(clips, t, masks, presence)
        network._encode_memory_in_output(features, sizes, points, remember, masks, presence, kept)
        kept["prompt"] = low.detach()
        if mask is None:
            told = F.interpolate(masks.detach(), low.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
            kept["prompt"] = torch.where(clips.told[:, t, None, None, None], told, low.detach())
        logits, ious, _, said_presence = self._said[-1]
        return kept, Step(logits.float(), ious.float(), said_presence.float())


def _told(clips: ClipBatch, t: int, masks: torch.Tensor, presence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's masks and presence, but the shaky truth where the clip says so."""
    truth = clips.memories[:, t : t + 1]
    there = truth.flatten(1).any(1, keepdim=True)
    told = clips.told[:, t, None]
    masks = torch.where(told[..., None, None], truth.to(masks.dtype) * 2 * SURE - SURE, masks)
    return masks, torch.where(told, there.to(presence.dtype) * 2 * SURE - SURE, presence)
