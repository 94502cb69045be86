"""SAM's own network in torch (the `segment-anything` package): the official checkpoints, and MedSAM's."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything import sam_model_registry

from polycl import checkpoints, checksums, devices
from polycl.errors import ModelError
from polycl.sam.engine import Embedding, Masks, Recipe, Sight
from polycl.sam.prompts import Prompts

ModelType = Literal["vit_b", "vit_l", "vit_h"]
BATCH = {"cpu": 4, "cuda": 32}
"""Prompts that the decoder takes at a time."""


class TorchEngine:
    """A SAM network. The encoder computes in the device's precision, the light decoder always in fp32."""

    sight: Sight | None = None

    def __init__(self, name: str, sha256: str, sam: Any, where: devices.Device, recipe: Recipe | None = None) -> None:
        self.name, self.sha256, self.where = name, sha256, where
        self.recipe = recipe or Recipe()
        self._sam = sam.eval().requires_grad_(False).to(where.device)
        self._sam.image_encoder.to(where.dtype)
        self.size = int(sam.image_encoder.img_size)
        self._encoding = threading.Lock()

    @classmethod
    def load(
        cls,
        path: Path,
        model_type: ModelType = "vit_b",
        *,
        name: str | None = None,
        sums: Mapping[str, str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        recipe: Recipe | None = None,
    ) -> TorchEngine:
        """The network whose state dict is in `path` (.safetensors, or a torch file of tensors and nothing else).

        Args:
            path: the checkpoint.
            model_type: its architecture.
            name: what it is called in keys and replies; the file's stem if None.
            sums: expected checksum by file name, compared before the file is opened; no check if None.
            device: as in the settings.
            precision: of the encoder.
            recipe: how it sees images; SAM's own way if None.

        Raises ModelError where the file is missing, altered, or does not fit the architecture.
        """
        where = devices.choose(device, precision)
        fingerprint = checksums.checked([path], sums)
        weights = checkpoints.load_foreign(path)
        sam = sam_model_registry[model_type]()
        try:
            sam.load_state_dict(weights)
        except RuntimeError:
            raise ModelError(f"the weights in {path.name} do not fit a SAM of type {model_type}") from None
        return cls(name or path.stem, fingerprint, sam, where, recipe)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.float32]) -> Embedding:
        """See `Engine`. One image at a time: the largest network takes gigabytes for each."""
        prepared = torch.from_numpy(self.recipe.prepare(image, self.size))
        with self._encoding:
            features = self._sam.image_encoder(prepared.to(self.where.device, self.where.dtype)).float().cpu().numpy()
        original = (image.shape[0], image.shape[1])
        return Embedding(features, original, self.recipe.size_of(original, self.size))

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """See `Engine`."""
        return self.decode_many(embedding, [prompts])[0]

    @torch.inference_mode()
    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        """See `Engine`. Prompts of the same kind and number of points share a batch."""
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        for number, one in enumerate(prompts):
            one.require_inside(embedding.original)
            kind = (len(one.points), one.box is not None, one.mask_logits is not None)
            groups.setdefault(kind, []).append(number)
        features = torch.from_numpy(embedding.features).to(self.where.device)
        results: dict[int, Masks] = {}
        batch = BATCH[self.where.device.type]
        for members in groups.values():
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                results.update(zip(part, self._decode(features, embedding, [prompts[n] for n in part]), strict=True))
        return [results[number] for number in range(len(prompts))]

    def _decode(self, features: torch.Tensor, embedding: Embedding, prompts: list[Prompts]) -> list[Masks]:
        """Masks of prompts that are all of one kind."""
        first = prompts[0]
        points = boxes = masks = None
        if len(first.points):
            coordinates = self._tensor([self.recipe.scale(one.points, embedding) for one in prompts])
            points = (coordinates, self._tensor([one.labels for one in prompts]).int())
        if first.box is not None:
            corners = [self.recipe.scale(one.box.reshape(2, 2), embedding) for one in prompts if one.box is not None]
            boxes = self._tensor(corners).reshape(-1, 4)
        if first.mask_logits is not None:
            masks = self._tensor([one.mask_logits for one in prompts])[:, None]
        sparse, dense = self._sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        low, scores = self._sam.mask_decoder(
            image_embeddings=features,
            image_pe=self._sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self.recipe.several and first.ambiguous,
        )
        logits = self._enlarge(low, embedding)
        parts = (logits.cpu().numpy(), scores.cpu().numpy(), low.cpu().numpy())
        return [Masks(*one) for one in zip(*parts, strict=True)]

    def _enlarge(self, low: torch.Tensor, embedding: Embedding) -> torch.Tensor:
        if self.recipe.keep_aspect:
            return self._sam.postprocess_masks(low, embedding.resized, embedding.original)
        return F.interpolate(low, embedding.original, mode="bilinear", align_corners=False)

    def _tensor(self, arrays: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.where.device, torch.float32)
