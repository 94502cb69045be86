"""The folder that MONAI Label keeps images and saved labels in, read without MONAI Label.

`datastore_v2.json` lists images by id with the labels saved of each; the files are `<id><ext>` beside it and
`labels/<tag>/<id><ext>`. Labels that people saved have the tag `final`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from polycl.dataset import SUFFIXES, Case, Target, case_name
from polycl.errors import InputError, NotFoundError

INDEX = "datastore_v2.json"
FINAL = "final"


@dataclass(frozen=True)
class SavedLabel:
    """An image, the label saved of it, and the names of the label's segments from value 1 on, where they are known."""

    image: Path
    label: Path
    segments: tuple[str, ...] | None

    def ids(self, target: Target) -> tuple[int, ...]:
        """The values that the target has in this label; none if its segments are known and the target is not one."""
        if self.segments is None:
            return target.ids
        return tuple(value for value, name in enumerate(self.segments, start=1) if name == target.name)


def saved_labels(folder: Path) -> dict[str, SavedLabel]:
    """The images that have a final label, by id, in order.

    Raises NotFoundError if there is no such folder or it has no label, InputError if its index cannot be read.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    index = _index(folder)
    images, labels = folder / index.images_dir, folder / index.labels_dir / FINAL
    saved = {}
    for name, entry in sorted(index.objects.items()):
        if (final := entry.labels.get(FINAL)) is not None:
            image, label = images / f"{name}{entry.image.ext}", labels / f"{name}{final.ext}"
            if {image.parent, label.parent} != {images, labels}:
                raise InputError(f"{folder / INDEX}: {name!r} is no name of a file")
            if image.exists() and label.exists():
                saved[name] = SavedLabel(image, label, _segments(final.info))
    if not saved:
        raise NotFoundError(f"{folder} has no image with a saved label in {labels.relative_to(folder)}")
    return saved


def saved_cases(folder: Path, target: Target) -> list[Case]:
    """The images whose final label tells whether the target is there, with those labels. Errors as `saved_labels`."""
    return [Case(name, one.image, one.label) for name, one in saved_labels(folder).items() if one.ids(target)]


class _File(BaseModel):
    ext: str = ""
    info: dict[str, Any] = {}


class _Entry(BaseModel):
    image: _File
    labels: dict[str, _File] = {}


class _Index(BaseModel):
    """As monailabel.datastore.local.LocalDatastoreModel writes it."""

    images_dir: str = ""
    labels_dir: str = "labels"
    objects: dict[str, _Entry] = {}


def _index(folder: Path) -> _Index:
    """What the index says; what the folders hold, where no server has written one yet."""
    file = folder / INDEX
    try:
        return _Index.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _listed(folder)
    except (OSError, ValidationError):
        raise InputError(f"{file} cannot be read, or a server is just writing it; try again") from None


def _listed(folder: Path) -> _Index:
    """The index that a server would write on finding these files."""
    labels = _volumes(folder / "labels" / FINAL)
    return _Index(
        objects={
            name: _Entry(image=_File(ext=ext), labels={FINAL: _File(ext=labels[name])} if name in labels else {})
            for name, ext in _volumes(folder).items()
        }
    )


def _volumes(folder: Path) -> dict[str, str]:
    """Name to suffix of the volumes in a folder; nothing where there is no folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {case_name(file): file.name.removeprefix(case_name(file)) for file in files if file.name.endswith(SUFFIXES)}


def _segments(info: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names in the order of `label_info`: the v-th entry names the value v, whatever its own number says."""
    listed = info.get("label_info")
    if not isinstance(listed, list) or not listed:
        return None
    return tuple(str(one.get("name", "")) if isinstance(one, dict) else "" for one in listed)
