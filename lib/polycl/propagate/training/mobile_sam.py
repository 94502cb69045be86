"""SAM's prompt encoder and mask decoder, as MobileSAM has them, as the first weights of a SAM 2 of the same width.

SAM 2 kept both modules and added tokens and features to them. What it added starts out silent, so that on a single
slice the new network answers prompts as SAM does, as soon as its image encoder makes embeddings like MobileSAM's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from polycl.errors import ModelError
from polycl.propagate.training.onnx_weights import Array, read_graph
from polycl.propagate.training.unroll import SURE

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

WIDTH = 256
"""Channels of SAM's embeddings and tokens."""


def decoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in SAM's ONNX decoder at `path`, by their names in SAM 2; ModelError if it is another network."""
    graph = read_graph(path)
    named = {name: array for name, array in graph.weights.items() if not name.startswith("onnx::")}
    named |= graph.linear_weights()
    named |= _folded(graph.weights)
    found = {}
    for name, array in named.items():
        ours = name.removeprefix("model.").replace(".lin1.", ".layers.0.").replace(".lin2.", ".layers.1.")
        if ours.startswith(("mask_decoder.", "prompt_encoder.")):
            found[f"sam_{ours}"] = torch.from_numpy(np.array(array, dtype=np.float32))
    return found


def _folded(weights: dict[str, Array]) -> dict[str, Array]:
    """What the export folded into constants: tokens, the layer norms over channels, and the embedding of no mask."""
    shapes: dict[tuple[int, ...], list[Array]] = {}
    for name, array in weights.items():
        if name.startswith("onnx::") and "MatMul" not in name:
            shapes.setdefault(array.shape, []).append(array)
    try:
        (tokens,), (no_mask,) = shapes[1, 5, WIDTH], shapes[1, WIDTH, 1, 1]
        norms = {
            "prompt_encoder.mask_downscaling.1": shapes[4, 1, 1],
            "prompt_encoder.mask_downscaling.4": shapes[16, 1, 1],
            "mask_decoder.output_upscaling.1": shapes[64, 1, 1],
        }
    except (KeyError, ValueError):
        raise ModelError("this ONNX file is not SAM's decoder as its authors export it") from None
    found = {
        "mask_decoder.iou_token.weight": tokens[0, :1],
        "mask_decoder.mask_tokens.weight": tokens[0, 1:],
        "prompt_encoder.no_mask_embed.weight": no_mask.reshape(1, WIDTH),
    }
    for name, (weight, bias) in norms.items():
        found |= {f"{name}.weight": weight.reshape(-1), f"{name}.bias": bias.reshape(-1)}
    return found


@torch.no_grad()
def start_as_sam(network: SAM2Base, weights: dict[str, torch.Tensor]) -> None:
    """Give a new network SAM's prompts and decoder; ModelError if they do not fit it.

    The fine features and the token that SAM 2 adds to the decoder start at nothing, and a mask given as a prompt at the
    logits that SAM expects of one. The rest keeps its new weights.
    """
    own = network.state_dict()
    wrong = [name for name, one in weights.items() if name not in own or own[name].shape != one.shape]
    if wrong:
        raise ModelError(f"SAM's decoder does not fit the network at {', '.join(wrong[:3])}; its width must be {WIDTH}")
    network.load_state_dict(own | weights)
    for layer in (network.sam_mask_decoder.conv_s0, network.sam_mask_decoder.conv_s1):
        layer.weight.zero_()
        layer.bias.zero_()
    network.sam_mask_decoder.obj_score_token.weight.zero_()
    network.mask_downsample.weight.fill_(2 * SURE / network.mask_downsample.weight.numel())
    network.mask_downsample.bias.fill_(-SURE)
