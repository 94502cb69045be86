"""What is known of one saved label: who made it, when, from what, and where it says something.

Slices are axial slices of the canonical volume (`Volume.canonical()`): number 0 is the lowest. A range is half open,
`(first, last + 1)`, as in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, ValidationError

from polycl.checkpoints import Typed
from polycl.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 2**20
"""Voxels along an axis: far beyond any scan."""
Length = Annotated[int, Field(ge=0, le=LONGEST)]
Ranges = tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
Known = Literal["all"] | Ranges


class ModelVersion(Typed):
    """The weights that made a reply: the model's name and the sha256 of its file."""

    name: str
    sha256: str = ""


class Facts(Typed):
    """What is known of a label whatever becomes of its file."""

    source: Literal["client", "model", "file", "restored"] = Field(
        default="client",
        description="client: a person saved it; model: a reply, seen by nobody; file: found in the store without a "
        "record; restored: an older version again",
    )
    annotator: str = Field(default="", description="login or client_id; empty where the client sent none")
    seconds: float | None = Field(default=None, ge=0, description="from opening the image to saving, if known")
    model: ModelVersion | None = Field(default=None, description="the weights whose reply the label started from")
    shape: tuple[Length, Length, Length] = Field(
        description="voxels along canonical axes; the last counts axial slices"
    )
    labels: dict[str, int] = Field(description="name to value in the file, also of names without any voxel")
    unknown: tuple[str, ...] = Field(default=(), description="names among `labels` that no model here has")
    voxels: dict[str, NonNegativeInt] = Field(description="number of voxels by name; 0 for an empty segment")
    painted: dict[str, Ranges] = Field(description="slices that hold at least one voxel, by name; empty ones left out")
    descends: tuple[str, ...] = Field(default=(), description="names whose outline comes from a whole-volume reply")
    complete: tuple[str, ...] = Field(default=(), description="names marked complete: what is not painted is not it")
    known: dict[str, Known] = Field(
        description="where the label says what is the structure and what is not, by name: all slices, or ranges of "
        "slices; a name that is left out is unknown everywhere, never background"
    )

    def known_slices(self, name: str) -> NDArray[np.bool_]:
        """Whether each axial slice [K] of the canonical volume is known for `name`; all False for an unknown name."""
        import numpy as np

        mask = np.zeros(self.shape[2], dtype=bool)
        where = self.known.get(name, ())
        if where == "all":
            mask[:] = True
        else:
            for start, stop in where:
                mask[start:stop] = True
        return mask


class LabelRecord(Facts):
    """One version of the label of one image under one tag. Never changed: another save makes another version."""

    format: Literal[1] = 1
    image: str = Field(description="id of the image in the store")
    tag: str = "final"
    version: int = Field(ge=1, description="counts the saves of this image and tag; larger is newer")
    parent: int | None = Field(default=None, description="the version that was current when this one was saved")
    file: str = Field(description="name of the label file")
    sha256: str = Field(description="of the label file")
    saved: datetime = Field(description="UTC")


@dataclass(frozen=True)
class SavedLabel:
    """A label of the store: its image, the label file on the image's grid, and its record."""

    image_id: str
    image: Path
    label: Path
    record: LabelRecord


def read_record(path: Path) -> LabelRecord:
    """The record in a file; InputError if it is none, OSError if it cannot be read."""
    try:
        return LabelRecord.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(f"{path.name} is no record of a label, or a damaged one") from None
