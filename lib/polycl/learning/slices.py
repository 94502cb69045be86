"""Labelled slices in memory-mapped files: however many studies, training holds a batch of them in memory.

Of each label, some of the slices that it tells of are kept, cropped to the body, at the image's own spacing. The files
are named by what they are made of, so that a run that goes on, and the next one, find those that are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from polycl.checkpoints import Typed
from polycl.contrast.contents import HASHES, ContentHashes
from polycl.dataset import LabelledSlice
from polycl.errors import InputError, PolyclError
from polycl.files import replacing
from polycl.learning.examples import Example
from polycl.neighbours import neighbours
from polycl.slices import body_box

FORMAT: Literal[2] = 2
"""To be raised whenever the same label would give other slices."""
MOST_SLICES = 4096
"""Slices of all labels together, about: at 512 x 512 pixels less than 3 GB on disk."""
OPEN_FILES = 256


class Row(Typed):
    """One slice: its number in the canonical volume, whether any known structure is on it, and which are known."""

    z: int
    holds: bool
    known: tuple[int, ...]


class SliceFile(Typed):
    """The slices of one label; written after `KEY.hu.npy`, `[C, N, X, Y]` and `KEY.classes.npy`, `[N, X, Y]`.

    C are a slice and what is seen with it, in the order of `polycl.neighbours`.
    """

    key: str
    spacing: tuple[float, float]
    rows: tuple[Row, ...]


class Slices(Sequence[LabelledSlice]):
    """Some of the slices in a folder, read when asked for. It holds no open file, so that processes share it."""

    def __init__(self, folder: Path, rows: Sequence[tuple[SliceFile, int]]) -> None:
        self._folder, self._rows = folder, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> LabelledSlice: ...
    @overload
    def __getitem__(self, index: slice) -> Slices: ...
    def __getitem__(self, index: int | slice) -> LabelledSlice | Slices:
        if isinstance(index, slice):
            return Slices(self._folder, self._rows[index])
        file, number = self._rows[index]
        seen, classes = (_mapped(str(self._folder / f"{file.key}.{kind}.npy")) for kind in ("hu", "classes"))
        hu, *beside = seen[:, number]
        row = file.rows[number]
        return LabelledSlice(hu, classes[number], file.spacing, file.key, row.z, row.known, tuple(beside))


def build(
    examples: Sequence[Example],
    labels: Mapping[str, int],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    beside: Sequence[float] = (),
) -> tuple[Slices, Slices, list[str]]:
    """Slices with and without any of `labels`, and why some examples could not be used.

    With each comes what lies so many mm `beside` it.

    What `folder` holds of other examples is removed. InputError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = ContentHashes(folder)
    making = Making(dict(labels), slices_each(len(examples) * (1 + 2 * len(beside))), tuple(beside))
    files, problems = [], []
    for done, example in enumerate(examples, start=1):
        try:
            key = _key(hashes.of(example.image), example, making)
            files.append(_find(folder, key) or _write(folder, key, example, making))
        except DiskError:
            raise
        except PolyclError as error:
            problems.append(str(error))
        progress(done, len(examples))
    hashes.save()
    _sweep(folder, {file.key for file in files})
    rows = [(file, number, row.holds) for file in files for number, row in enumerate(file.rows)]
    with_any, without = (
        [(file, number) for file, number, holds in rows if holds == wanted] for wanted in (True, False)
    )
    return Slices(folder, with_any), Slices(folder, without), problems


@dataclass(frozen=True)
class Making:
    """What is made of each label: the classes, how many slices at most, and at which mm those seen with them lie."""

    labels: Mapping[str, int]
    most: int
    beside: tuple[float, ...]


class DiskError(InputError):
    """The folder itself cannot be written: no fault of any one label."""


def slices_each(examples: int) -> int:
    """How many slices to keep of each of so many labels: a power of two, so that one more label changes it seldom."""
    return 1 << max(2, (MOST_SLICES // max(1, examples)).bit_length() - 1)


def chosen(known: NDArray[np.bool_], most: int) -> NDArray[np.intp]:
    """Numbers of at most `most` of the slices that are known, evenly spaced, in order."""
    numbers = np.flatnonzero(known)
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).round().astype(int)]


def _key(content: str, example: Example, making: Making) -> str:
    record = example.record.model_dump(mode="json", include={"known", "labels"})
    made_of = {"format": FORMAT, "image": content, "label": example.record.sha256, **asdict(making)}
    return hashlib.sha256(json.dumps(made_of | record, sort_keys=True).encode()).hexdigest()[:32]


def _find(folder: Path, key: str) -> SliceFile | None:
    try:
        file = SliceFile.model_validate_json((folder / f"{key}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    try:
        hu, classes = (np.load(folder / f"{key}.{kind}.npy", mmap_mode="r").shape for kind in ("hu", "classes"))
    except (OSError, ValueError, EOFError):
        return None
    return file if hu[1:] == classes and classes[0] == len(file.rows) else None


def _write(folder: Path, key: str, example: Example, making: Making) -> SliceFile:
    image, label = example.read()
    labels = making.labels
    names = example.knows(labels)
    known = {name: example.record.known_slices(name) for name in names}
    numbers = chosen(np.any(list(known.values()), axis=0), making.most)
    x0, x1, y0, y1 = body_box(image)
    classes = np.zeros((len(numbers), x1 - x0, y1 - y0), dtype=np.uint8)
    for name in names:
        where = example.where(label, name)[x0:x1, y0:y1]
        for row, z in enumerate(numbers):
            if known[name][z]:
                classes[row][where[:, :, z]] = labels[name]
    seen = np.array([neighbours(int(z), image, making.beside) for z in numbers]).T
    hu = np.moveaxis(image.voxels[x0:x1, y0:y1][:, :, seen], (2, 3), (0, 1))
    try:
        for kind, values in (("hu", np.clip(hu, -32768, 32767).astype(np.int16)), ("classes", classes)):
            with replacing(folder / f"{key}.{kind}.npy") as stream:
                np.save(stream, np.ascontiguousarray(values))
        rows = tuple(
            Row(z=int(z), holds=bool(classes[row].any()), known=tuple(labels[name] for name in names if known[name][z]))
            for row, z in enumerate(numbers)
        )
        file = SliceFile(key=key, spacing=(image.spacing[0], image.spacing[1]), rows=rows)
        with replacing(folder / f"{key}.json") as stream:
            stream.write(file.model_dump_json().encode())
    except OSError as error:
        raise DiskError(f"cannot write the slices to train on: {error.strerror}") from None
    return file


def _sweep(folder: Path, used: set[str]) -> None:
    """Remove the slices of other examples, and what a killed process left."""
    for file in folder.iterdir():
        if file.name != HASHES and file.name.partition(".")[0] not in used:
            file.unlink(missing_ok=True)


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str) -> NDArray[np.generic]:
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError, EOFError):
        raise InputError("a file of slices to train on is gone or damaged; start again, and it is made anew") from None
