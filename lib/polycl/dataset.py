"""A data set on disk: a folder with `images/` and `labels/` of same-named NIfTI files, paired by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.neighbours import neighbours
from polycl.volume import Volume, read_volume

SUFFIXES = (".nii.gz", ".nii", ".nrrd")


@dataclass(frozen=True)
class Case:
    """One patient's image and, if there is one, its label map."""

    name: str
    image: Path
    label: Path | None

    def read(self) -> tuple[Volume, Volume | None]:
        """Image and label map in canonical axes; InputError if they are not on one grid."""
        image = read_volume(self.image)
        if self.label is None:
            return image.canonical(), None
        label = read_volume(self.label, kind="label")
        image.require_same_grid(label, f"the label of {self.name}")
        return image.canonical(), label.canonical()


@dataclass(frozen=True)
class Target:
    """A structure to learn, and the ids that make it up in the data set's label maps.

    >>> Target.parse("liver=1,2")
    Target(name='liver', ids=(1, 2))
    """

    name: str
    ids: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Target:
        """From `NAME=ID[,ID…]`; InputError says so if it is anything else."""
        name, _, ids = text.partition("=")
        try:
            numbers = tuple(int(number) for number in ids.split(","))
        except ValueError:
            numbers = ()
        if not name or not numbers or min(numbers) < 1:
            raise InputError(f"{text!r} is no target; write NAME=ID or NAME=ID,ID, such as liver=1,2")
        return cls(name, numbers)


def find_cases(folder: Path, patterns: Sequence[str] = ("*",), *, labelled: bool = True) -> list[Case]:
    """The cases of a data set in name order, of those names that match one of `patterns`.

    Raises NotFoundError if there is no such folder or no match, InputError where `labelled` and a label is missing.
    """
    images = folder / "images"
    if not images.is_dir():
        raise NotFoundError(f"{folder} is no data set: it has no folder images/ (and labels/ beside it)")
    files = {case_name(file): file for file in sorted(images.iterdir()) if file.name.endswith(SUFFIXES)}
    names = [name for name in files if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        raise NotFoundError(f"no image in {images} matches {' '.join(patterns)}; it holds {len(files)} images")
    cases = [Case(name, files[name], _label_of(files[name])) for name in names]
    missing = [case.name for case in cases if case.label is None]
    if labelled and missing:
        raise InputError(f"labels are needed, and {folder / 'labels'} has none for {', '.join(missing[:5])}")
    return cases


def case_name(file: Path) -> str:
    """A file's name without its suffix."""
    return next((file.name.removesuffix(suffix) for suffix in SUFFIXES if file.name.endswith(suffix)), file.name)


def _label_of(image: Path) -> Path | None:
    folder = image.parent.parent / "labels"
    return next((file for suffix in SUFFIXES if (file := folder / (case_name(image) + suffix)).is_file()), None)


@dataclass(frozen=True)
class LabelledSlice:
    """One axial slice: HU `[X, Y]`, class ids `[X, Y]` (0 is background), pixel spacing in mm, and its origin.

    `known` names the classes that the label tells of; where it is background, any other may be. None stands for all.
    `beside` has what a network sees with it, in the order of `polycl.neighbours`: HU `[X, Y]` each.
    """

    hu: NDArray[np.int16]
    classes: NDArray[np.uint8]
    spacing: tuple[float, float]
    case: str
    index: int
    known: tuple[int, ...] | None = None
    beside: tuple[NDArray[np.int16], ...] = ()


def labelled_slices(
    cases: Sequence[Case], targets: Sequence[Target], *, every: int = 1, beside: Sequence[float] = ()
) -> Iterator[LabelledSlice]:
    """Each `every`-th slice of the cases, label ids mapped to 1..N in the order of `targets`.

    Cases without a label are taken to hold none of the targets. With each comes what lies so many mm `beside` it.
    """
    table = np.zeros(256, dtype=np.uint8)
    for class_id, target in enumerate(targets, start=1):
        table[list(target.ids)] = class_id
    for case in cases:
        image, label = case.read()
        slices = np.ascontiguousarray(np.moveaxis(image.voxels, 2, 0)).astype(np.int16)
        for z in range(0, image.shape[2], every):
            hu, *others = (slices[number] for number in neighbours(z, image, beside))
            classes = np.zeros(hu.shape, np.uint8) if label is None else table[label.voxels[:, :, z].astype(np.uint8)]
            spacing = image.spacing[0], image.spacing[1]
            yield LabelledSlice(hu, classes, spacing, case.name, z, beside=tuple(others))
