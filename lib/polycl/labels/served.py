"""The names and values of the models that are served."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from polycl.catalogue import Catalogue
from polycl.errors import ModelError
from polycl.labels.naming import vocabulary


def served_labels(catalogue: Catalogue, names: Iterable[str] | None = None) -> dict[str, int]:
    """One table of name to value for the segmenters called `names`, all by default; broken ones are left out."""
    tables = []
    for name in catalogue.names("segmenter") if names is None else names:
        with suppress(ModelError):  # told where models are loaded
            tables.append(catalogue.entry(name, "segmenter").header().labels)
    return vocabulary(tables)
