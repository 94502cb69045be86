"""SAM 2's network as a `VideoEngine`: the modules of the `sam2` package, many objects and both directions in a batch.

The package's video predictor keeps one state for each video and takes the objects one by one. The parts of its step
that hold numbers are called here; which frames are remembered is the caller's business. A test compares the two.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from polycl import devices
from polycl.errors import InputError
from polycl.propagate import attention, encoder
from polycl.propagate.engine import Features, FramePrompt, Memory, Recall, Tracked
from polycl.propagate.header import FrameConfig
from polycl.propagate.package import get_1d_sine_pe

if TYPE_CHECKING:
    from polycl.propagate.architecture import Sam2Config
    from polycl.propagate.package import SAM2Base

LANE_PIXELS = 1 << 20
"""Pixels of frames on which objects are tracked at a time; more are slower for want of cache, and take memory."""

PROMPT_LOGIT = 10.0
"""Logits of a mask that is a prompt, at most."""

LEAST_PRESENCE = 1.0
"""That an object is there, by what others know, as the network's own logit would say it."""


def as_prompt(logits: torch.Tensor) -> torch.Tensor:
    """Logits of a mask as the prompt for the next slice: "absent" is -1024 there, which SAM never saw in a prompt."""
    return logits.float().clamp(-PROMPT_LOGIT, PROMPT_LOGIT)


