"""A model in one file: safetensors weights and a typed header that says how to use them and where they come from.

Nothing in such a file is code: it is read by safetensors and pydantic alone. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from polycl.errors import ModelError
from polycl.files import sha256_of, write_atomically
from polycl.window import Window

if TYPE_CHECKING:
    import torch

METADATA_KEY = "polycl"
AnyHeader = TypeVar("AnyHeader", bound=BaseModel)


class Typed(BaseModel):
    """Frozen, and a wrong key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(Typed):
    """What `polycl.segmenter.network.build` needs to build the network."""

    architecture: Literal["unet", "resnet18"] = "unet"
    features: tuple[int, int, int, int, int, int] = (16, 32, 64, 128, 256, 16)
    norm: Literal["batch", "instance"] = "batch"
    negative_slope: float = 0.2
    dropout: float = 0.0
    classes: int = Field(default=2, ge=2, le=256)
    channels: int = Field(default=1, ge=1, le=9, description="images of one input: the slice, and those beside it")


class Preprocessing(Typed):
    """How a slice becomes the network's input."""

    window: Window = Window(level=40, width=400)
    spacing: float = Field(default=1.5, gt=0, description="in-plane pixel spacing, mm")
    size: int = Field(default=256, gt=0, description="pixels a side of a training crop")
    beside: tuple[Annotated[float, Field(gt=0, le=50)], ...] = Field(
        default=(), max_length=4, description="mm; what lies so far below and above a slice is seen with it"
    )


class Provenance(Typed):
    """Where the weights come from."""

    data: tuple[str, ...] = ()
    command: str = ""
    parent: str = ""
    created: str = ""
    figures: dict[str, float] = {}
    notes: str = ""


class Header(Typed):
    """All that travels with the weights of a segmenter."""

    kind: Literal["segmenter", "encoder"] = "segmenter"
    format: Literal[1] = 1
    network: NetworkConfig = NetworkConfig()
    preprocessing: Preprocessing = Preprocessing()
    labels: dict[str, int] = Field(default={}, description="name to id, 1..N without gaps")
    largest: dict[str, int] = Field(default={}, description="label name to the number of 3D components kept")
    certain: float = Field(
        default=0.0, ge=0, le=1, description="a label with a smaller share of sure pixels is dropped"
    )
    smooth: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="mm; probabilities of a slice are averaged with its neighbours' by a Gaussian",
    )
    contrast: float = Field(
        default=1.0,
        ge=0.5,
        le=2,
        description="the window is so many times narrower when the segmenter is used than when it was trained",
    )
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        if self.network.channels != 1 + 2 * len(self.preprocessing.beside):
            raise ValueError(f"{self.network.channels} channels do not fit {len(self.preprocessing.beside)} beside")
        return self

    def for_pretraining(self) -> Header:
        """That of an encoder to pre-train for this segmenter: on single slices, whatever the segmenter sees beside."""
        return Header(
            kind="encoder",
            network=self.network.model_copy(update={"channels": 1}),
            preprocessing=self.preprocessing.model_copy(update={"beside": ()}),
        )


def save(path: Path, weights: Mapping[str, torch.Tensor], header: BaseModel, *, key: str = METADATA_KEY) -> str:
    """Write weights and header to `path`, atomically. Returns the file's sha256."""
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    data = to_bytes(tensors, metadata={key: header.model_dump_json()})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path, *, sha256: str | None = None) -> tuple[Header, dict[str, torch.Tensor]]:
    """Header and weights (on the CPU) of the segmenter or encoder at `path`; errors as `load_as` has them."""
    return load_as(Header, path, sha256=sha256)


def load_as(
    kind: type[AnyHeader], path: Path, *, sha256: str | None = None
) -> tuple[AnyHeader, dict[str, torch.Tensor]]:
    """Header, of type `kind`, and weights (on the CPU) of the checkpoint at `path`.

    Raises ModelError where the file is missing, has another hash than `sha256`, or is no checkpoint of ours.
    """
    if not path.is_file():
        raise ModelError(f"the weights {path.name} are missing", hint=f"they are looked for in {path.parent}")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise ModelError(
            f"the weights {path.name} have sha256 {found[:12]}…, but {sha256[:12]}… is expected: fetch them again"
        )
    refuse_pickle(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} is no safetensors file, or a damaged one: {error}") from None
    return parse_header_as(kind, metadata.get(METADATA_KEY), path), weights


def read_header_as(kind: type[AnyHeader], path: Path) -> AnyHeader:
    """The header, of type `kind`, of the checkpoint at `path`, without its weights; ModelError if it has none."""
    refuse_pickle(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            return parse_header_as(kind, (file.metadata() or {}).get(METADATA_KEY), path)
    except SafetensorError as error:
        raise ModelError(f"{path.name} is no safetensors file, or a damaged one: {error}") from None


def parse_header_as(kind: type[AnyHeader], text: str | None, path: Path) -> AnyHeader:
    """The header, of type `kind`, in a checkpoint's metadata; ModelError if it is absent or not of this version."""
    if text is None:
        raise ModelError(f"{path.name} has no PolyCL header; checkpoints come from polycl finetune or the catalogue")
    try:
        return kind.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        raise ModelError(f"the header of {path.name} is not one this version reads: {error}") from None


def refuse_pickle(path: Path) -> None:
    """A zip or a pickle by its first bytes. Those of a safetensors file may look alike, but its ninth is `{`."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise ModelError(f"{path.name} is a pickle, which can run code when loaded; only safetensors are accepted")


def kind_of(path: Path) -> str | None:
    """What the header of a checkpoint says that it is ("segmenter", "sam2" ...); None if it has none of ours."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
            return str(header["kind"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def load_foreign(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name (on the CPU) of a file that others published: .safetensors, or torch's own with tensors alone.

    Nothing in it is run. ModelError for anything else.
    """
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError):
        raise ModelError(f"{path.name} is no file of weights, or a damaged one, or holds more than tensors") from None
    weights = weights.get("model", weights) if isinstance(weights, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{path.name} holds no state dict: tensors by name are needed")
    return weights
