"""Models by name: where the weights are, what they must hash to, and the card that describes them.

`model/catalogue.toml` lists what ships. A weights folder of the site (`POLYCL_WEIGHTS`) is searched first, for names
that the catalogue lists and for its own `*.safetensors`, which are then models under their file's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from polycl.checkpoints import METADATA_KEY, Header, Typed, parse_header
from polycl.errors import ModelError, NotFoundError
from polycl.files import sha256_of
from polycl.settings import Settings

SHIPPED = Path(__file__).resolve().parents[2] / "model"
"""The catalogue of this checkout."""


class Listing(Typed):
    """One model as `catalogue.toml` lists it."""

    kind: Literal["segmenter", "encoder"]
    file: str
    sha256: str
    card: str
    summary: str


@dataclass(frozen=True)
class Entry:
    """A model that can be asked for. `sha256` is what the file must hash to, None for a site's own file."""

    name: str
    kind: str
    path: Path
    sha256: str | None
    card: Path | None
    summary: str

    def header(self) -> Header:
        """The header in the file, without loading its weights; ModelError if there is no such file."""
        if not self.path.is_file():
            raise self._missing()
        try:
            with safe_open(str(self.path), framework="numpy") as file:
                return parse_header((file.metadata() or {}).get(METADATA_KEY), self.path)
        except SafetensorError as error:
            raise ModelError(f"{self.path.name} is no safetensors file, or a damaged one: {error}") from None

    def verify(self) -> str:
        """The file's sha256; ModelError if it is missing or not the one expected."""
        if not self.path.is_file():
            raise self._missing()
        found = sha256_of(self.path)
        if self.sha256 not in (None, found):
            raise ModelError(
                f"{self.path.name} has sha256 {found}, but {self.sha256} is expected: fetch it again",
                hint=f"it is in {self.path.parent}",
            )
        return found

    def _missing(self) -> ModelError:
        return ModelError(
            f"the weights of {self.name} are missing: there is no {self.path.name}",
            hint=f"put it into {self.path.parent}",
        )


class Catalogue:
    """All models in `folders`; where two folders have a name, the first wins."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.name: entry for entry in reversed(entries)}

    @classmethod
    def read(cls, *folders: Path) -> Catalogue:
        """The catalogue files and loose safetensors files of `folders`, missing folders left out."""
        entries: list[Entry] = []
        for folder in folders:
            if folder.is_dir():
                entries += _listed(folder)
                listed = {entry.path for entry in entries}
                entries += [_loose(file) for file in sorted(folder.glob("*.safetensors")) if file not in listed]
        return cls(entries)

    @classmethod
    def default(cls, settings: Settings) -> Catalogue:
        """The site's folder of weights, then published and fetched models, then what ships with this checkout."""
        return cls.read(*([settings.weights] if settings.weights else []), settings.models, SHIPPED)

    def names(self, kind: str | None = None) -> list[str]:
        """Model names in order, of one kind or of all."""
        return sorted(name for name, entry in self._entries.items() if kind in (None, entry.kind))

    def entry(self, name: str, kind: str | None = None) -> Entry:
        """The model called `name`, or the checkpoint at that path; NotFoundError names those there are."""
        if name.endswith(".safetensors"):
            return _loose(Path(name))
        entry = self._entries.get(name)
        if entry is None or kind not in (None, entry.kind):
            known = ", ".join(self.names(kind)) or "none"
            raise NotFoundError(
                f"no {kind or 'model'} is called {name!r}; there are: {known}, or a path to a .safetensors file"
            )
        return entry


def _listed(folder: Path) -> list[Entry]:
    file = folder / "catalogue.toml"
    if not file.is_file():
        return []
    try:
        listings = {name: Listing.model_validate(raw) for name, raw in tomllib.loads(file.read_text()).items()}
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    return [
        Entry(name, one.kind, folder / one.file, one.sha256, folder / one.card, one.summary)
        for name, one in listings.items()
    ]


def _loose(file: Path) -> Entry:
    return Entry(file.stem, "segmenter", file, None, None, "a checkpoint of this site")
