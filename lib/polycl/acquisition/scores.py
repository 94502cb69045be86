"""What a segmenter says of an image, slice by slice: how far it doubts itself, and where it sees the slices.

Scores belong to the content of an image and to the weights of a model. They are kept in one file each, by both:

    WEIGHTS/CONTENT.safetensors     written whole or not at all, read by safetensors alone
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from polycl import checkpoints
from polycl.acquisition.measures import disagreement, views_of
from polycl.checkpoints import Typed
from polycl.errors import ModelError
from polycl.segmenter import Segmenter
from polycl.segmenter.network import STRIDE
from polycl.slices import SliceGrid
from polycl.volume import Volume

MOST_SLICES = 64
"""Of an image, evenly spaced, are looked at: neighbours tell nearly the same, and a large CT must not take minutes."""
MODELS_KEPT = 2
"""Versions of models whose scores stay: the live one's, and those it took over from, for who rolls back."""


class Place(Typed):
    """Where the slices of an image are: its affines and shapes, canonical and as in its file."""

    affine: tuple[tuple[float, float, float, float], ...]
    shape: tuple[int, int, int]
    file_affine: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def of(cls, volume: Volume) -> Place:
        """The place of an image as its file has it."""
        canonical = volume.canonical()
        return cls(affine=_rows(canonical.affine), shape=canonical.shape, file_affine=_rows(volume.affine))

    def slice(self, number: int) -> dict[str, object]:
        """A canonical axial slice as a person finds it again.

        `number` counts from the lowest, 0; `of` is how many there are. `ras` is its centre in millimetres. `axis` and
        `index` are where it lies in the file: Slicer's Data Probe shows `index` as the last of its three, for axial
        images. OHIF's MONAI Label mode counts from the head: it shows `of` - `number`.
        """
        i, j, depth = self.shape
        centre = np.array(self.affine) @ ((i - 1) / 2, (j - 1) / 2, number, 1)
        to_file = np.linalg.inv(np.array(self.file_affine))
        along = np.abs((to_file @ np.array(self.affine))[:3, 2])
        axis = int(along.argmax())
        ras = [round(float(value), 2) for value in centre[:3]]
        return {
            "number": number,
            "of": depth,
            "axis": "ijk"[axis],
            "index": round(float((to_file @ centre)[axis])),
            "ras": ras,
        }


class _Header(Typed):
    kind: Literal["scores"] = "scores"
    format: Literal[2] = 2
    place: Place


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of N slices of one image.

    Attributes:
        numbers: of the slices, from the lowest, `[N]`.
        disagreement: over each of C structures, in nats summed over the slice and times the area of a pixel in cm²,
            `[N, C]`: an area of doubt.
        area: of each structure as far as it is probable, cm², `[N, C]`.
        embeddings: the slices in the encoder's space, `[N, E]`.
    """

    place: Place
    numbers: NDArray[np.int64]
    disagreement: NDArray[np.float32]
    area: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def score(
    segmenter: Segmenter,
    volume: Volume,
    between: Callable[[], object] = lambda: None,
    most: int = MOST_SLICES,
    among: NDArray[np.int64] | None = None,
) -> Scores:
    """Scores of at most `most` slices of a CT in HU with any axis order; `between` is called before each batch.

    They are evenly spaced among those numbered in `among`, or among all.
    """
    canonical, what = volume.canonical(), segmenter.header.preprocessing
    grid = SliceGrid.of(canonical, what.spacing, STRIDE)
    among = np.arange(canonical.shape[2]) if among is None else among
    numbers = among[np.unique(np.linspace(0, len(among) - 1, min(len(among), most)).round().astype(np.int64))]
    pixel = (what.spacing / 10) ** 2
    columns: list[list[torch.Tensor]] = []
    size = segmenter.batch_of(grid)
    for start in range(0, len(numbers), size):
        between()
        few = [segmenter.read(canonical, grid, int(z), int(z) + 1) for z in numbers[start : start + size]]
        slices = torch.cat(few)
        logits, embeddings = segmenter.observe(slices)
        views = views_of(segmenter.logits, slices.to(logits.device), logits)[..., : grid.size[0], : grid.size[1]]
        sums = [disagreement(views), views.mean(dim=0)[:, 1:]]
        columns.append([*(one.sum(dim=(2, 3)) * pixel for one in sums), embeddings])
    doubt, area, embedded = (torch.cat(column).float().cpu().numpy() for column in zip(*columns, strict=True))
    return Scores(Place.of(volume), numbers, doubt, area, embedded)


class ScoreStore:
    """Scores in a folder, by the sha256 of the model's weights and of the image's file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, weights: str, content: str) -> bool:
        """Whether there are scores, whole or damaged."""
        return self._file(weights, content).is_file()

    def get(self, weights: str, content: str) -> Scores | None:
        """The scores, None if there are none; damaged ones are removed."""
        file = self._file(weights, content)
        if not file.is_file():
            return None
        try:
            header, parts = checkpoints.load_as(_Header, file)
            found = {name: part.numpy() for name, part in parts.items()}
            return Scores(header.place, **found)
        except (ModelError, TypeError):
            file.unlink(missing_ok=True)
            return None

    def put(self, weights: str, content: str, scores: Scores) -> None:
        """Keep scores. InputError if they cannot be written."""
        names = ("numbers", "disagreement", "area", "embeddings")
        parts = {name: torch.from_numpy(np.ascontiguousarray(getattr(scores, name))) for name in names}
        checkpoints.save(self._file(weights, content), parts, _Header(place=scores.place))

    def sweep(self, weights: str) -> None:
        """Remove the scores of all models but this one and the newest others, and what a killed process left."""
        folders = [one for one in self._folder.iterdir() if one.is_dir()] if self._folder.is_dir() else []
        others = sorted((one for one in folders if one.name != weights), key=lambda one: one.stat().st_mtime)
        for old in others[: max(0, len(others) - MODELS_KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self._folder.glob("*/.*"):
            left.unlink(missing_ok=True)

    def _file(self, weights: str, content: str) -> Path:
        return self._folder / weights / f"{content}.safetensors"


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
