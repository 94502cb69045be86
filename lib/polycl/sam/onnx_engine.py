"""SAM as a pair of ONNX files, encoder and decoder, on ONNX Runtime: MobileSAM."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl import checksums
from polycl.errors import InputError, ModelError
from polycl.sam.engine import Embedding, Masks, Recipe, Sight
from polycl.sam.prompts import LOW_SIDE, Prompts

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
RECIPE = Recipe()
PAD, CORNERS = -1, (2, 3)
"""Labels of the decoder's points that are no clicks: none at all, and a box's two corners."""


class OnnxEngine:
    """MobileSAM, or another SAM exported with the usual signature: one mask for each prompt."""

    sight: Sight | None = None

    def __init__(self, name: str, sha256: str, encoder: Any, decoder: Any) -> None:
        self.name, self.sha256 = name, sha256
        self._encoder, self._decoder = encoder, decoder
        self._input = encoder.get_inputs()[0].name
        self.size = int(encoder.get_inputs()[0].shape[-1])
        self._encoding = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str = "mobile-sam",
        sums: dict[str, str] | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> OnnxEngine:
        """The engine in `folder`, checked against `sums` (file name to sha256) before anything is loaded.

        Args:
            folder: has encoder.onnx and decoder.onnx.
            name: what it is called in keys and replies.
            sums: expected sha256 by file name; no check if None.
            device: auto, cpu or cuda[:N]; auto takes CUDA if this ONNX Runtime has it.
            threads: all processors if None.

        Raises ModelError where a file is missing, altered or no SAM.
        """
        files = [folder / ENCODER, folder / DECODER]
        fingerprint = checksums.checked(files, sums)
        try:
            encoder, decoder = (_session(file, device, threads) for file in files)
            return cls(name, fingerprint, encoder, decoder)
        except (InputError, ModelError):
            raise
        except Exception as error:  # ONNX Runtime has no base class of its own
            raise ModelError(f"the weights of {name} cannot be loaded: {type(error).__name__}") from error

    def encode(self, image: NDArray[np.float32]) -> Embedding:
        """See `Engine`. One image at a time, so that memory stays bounded."""
        prepared = RECIPE.prepare(image, self.size)
        with self._encoding:
            (features,) = self._encoder.run(None, {self._input: prepared})
        original = (image.shape[0], image.shape[1])
        return Embedding(features, original, RECIPE.size_of(original, self.size))

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """See `Engine`."""
        prompts.require_inside(embedding.original)
        points, labels = _points(prompts, embedding)
        mask = prompts.mask_logits
        masks, scores, low = self._decoder.run(
            ["masks", "iou_predictions", "low_res_masks"],
            {
                "image_embeddings": embedding.features,
                "point_coords": points[None].astype(np.float32),
                "point_labels": labels[None].astype(np.float32),
                "mask_input": np.zeros((1, 1, LOW_SIDE, LOW_SIDE), np.float32) if mask is None else mask[None, None],
                "has_mask_input": np.array([mask is not None], dtype=np.float32),
                "orig_im_size": np.array(embedding.original, dtype=np.float32),
            },
        )
        return Masks(masks[0], scores[0], low[0])

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        """See `Engine`. One after the other: the exported decoder takes one prompt a call."""
        return [self.decode(embedding, one) for one in prompts]


def _points(prompts: Prompts, embedding: Embedding) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points in the encoder's square and their labels: clicks, then the box's corners or, without a box, a pad."""
    if prompts.box is None:
        extra, extra_labels = np.zeros((1, 2)), [PAD]
    else:
        extra, extra_labels = RECIPE.scale(prompts.box.reshape(2, 2), embedding), list(CORNERS)
    points = np.concatenate([RECIPE.scale(prompts.points, embedding), extra])
    return points, np.concatenate([prompts.labels, np.array(extra_labels)])


def _session(file: Path, device: str, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _processors()
    # Threads that spin while they wait make it ten times slower where another program wants a core too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=_providers(device))


def _processors() -> int:
    """Those this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _providers(device: str) -> list[Any]:
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind == "cuda" and not has_cuda:
        raise InputError(f"device {device!r} was asked for, but this ONNX Runtime has no CUDA; use cpu")
    cuda = [("CUDAExecutionProvider", {"device_id": int(number or 0)})] if has_cuda and kind != "cpu" else []
    return [*cuda, "CPUExecutionProvider"]
