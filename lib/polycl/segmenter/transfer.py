"""From pre-training into a segmenter: weights of an encoder, and of a decoder if it was trained; do they fit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.errors import ModelError
from polycl.segmenter.network import SegmentationNetwork, build_encoder

PREFIX = "encoder."
DECODER = "decoder."


def read_encoder(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    """Header and encoder weights of a checkpoint from `polycl pretrain`, or of a whole segmenter.

    Raises ModelError where it is missing, none of ours, or not what its header says.
    """
    header, weights = checkpoints.load(path)
    if header.kind == "segmenter":
        weights = {name.removeprefix(PREFIX): one for name, one in weights.items() if name.startswith(PREFIX)}
    own = {name: one for name, one in weights.items() if not name.startswith(DECODER)}
    _require_fit(path, own, "encoder", lambda: build_encoder(header.network))
    return header, weights


def read_segmenter(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    """Header and all weights of a segmenter. Raises ModelError as `read_encoder` does, and for an encoder alone."""
    header, weights = checkpoints.load(path)
    if header.kind != "segmenter":
        raise ModelError(f"{path.name} holds an {header.kind}, no segmenter; give it as --encoder")
    _require_fit(path, weights, "network", lambda: SegmentationNetwork(header.network))
    return header, weights


def start_from(network: SegmentationNetwork, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a network's encoder, and its decoder but for the last layer if they hold one.

    ModelError if they are of a network with other layers, widths or norm.
    """
    decoder = {name.removeprefix(DECODER): one for name, one in weights.items() if name.startswith(DECODER)}
    _load(network.encoder, {name: one for name, one in weights.items() if not name.startswith(DECODER)})
    if decoder:
        _load(network.decoder.levels, {name.removeprefix("levels."): one for name, one in decoder.items()})


def widened(weights: Mapping[str, torch.Tensor], seen: int, channels: int) -> dict[str, torch.Tensor]:
    """Weights of a network that sees `seen` images for one that sees `channels`: it makes nothing yet of the others.

    Those that take images in are recognised by their input channels.
    """
    return {
        name: F.pad(one, (0, 0, 0, 0, 0, channels - seen)) if one.ndim == 4 and one.shape[1] == seen else one
        for name, one in weights.items()
    }


def _require_fit(path: Path, weights: Mapping[str, torch.Tensor], what: str, build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        described = build()
    if _shapes(described.state_dict()) != _shapes(weights):
        raise ModelError(f"the weights in {path.name} do not fit the {what} that its header describes")


def _load(part: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    wanted, given = _shapes(part.state_dict()), _shapes(weights)
    if wanted != given:
        differ = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ModelError(
            f"these encoder weights are of another architecture, width or norm than the network: {len(differ)} of its "
            f"{len(wanted)} tensors differ, such as {differ[0]}"
        )
    part.load_state_dict(weights)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
