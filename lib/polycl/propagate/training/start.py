"""A network made ready to train: first weights that look back to the same place, and the size of its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polycl.checkpoints import load_as
from polycl.propagate.header import Sam2Header

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

LOCAL = 2.5
"""Size of the constant part of queries and keys. Rotary position encoding turns equal constants into a preference for
equal places: one step of the grid away, a key counts about a third, two steps away a fiftieth."""


@torch.no_grad()
def look_back_to_the_same_place(network: SAM2Base) -> None:
    """Let the new memory attention of a network start out attending to where it stands, in every memory.

    From random weights it attends to everything alike, and many steps pass before a mask can be read from a memory.
    """
    for layer in network.memory_attention.layers:
        attention = layer.cross_attn_image
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(0.5)
            projection.bias.fill_(LOCAL)


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a SAM 2 of ours, in float32; ModelError if the file is none."""
    _, weights = load_as(Sam2Header, file)
    return {name: one.float() if one.is_floating_point() else one for name, one in weights.items()}


def resize(network: SAM2Base, size: int) -> None:
    """Let a network take images of `size` pixels a side, a multiple of 32, from now on. No weight depends on it."""
    if network.image_size == size:
        return
    grid = size // network.backbone_stride
    network.image_size, network.sam_image_embedding_size = size, grid
    prompts = network.sam_prompt_encoder
    prompts.image_embedding_size, prompts.input_image_size = (grid, grid), (size, size)
    prompts.mask_input_size = (4 * grid, 4 * grid)
