"""What `polycl finetune` starts from: a new network, an encoder, or a whole segmenter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from polycl.dataset import Target
from polycl.errors import ModelError
from polycl.settings import Settings

if TYPE_CHECKING:
    import torch

    from polycl.checkpoints import NetworkConfig


class Weights(TypedDict, total=False):
    """What training starts from: an encoder, or a whole network, by the names of `training.finetune`."""

    encoder: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Start:
    """The network to train, what lies so many mm `beside` a slice and is seen with it, and what it starts from."""

    network: NetworkConfig
    beside: tuple[float, ...] = ()
    weights: Weights = field(default_factory=Weights)
    parent: str = ""

    def seeing(self, beside: list[float] | None) -> Start:
        """The same but for what is seen beside a slice; ModelError if what was seen before does not come first."""
        if beside is None or tuple(beside) == self.beside:
            return self
        if tuple(beside[: len(self.beside)]) != self.beside:
            seen = " ".join(f"--beside {mm:g}" for mm in self.beside)
            raise ModelError(f"{self.parent} sees other slices with one; leave --beside out, or begin with {seen}")
        from polycl.segmenter.transfer import widened

        channels = 1 + 2 * len(beside)
        network = self.network.model_copy(update={"channels": channels})
        weights = {
            name: widened(one, self.network.channels, channels)
            for name, one in cast(dict[str, Any], self.weights).items()
        }
        return replace(self, network=network, beside=tuple(beside), weights=cast(Weights, weights))


def start_of(
    settings: Settings,
    encoder: str | None,
    start: str | None,
    architecture: Literal["unet", "resnet18"],
    norm: Literal["batch", "instance"] | None,
    targets: list[Target],
) -> Start:
    """What training starts from: catalogue names or checkpoints, one of both at most; ModelError if it does not fit."""
    from polycl.catalogue import Catalogue
    from polycl.checkpoints import NetworkConfig

    name = encoder or start
    if name is None:
        return Start(NetworkConfig(architecture=architecture, norm=norm or "batch"))
    from polycl.segmenter.transfer import read_encoder, read_segmenter

    path = Catalogue.default(settings).entry(name).path
    header, weights = read_segmenter(path) if start else read_encoder(path)
    if norm not in (None, header.network.norm):
        raise ModelError(f"{path.name} has {header.network.norm} norm, not {norm}; leave --norm out to take it over")
    if not start:
        return Start(header.network, header.preprocessing.beside, {"encoder": weights}, path.name)
    if header.network.classes != len(targets) + 1:
        raise ModelError(
            f"{path.name} has {header.network.classes - 1} labels, {', '.join(header.labels)}, and {len(targets)} "
            "targets were given; with --encoder only its encoder is taken over"
        )
    return Start(header.network, header.preprocessing.beside, {"start": weights}, path.name)
