"""The correctors whose weights are here."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from polycl.errors import PolyclError

if TYPE_CHECKING:
    from polycl.corrector.inference import Corrector
    from polycl.settings import Settings

logger = logging.getLogger(__name__)
KIND = "corrector"


def load_correctors(settings: Settings, segmenters: Collection[str]) -> list[Corrector]:
    """Those of one of `segmenters`, by name, whose weights are here. An unusable one is left out, with a warning."""
    from polycl.catalogue import Catalogue
    from polycl.checkpoints import read_header_as
    from polycl.corrector.header import CorrectorHeader
    from polycl.corrector.inference import Corrector

    catalogue, loaded = Catalogue.default(settings), []
    for name in catalogue.names(KIND):
        try:
            entry = catalogue.entry(name, KIND)
            if entry.path.is_file() and read_header_as(CorrectorHeader, entry.path).segmenter in segmenters:
                where = {"device": settings.device, "precision": settings.precision}
                loaded.append(Corrector.load(entry.path, sha256=entry.sha256, **where))
        except (PolyclError, OSError) as error:
            logger.warning("a segmenter is not corrected by annotated slices: %s", error)
    return loaded
