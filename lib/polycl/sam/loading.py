"""Engines by their name in the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from polycl.catalogue import Catalogue, SamEntry
from polycl.sam.engine import Engine, Recipe

if TYPE_CHECKING:
    from polycl.settings import Settings

PREFERRED = ("mobile-sam", "polycl-sam2-ct")
"""The engine where none is named: the first whose weights are here."""
SAM2 = "sam2"
MEDSAM = Recipe(photographic=False, keep_aspect=False, several=False)
"""MedSAM was fine-tuned on images stretched to the square, in [0, 1], with one mask for a box (as its code does)."""


def load_engine(name: str, settings: Settings) -> Engine:
    """The engine called `name`, with its weights checked and loaded; a SAM 2 looks at slices one by one.

    Raises NotFoundError for an unknown name, ModelError where weights are missing or altered.
    """
    catalogue = Catalogue.default(settings)
    if name in catalogue.names(SAM2):
        from polycl.propagate.loading import load_propagator
        from polycl.sam.sam2_image import Sam2ImageEngine

        return Sam2ImageEngine(load_propagator(name, settings))
    entry = catalogue.engine(name)
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
    """The first of `PREFERRED` whose weights are found; None if there are none."""
    from polycl.propagate.loading import at_hand

    catalogue = Catalogue.default(settings)
    published = [name for name in catalogue.engines("sam") if catalogue.engine(name).here()]
    here = {*published, *at_hand(catalogue)}
    return next((name for name in PREFERRED if name in here), None)


def check_engine(name: str, settings: Settings) -> None:
    """NotFoundError, which names those there are, unless there is an engine called `name`, its weights here or not."""
    catalogue = Catalogue.default(settings)
    if name not in catalogue.names(SAM2):
        catalogue.engine(name)


def _recipe(entry: SamEntry) -> Recipe:
    return MEDSAM if entry.listing.recipe == "medsam" else Recipe()