class Sam2Engine:
    """A SAM 2. Images are encoded in the device's precision, as memory is read; the light heads compute in fp32."""

    def __init__(
        self,
        name: str,
        sha256: str,
        network: SAM2Base,
        config: Sam2Config,
        frames: FrameConfig,
        where: devices.Device,
    ) -> None:
        self.name, self.sha256, self.config, self.frames, self.where = name, sha256, config, frames, where
        self.size, self.memories, self.pointers = config.image_size, config.memories, config.pointers
        self._net = network.eval().requires_grad_(False).to(where.device)
        encoder.fold_fine(self._net)
        attention.prepare(self._net.memory_attention, where.dtype)
        self._lock = threading.Lock()
        with torch.inference_mode():
            top = torch.zeros(1, config.width, config.grid, config.grid, device=where.device)
            self._image_position = self._flat(self._net.image_encoder.neck.position_encoding(top))
            self._memory_position = self._flat(self._net.memory_encoder.position_encoding(top))
        encoder.prepare(self._net.image_encoder, self.size, where.dtype)

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> list[Features]:
        """See `VideoEngine`."""
        if frames.ndim != 4 or frames.shape[1:] != (3, self.size, self.size):
            raise InputError(f"frames of shape {tuple(frames.shape)} do not fit; [B, 3, {self.size}, {self.size}] do")
        with self._lock:
            out = self._net.forward_image(frames.to(self.where.device, self.where.dtype))
        fine0, fine1, top = (level.to(self.where.dtype) for level in out["backbone_fpn"])
        del out
        self._return_memory()
        return [Features(t, (f0, f1)) for t, f0, f1 in zip(top, fine0, fine1, strict=True)]

    @torch.inference_mode()
    def prompt(self, features: Features, prompts: Sequence[FramePrompt]) -> list[Tracked]:
        """See `VideoEngine`. Prompts of the same kind and number of points share a batch."""
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for number, one in enumerate(prompts):
            groups[len(one.corners[0]), one.mask is not None].append(number)
        results: dict[int, Tracked] = {}
        with self._lock:
            for members in groups.values():
                batch = [prompts[n] for n in members]
                top, fine = self._stacked([features] * len(batch))
                first = batch[0]
                if first.mask is not None:
                    masks = torch.stack([one.mask for one in batch if one.mask is not None])[:, None]
                    outputs = self._net._use_mask_as_output(top, fine, masks.to(self.where.device).float())
                else:
                    outputs = self._decode_points(top, fine, batch)
                results.update(zip(members, self._tracked(top, outputs, seeds=True), strict=True))
        return [results[n] for n in range(len(prompts))]

    @torch.inference_mode()
    def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        """See `VideoEngine`."""
        most = max(1, LANE_PIXELS // self.size**2)
        results: list[Tracked] = []
        with self._lock:
            for start in range(0, len(recalls), most):
                results += self._track(features[start : start + most], recalls[start : start + most])
                self._return_memory()
        return results

    @torch.inference_mode()
    def candidates(
        self,
        features: Features,
        corners: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]],
        masks: torch.Tensor | None = None,
        *,
        several: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of objects on one frame that stands alone, whether the network thinks that they are there or not.

        Args:
            features: of the frame.
            corners: for each object, equally many points [N, 2] and labels [N], as `FramePrompt.corners` has them.
            masks: logits [B, 1, h, w] over the frame, as prompts.
            several: three candidates for each object, instead of one.

        Returns logits [B, M, S / 4, S / 4] and the IoU expected of each [B, M].
        """
        net, device = self._net, self.where.device
        with self._lock:
            top, fine = self._stacked([features])
            points = torch.from_numpy(np.stack([one for one, _ in corners])).to(device, torch.float32)
            labels = torch.from_numpy(np.stack([one for _, one in corners])).to(device, torch.int32)
            if masks is not None:
                size = net.sam_prompt_encoder.mask_input_size
                masks = F.interpolate(masks.to(device).float(), size, mode="bilinear", antialias=True)
            sparse, dense = net.sam_prompt_encoder(
                points=(points, labels) if points.shape[1] else None, boxes=None, masks=masks
            )
            low, scores, _, _ = net.sam_mask_decoder(
                image_embeddings=top.to(device) + net.no_mem_embed.reshape(1, -1, 1, 1),
                image_pe=net.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
                repeat_image=len(corners) > 1,
                high_res_features=[level.to(device) for level in fine],
            )
        return low.float(), scores.float()

    def _track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        """`track` for what makes one batch."""
        top, fine = self._stacked(features)
        with self._told_there(recalls):
            outputs = self._net._forward_sam_heads(
                backbone_features=self._remember(top, recalls),
                mask_inputs=self._previous(recalls),
                high_res_features=fine,
                multimask_output=self._net._use_multimask(False, None),
            )
        return self._tracked(top, _hinted(outputs, recalls), seeds=False)

    def _return_memory(self) -> None:
        """After frames so large that what is freed is worth the time it takes to return it."""
        if self.size**2 >= LANE_PIXELS:
            devices.return_memory()

    @contextmanager
    def _told_there(self, recalls: Sequence[Recall]) -> Iterator[None]:
        """The mask decoder says that objects known to be there are there: else the package takes their masks away.

        It is surer of others, too, as they ask for.
        """
        if not any(one.there or one.presence for one in recalls):
            yield
            return
        there = torch.tensor([[one.there] for one in recalls], device=self.where.device)
        more = torch.tensor([[one.presence] for one in recalls], device=self.where.device)

        def say(module: Any, args: Any, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            *masks, presences = outputs
            surer = presences + more.to(presences.dtype)
            return *masks, torch.where(there, surer.clamp_min(LEAST_PRESENCE), surer)

        handle = self._net.sam_mask_decoder.register_forward_hook(say)
        try:
            yield
        finally:
            handle.remove()

    def _previous(self, recalls: Sequence[Recall]) -> torch.Tensor | None:
        """The masks of the frames before as prompts [B, 1, S / 4, S / 4]; None for a network without use for them."""
        if not self.config.previous_mask:
            return None
        return as_prompt(torch.stack([one.previous for one in recalls])[:, None].to(self.where.device))

    def _decode_points(self, top: torch.Tensor, fine: list[torch.Tensor], batch: list[FramePrompt]) -> Any:
        """The heads' outputs for points and boxes on a frame without memories."""
        corners, labels = zip(*(one.corners for one in batch), strict=True)
        points = {
            "point_coords": torch.stack([torch.from_numpy(one) for one in corners]).to(top.device, torch.float32),
            "point_labels": torch.stack([torch.from_numpy(one) for one in labels]).to(top.device, torch.int32),
        }
        unremembered = top + self._net.no_mem_embed.reshape(1, -1, 1, 1)
        return self._net._forward_sam_heads(
            backbone_features=unremembered,
            point_inputs=points,
            high_res_features=fine,
            multimask_output=self._net._use_multimask(True, points),
        )

    def _remember(self, top: torch.Tensor, recalls: Sequence[Recall]) -> torch.Tensor:
        """Features `top` [B, C, H, W] conditioned on memories, of which each lane may have another number."""
        net = self._net
        spatial = [self._spatial_tokens(one) for one in recalls]
        pointers = [self._pointer_tokens(one) for one in recalls]
        (seen, seen_at), (pointed, pointed_at) = _padded(spatial), _padded(pointers)
        absent = torch.cat([_absent([len(tokens) for tokens, _ in part]) for part in (spatial, pointers)], dim=1)
        found = attention.read(
            net.memory_attention,
            self._flat(top),
            self._image_position,
            torch.cat([seen, pointed], dim=1),
            torch.cat([seen_at, pointed_at], dim=1),
            pointed.shape[1],
            absent.to(top.device) if absent.any() else None,
        )
        return found.transpose(1, 2).reshape(top.shape)

    def _spatial_tokens(self, recall: Recall) -> tuple[torch.Tensor, torch.Tensor]:
        """Memories of pixels as tokens [M, C_memory], and their positions."""
        temporal = self._net.maskmem_tpos_enc.flatten(1).flip(0)  # by slot
        tokens = [memory.features.flatten(1).T for _, memory in recall.spatial]
        places = [self._memory_position[0] + temporal[slot] for slot, _ in recall.spatial]
        return torch.cat(tokens), torch.cat(places)

    def _pointer_tokens(self, recall: Recall) -> tuple[torch.Tensor, torch.Tensor]:
        """Object pointers cut into tokens as wide as memories [P * C / C_memory, C_memory], and their positions."""
        net = self._net
        if not recall.pointers:
            none = self._memory_position.new_zeros(0, net.mem_dim)
            return none, none
        pointers = torch.stack([memory.pointer for _, memory in recall.pointers])
        back = torch.tensor([steps for steps, _ in recall.pointers], device=pointers.device)
        places = net.obj_ptr_tpos_proj(get_1d_sine_pe(back / max(1, recall.reach - 1), dim=net.hidden_dim))
        pieces = net.hidden_dim // net.mem_dim
        return pointers.reshape(-1, net.mem_dim), places.repeat_interleave(pieces, dim=0)

    def _tracked(self, top: torch.Tensor, outputs: Any, *, seeds: bool) -> list[Tracked]:
        """What the heads put out, and the memory it leaves."""
        _, _, qualities, low, high, pointers, presences = outputs
        if seeds:  # the package makes a seed's memory from its mask at low resolution
            high = F.interpolate(low, (self.size, self.size), mode="bilinear", align_corners=False)
        flat = self._flat(top).transpose(0, 1)
        memories, _ = self._net._encode_new_memory([flat], [top.shape[-2:]], high, presences, seeds)
        memories = memories.to(torch.bfloat16)
        best = qualities.max(dim=1).values
        return [
            Tracked(low[n, 0], float(presences[n]), float(best[n]), Memory(memories[n], pointers[n]))
            for n in range(len(low))
        ]

    def _stacked(self, features: Sequence[Features]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A batch of features in fp32."""
        top = torch.stack([one.top for one in features]).float()
        return top, [torch.stack([one.fine[n] for one in features]).float() for n in (0, 1)]

    @staticmethod
    def _flat(maps: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] as [B, H * W, C]."""
        return maps.flatten(2).transpose(1, 2)


def _padded(lanes: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions, both [M, C], of lanes as batches [B, M, C] of the most there are; zeros fill them up."""
    tokens, places = (pad_sequence(list(part), batch_first=True) for part in zip(*lanes, strict=True))
    return tokens, places


def _absent(lengths: Sequence[int]) -> torch.Tensor:
    """Which tokens of `_padded` lanes are none, bool [B, M]."""
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


def _hinted(outputs: Any, recalls: Sequence[Recall]) -> Any:
    """The heads' outputs with the hints blended in: an object that is there by them is remembered as there."""
    if not any(one.hints for one in recalls):
        return outputs
    *first, low, _, pointers, presences = outputs
    low = torch.stack([one.told(mask) for mask, one in zip(low, recalls, strict=True)])
    high = F.interpolate(low, outputs[4].shape[-2:], mode="bilinear", align_corners=False)
    there = (low > 0).flatten(1).any(dim=1, keepdim=True)
    return *first, low, high, pointers, torch.where(there, presences.clamp_min(LEAST_PRESENCE), presences)
