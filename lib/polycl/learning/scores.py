"""How well a segmenter agrees with saved labels, where they are known; the same code before and after training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydantic import Field

from polycl.checkpoints import Typed
from polycl.errors import PolyclError
from polycl.learning.examples import Example
from polycl.metrics import dice
from polycl.segmenter import Segmenter

Values = Iterable[tuple[str, float]]


class Cell(Typed):
    """Dice of one structure in one image; None if neither the label nor the model has any of it."""

    image: str
    patient: str
    label: str
    dice: float | None


class Scores(Typed):
    """What one model reached on the validation labels, and which images could not be used, by id, and why."""

    cells: tuple[Cell, ...] = ()
    skipped: dict[str, str] = Field(default_factory=dict)

    @property
    def dice(self) -> float | None:
        """Mean over patients of the mean over their structures; None if nothing could be scored."""
        return mean_over_groups((cell.patient, cell.dice) for cell in self.cells if cell.dice is not None)


def score(
    segmenter: Segmenter, examples: Sequence[Example], progress: Callable[[int, int], None] = lambda done, total: None
) -> Scores:
    """Dice of whole volumes, each structure on the slices where the label tells of it."""
    cells: list[Cell] = []
    skipped = {}
    for done, example in enumerate(examples, start=1):
        try:
            cells += _cells(segmenter, example)
        except PolyclError as error:
            skipped[example.record.image] = str(error)
        progress(done, len(examples))
    return Scores(cells=tuple(cells), skipped=skipped)


def _cells(segmenter: Segmenter, example: Example) -> Iterable[Cell]:
    image, label = example.read()
    predicted = segmenter.segment(image).voxels
    for name in example.knows(segmenter.header.labels):
        known = example.record.known_slices(name)
        seen = slice(None) if known.all() else np.flatnonzero(known)
        ours = predicted[:, :, seen] == segmenter.header.labels[name]
        found = dice(ours, example.where(label, name)[:, :, seen])
        yield Cell(image=example.record.image, patient=example.patient, label=name, dice=found)


def mean_over_groups(values: Values) -> float | None:
    """Mean of the means of each group; None if there is no value."""
    groups: dict[str, list[float]] = defaultdict(list)
    for group, value in values:
        groups[group].append(value)
    return float(np.mean([np.mean(group) for group in groups.values()])) if groups else None
