"""A SAM 2 of the propagation work as an engine for single slices: for clicks and refinement, without any memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.propagate.engine import Features
from polycl.propagate.parameters import PropagateParameters
from polycl.propagate.sam2_engine import Sam2Engine
from polycl.sam.engine import Embedding, Masks, Sight
from polycl.sam.prompts import LOW_SIDE, Prompts, resized
from polycl.slices import resize

LIMIT = 32.0
"""Logits at low resolution are cut off there, as SAM 2's own predictor does."""


class Sam2ImageEngine:
    """See `polycl.sam.engine.Engine`; it sees the part of a slice that a frame of propagation shows."""

    def __init__(self, network: Sam2Engine) -> None:
        self.name, self.sha256, self.size = network.name, network.sha256, network.size
        frames = network.frames
        self.sight = Sight(
            frames.windows, frames.coverage, frames.least_mm, float(PropagateParameters.model_fields["guess"].default)
        )
        self._network = network

    def encode(self, image: NDArray[np.float32]) -> Embedding:
        """See `Engine`. The longest side becomes the network's, and the rest is air."""
        channels = len(self.sight.windows)
        if image.ndim != 3 or image.shape[2] != channels or not image.size:
            raise InputError(f"an image of shape {image.shape} cannot be encoded; [H, W, {channels}] is needed")
        if not (image.min() >= 0 and image.max() <= 1):  # NaN fails too
            raise InputError("the image must be windowed to [0, 1] before it is encoded")
        height, width = resized(image.shape[0], image.shape[1], self.size)
        seen = resize(torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None], (height, width))
        seen = F.pad(seen, (0, self.size - width, 0, self.size - height))
        (features,) = self._network.encode(self._network.frames.normalised(seen).expand(1, 3, -1, -1))
        top, *fine = (part[None].float().cpu().numpy() for part in (features.top, *features.fine))
        return Embedding(top, (image.shape[0], image.shape[1]), (height, width), tuple(fine))

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """See `Engine`."""
        return self.decode_many(embedding, [prompts])[0]

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        """See `Engine`. Prompts of the same kind and number of points share a batch."""
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        for number, one in enumerate(prompts):
            one.require_inside(embedding.original)
            kind = (len(one.points), one.box is not None, one.mask_logits is not None)
            groups.setdefault(kind, []).append(number)
        top, *fine = (torch.from_numpy(part)[0] for part in (embedding.features, *embedding.fine))
        features = Features(top, (fine[0], fine[1]))
        results: dict[int, Masks] = {}
        for members in groups.values():
            results.update(zip(members, self._decode(features, embedding, [prompts[n] for n in members]), strict=True))
        return [results[number] for number in range(len(prompts))]

    def _decode(self, features: Features, embedding: Embedding, prompts: list[Prompts]) -> list[Masks]:
        """Masks of prompts that are all of one kind."""
        first = prompts[0]
        masks = [one.mask_logits for one in prompts if one.mask_logits is not None]
        low, scores = self._network.candidates(
            features,
            [self._corners(one, embedding) for one in prompts],
            torch.from_numpy(np.stack(masks))[:, None] if masks else None,
            # Of a lone point one cannot tell what it means: three masks to choose from.
            several=len(first.points) == 1 and first.box is None and first.mask_logits is None,
        )
        full = F.interpolate(low, (self.size, self.size), mode="bilinear", align_corners=False)
        height, width = embedding.resized
        logits = F.interpolate(full[:, :, :height, :width], embedding.original, mode="bilinear", align_corners=False)
        small = F.interpolate(low.clamp(-LIMIT, LIMIT), (LOW_SIDE, LOW_SIDE), mode="bilinear", align_corners=False)
        parts = (part.cpu().numpy() for part in (logits, scores, small))
        return [Masks(*one) for one in zip(*parts, strict=True)]

    def _corners(self, prompts: Prompts, embedding: Embedding) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Box and points in pixels of the frame, as SAM 2 takes them: the box as two points, labelled 2 and 3."""
        points, labels = prompts.points, prompts.labels
        if prompts.box is not None:
            points = np.concatenate([prompts.box.reshape(2, 2) + np.array([[-0.5], [0.5]]), points])
            labels = np.concatenate([[2, 3], labels])
        scale = np.array(embedding.resized[::-1]) / np.array(embedding.original[::-1])
        return (points + 0.5) * scale - 0.5, labels
