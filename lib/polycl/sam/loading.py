"""Engines by their name in the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from polycl.catalogue import Catalogue, SamEntry
from polycl.sam.engine import Engine, Recipe

if TYPE_CHECKING:
    from polycl.settings import Settings

PREFERRED = "mobile-sam"
MEDSAM = Recipe(photographic=False, keep_aspect=False, several=False)
"""MedSAM was fine-tuned on images stretched to the square, in [0, 1], with one mask for a box (as its code does)."""


def load_engine(name: str, settings: Settings) -> Engine:
    """The engine called `name`, with its weights checked and loaded.

    Raises NotFoundError for an unknown name, ModelError where weights are missing or altered.
    """
    entry = Catalogue.default(settings).engine(name)
    paths = entry.paths()
    sums = {file.name: file.sum for file in entry.listing.files}
    if entry.listing.architecture == "onnx":
        from polycl.sam.onnx_engine import OnnxEngine

        return OnnxEngine.load(paths[0].parent, name=name, sums=sums, device=settings.device)
    from polycl.sam.torch_engine import ModelType, TorchEngine

    return TorchEngine.load(
        paths[0],
        cast(ModelType, entry.listing.architecture),  # those of SAM 2 are of another kind
        name=name,
        sums=sums,
        device=settings.device,
        precision=settings.precision,
        recipe=_recipe(entry),
    )


def default_engine(settings: Settings) -> str | None:
    """The engine to use where none is named: MobileSAM if its weights are found, else None."""
    return PREFERRED if Catalogue.default(settings).engine(PREFERRED).here() else None


def _recipe(entry: SamEntry) -> Recipe:
    return MEDSAM if entry.listing.recipe == "medsam" else Recipe()
