"""Models by name: where the weights are, what they must hash to, and the card that describes them.

`model/catalogue.toml` lists what ships. A weights folder of the site (`POLYCL_WEIGHTS`) is searched first, for names
that the catalogue lists and for its own `*.safetensors`, which are then models under their file's name.

Of a segmenter that was trained here, the name stands for the version that is live, and `NAME@N` for version N; 0 is the
model as it came.

The catalogue also lists SAM engines by others, which do not ship: where their weights come from, and what they must be.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, ValidationError

from polycl import checksums
from polycl.checkpoints import AnyHeader, Header, Typed, kind_of, read_header_as
from polycl.errors import ModelError, NotFoundError
from polycl.files import sha256_of
from polycl.learning.versions import Versions
from polycl.settings import Settings

SHIPPED = Path(__file__).resolve().parents[2] / "model"
"""The catalogue of this checkout."""
DEFAULT_SEGMENTER = "polycl-liver"
"""The segmenter where none is named."""


class Listing(Typed):
    """One model as `catalogue.toml` lists it."""

    kind: Literal["segmenter", "encoder", "sam2", "corrector"]
    file: str
    sha256: str
    card: str
    summary: str


class WeightFile(Typed):
    """One published file of weights. `limit` is its size in bytes, or a little more where that is not published."""

    name: str = Field(pattern=r"^[\w.-]+$")
    url: str = Field(pattern=r"^https://")
    sum: str = Field(pattern=checksums.PATTERN)
    limit: int = Field(gt=0)
    member: str = Field(default="", description="its path inside `SamListing.package`")


class SamListing(Typed):
    """A SAM or SAM 2 as `catalogue.toml` lists it. `folder` may hold its files inside a folder of weights."""

    kind: Literal["sam", "sam2"]
    architecture: Literal["onnx", "vit_b", "vit_l", "vit_h", "tiny", "small", "base+", "large"]
    recipe: Literal["sam", "medsam"] = "sam"
    folder: str = Field(pattern=r"^[\w-]+$")
    files: tuple[WeightFile, ...] = Field(min_length=1)
    licence: str
    summary: str
    package: str = Field(default="", pattern=r"^([\w-]+@[\w.]+)?$", description="npm package that also holds the files")


def _sort_of(raw: object) -> str:
    return "published" if isinstance(raw, dict) and "files" in raw else "shipped"


AnyListing = TypeAdapter[Listing | SamListing](
    Annotated[Annotated[Listing, Tag("shipped")] | Annotated[SamListing, Tag("published")], Discriminator(_sort_of)]
)


@dataclass(frozen=True)
class Entry:
    """A model that can be asked for. `sha256` is what the file must hash to, None for a site's own file.

    `version` counts those that were trained here; 0 is the model as it came.
    """

    name: str
    kind: str
    path: Path
    sha256: str | None
    card: Path | None
    summary: str
    version: int = 0

    def at(self, number: int, versions: Versions) -> Entry:
        """Version `number` of this model, which is version 0; NotFoundError names those there are."""
        if number == 0:
            return self
        version = versions.get(self.name, number)
        return replace(self, path=versions.weights(self.name, version), sha256=version.sha256, version=number)

    def header(self) -> Header:
        """The header in the file, without loading its weights; ModelError if there is no such file."""
        return self._header_as(Header)

    def described(self) -> BaseModel:
        """The header in the file, of whatever kind it is; ModelError if there is no such file."""
        if self.kind == "sam2":
            from polycl.propagate.header import Sam2Header

            return self._header_as(Sam2Header)
        if self.kind == "corrector":
            from polycl.corrector.header import CorrectorHeader

            return self._header_as(CorrectorHeader)
        return self.header()

    def _header_as(self, kind: type[AnyHeader]) -> AnyHeader:
        if not self.path.is_file():
            raise self._missing()
        return read_header_as(kind, self.path)

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


@dataclass(frozen=True)
class SamEntry:
    """A SAM engine that can be asked for. `folders` are searched in order, first their sub-folder of its name."""

    name: str
    listing: SamListing
    folders: tuple[Path, ...]

    @property
    def kind(self) -> str:
        return self.listing.kind

    @property
    def summary(self) -> str:
        return self.listing.summary

    def find(self) -> list[Path] | None:
        """Its files, all of one folder; None if no folder has them all."""
        for folder in self.folders:
            for place in (folder / self.listing.folder, folder):
                paths = [place / file.name for file in self.listing.files]
                if all(path.is_file() for path in paths):
                    return paths
        return None

    def here(self) -> bool:
        """Whether its files are found, whatever they hold."""
        return self.find() is not None

    def paths(self) -> list[Path]:
        """Its files; ModelError says how to get them and where to put them."""
        if (found := self.find()) is None:
            raise ModelError(f"the weights of {self.name} are missing: {self.advice()}", hint=self.places())
        return found

    def advice(self) -> str:
        """How to get the files."""
        names = " and ".join(file.name for file in self.listing.files)
        return f"get {names} with `polycl models fetch {self.name}`, or put them in place by hand"

    def places(self) -> str:
        """Where to put the files by hand."""
        return "they are looked for in " + " and ".join(str(folder / self.listing.folder) for folder in self.folders)

    def verify(self) -> str:
        """One sha256 of all its files; ModelError if one is missing or not the one expected."""
        return checksums.checked(self.paths(), {file.name: file.sum for file in self.listing.files})


class Catalogue:
    """All models in `folders`; where two folders have a name, the first wins."""

    def __init__(
        self, entries: Sequence[Entry], engines: Sequence[SamEntry] = (), versions: Versions | None = None
    ) -> None:
        self._entries = {entry.name: entry for entry in reversed(entries)}
        self._engines = {engine.name: engine for engine in reversed(engines)}
        self._versions = versions

    @classmethod
    def read(cls, *folders: Path, versions: Versions | None = None) -> Catalogue:
        """The catalogue files and loose safetensors files of `folders`, missing folders left out."""
        entries: list[Entry] = []
        engines: list[SamEntry] = []
        searched = tuple(folder for folder in folders if folder != SHIPPED)
        for folder in folders:
            if folder.is_dir():
                for name, listing in _listings(folder).items():
                    if isinstance(listing, SamListing):
                        engines.append(SamEntry(name, listing, searched or folders))
                    else:
                        entries.append(_listed(name, listing, folder))
                listed = {entry.path for entry in entries}
                entries += [_loose(file) for file in sorted(folder.glob("*.safetensors")) if file not in listed]
        return cls(entries, engines, versions)

    @classmethod
    def default(cls, settings: Settings) -> Catalogue:
        """The site's folder of weights, then published and fetched models, then what ships with this checkout."""
        folders = [settings.weights] if settings.weights else []
        versions = Versions(settings.versions, settings.versions_kept)
        return cls.read(*folders, settings.models, SHIPPED, versions=versions)

    def names(self, kind: str | None = None) -> list[str]:
        """Model names in order, of one kind or of all."""
        every: list[Entry | SamEntry] = [*self._entries.values(), *self._engines.values()]
        return sorted(entry.name for entry in every if kind in (None, entry.kind))

    def entry(self, name: str, kind: str | None = None) -> Entry:
        """The model called `name`, or the checkpoint at that path; NotFoundError names those there are.

        ModelError if it cannot be read which version of the model is live.
        """
        if name.endswith(".safetensors"):
            return _loose(Path(name))
        name, number = _numbered(name)
        entry = self._entries.get(name)
        if entry is None and name in self._engines:
            does = "refines masks and answers clicks" if self._engines[name].kind == "sam" else "propagates seeds"
            raise NotFoundError(f"{name} is a SAM engine, which {does}; it segments nothing alone")
        if entry is None or kind not in (None, entry.kind):
            known = ", ".join(self.names(kind)) or "none"
            raise NotFoundError(
                f"no {kind or 'model'} is called {name!r}; there are: {known}, or a path to a .safetensors file"
            )
        if self._versions is None:
            return entry
        return entry.at(self._versions.live(name) if number is None else number, self._versions)

    def engines(self, kind: str | None = None) -> list[str]:
        """Names of the engines that others published, of one kind or of all."""
        return sorted(name for name, engine in self._engines.items() if kind in (None, engine.kind))

    def engine(self, name: str, kind: str | None = "sam") -> SamEntry:
        """The engine called `name`, of `kind` if that is given; NotFoundError names those there are."""
        engine = self._engines.get(name)
        if engine is None or kind not in (None, engine.kind):
            known = ", ".join(self.engines(kind)) or "none"
            what = "SAM 2" if kind == "sam2" else "SAM engine"
            raise NotFoundError(f"no {what} is called {name!r}; there are: {known}")
        return engine


def _numbered(name: str) -> tuple[str, int | None]:
    """`NAME@N` as name and number; None where there is no number."""
    base, mark, number = name.rpartition("@")
    return (base, int(number)) if mark and number.isascii() and number.isdigit() else (name, None)


def _listings(folder: Path) -> dict[str, Listing | SamListing]:
    file = folder / "catalogue.toml"
    if not file.is_file():
        return {}
    try:
        return {name: AnyListing.validate_python(raw) for name, raw in tomllib.loads(file.read_text()).items()}
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None


def _listed(name: str, listing: Listing, folder: Path) -> Entry:
    path, card = folder / listing.file, folder / listing.card
    return Entry(name, listing.kind, path, listing.sha256, card, listing.summary)


def _loose(file: Path) -> Entry:
    return Entry(file.stem, kind_of(file) or "segmenter", file, None, None, "a checkpoint of this site")
