"""Networks for propagation by their name in the catalogue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from polycl.catalogue import Catalogue, Entry, SamEntry
from polycl.errors import ModelError, NotFoundError

if TYPE_CHECKING:
    import torch

    from polycl.propagate.architecture import Sam2Config
    from polycl.propagate.engine import VideoEngine
    from polycl.propagate.header import FrameConfig
    from polycl.propagate.sam2_engine import Sam2Engine
    from polycl.settings import Settings

logger = logging.getLogger(__name__)
DEFAULT = "polycl-sam2-ct"
"""The model where none is named: small enough to ship."""
KIND = "sam2"
USUAL_SIZE = 512
"""Pixels a side of frames for weights by others: far less work than the 1024 that they were trained at."""


def load_propagator(name: str, settings: Settings, *, size: int | None = None) -> Sam2Engine:
    """The network called `name`, or of the checkpoint at that path, with its weights checked and loaded.

    Args:
        name: a name in the catalogue, or a path to a .safetensors file of ours.
        settings: device, precision and folders.
        size: pixels a side of frames, a multiple of 32; as it was trained, or `USUAL_SIZE` for weights by others.

    Raises NotFoundError for an unknown name, ModelError where weights are missing or altered, InputError for a size
    that does not fit.
    """
    catalogue = Catalogue.default(settings)
    entry = find(name, catalogue)
    if isinstance(entry, SamEntry):
        return _published(entry, settings, size or USUAL_SIZE)
    return _ours(entry, settings, size)


def at_hand(catalogue: Catalogue) -> list[str]:
    """Names of the networks whose weights are here, unchecked; the one to take where none is named is the first."""
    published = [name for name in catalogue.engines(KIND) if catalogue.engine(name, KIND).here()]
    others = [name for name in catalogue.names(KIND) if name not in catalogue.engines(KIND)]
    ours = [name for name in others if catalogue.entry(name, KIND).path.is_file()]
    return sorted(ours, key=lambda name: name != DEFAULT) + published


def follower(settings: Settings) -> VideoEngine | None:
    """The default network, where a result is the better for it; None if its weights are not here, or unusable."""
    if DEFAULT not in at_hand(Catalogue.default(settings)):
        return None
    return if_usable(lambda name: load_propagator(name, settings))


def if_usable(load: Callable[[str], VideoEngine]) -> VideoEngine | None:
    """The default network by `load`; None, with a warning, if its weights are unusable."""
    try:
        return load(DEFAULT)
    except ModelError as error:
        logger.warning("nothing is followed from slice to slice: %s", error)
        return None


def find(name: str, catalogue: Catalogue) -> Entry | SamEntry:
    """The entry called `name`; NotFoundError names those there are, ModelError says what to do without the default."""
    if name in catalogue.engines():
        return catalogue.engine(name, KIND)
    if name.endswith(".safetensors"):
        return catalogue.entry(name)
    here = name in catalogue.names(KIND) and catalogue.entry(name).path.is_file()
    if name == DEFAULT and not here:
        others = " or ".join(catalogue.engines(KIND))
        raise ModelError(
            f"the weights of {DEFAULT}, the model that propagates, are missing; name another one instead ({others}), "
            "which `polycl models fetch NAME` gets"
        )
    if not here and name not in catalogue.names(KIND):
        known = ", ".join(catalogue.names(KIND)) or "none"
        raise NotFoundError(f"no model that propagates is called {name!r}; there are: {known}, or a .safetensors file")
    return catalogue.entry(name)


def _ours(entry: Entry, settings: Settings, size: int | None) -> Sam2Engine:
    from polycl.checkpoints import load_as
    from polycl.files import sha256_of
    from polycl.propagate.header import Sam2Header

    header, weights = load_as(Sam2Header, entry.path, sha256=entry.sha256)
    config = header.network if size is None else header.network.at(size)
    sha256 = entry.sha256 or sha256_of(entry.path)
    return _engine(entry.name, sha256, config, header.frames, weights, settings)


def _published(entry: SamEntry, settings: Settings, size: int) -> Sam2Engine:
    from polycl import checkpoints, checksums
    from polycl.propagate.architecture import ARCHITECTURES
    from polycl.propagate.header import FrameConfig

    config = ARCHITECTURES[entry.listing.architecture].at(size)
    paths = entry.paths()
    sha256 = checksums.checked(paths, {file.name: file.sum for file in entry.listing.files})
    return _engine(entry.name, sha256, config, FrameConfig(), checkpoints.load_foreign(paths[0]), settings)


def _engine(
    name: str,
    sha256: str,
    config: Sam2Config,
    frames: FrameConfig,
    weights: dict[str, torch.Tensor],
    settings: Settings,
) -> Sam2Engine:
    from polycl import devices
    from polycl.propagate.architecture import build
    from polycl.propagate.sam2_engine import Sam2Engine

    where = devices.choose(settings.device, settings.precision)
    network = build(config)
    try:
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError:
        raise ModelError(f"the weights of {name} do not fit the network that they are said to be of") from None
    return Sam2Engine(name, sha256, network, config, frames, where)
