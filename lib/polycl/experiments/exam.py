"""The test cases of a task, read once, and what a segmenter comes to on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polycl.errors import InputError
from polycl.experiments.tasks import Scored
from polycl.metrics import compare, dice
from polycl.segmenter.inference import Segmenter
from polycl.volume import Volume

Figures = dict[str, float | None]
Scores = dict[str, dict[str, dict[str, Figures]]]
"""By domain, case and label."""


class Exam:
    """Test cases by domain. With `distances` HD95 and surface Dice are taken too, which costs more than Dice."""

    def __init__(self, tests: Mapping[str, tuple[Scored, ...]], *, distances: bool) -> None:
        self._tests, self._distances = tests, distances
        self._volumes: dict[str, tuple[Volume, Volume]] = {}

    def scores(self, segmenter: Segmenter) -> Scores:
        """Figures of each label in each case; None where both have none of it. InputError for a case without label."""
        return {
            domain: {scored[0].name: self._figures(segmenter, scored) for scored in cases}
            for domain, cases in self._tests.items()
        }

    def _figures(self, segmenter: Segmenter, scored: Scored) -> dict[str, Figures]:
        case, targets = scored
        if case.name not in self._volumes:
            image, label = case.read()
            if label is None:
                raise InputError(f"{case.name} has no label to test against")
            self._volumes[case.name] = image, label
        image, label = self._volumes[case.name]
        predicted = segmenter.segment(image)
        rows = {}
        for target in targets:
            index = segmenter.header.labels[target.name]
            if self._distances:
                figures = compare(predicted, label, index, reference_indices=target.ids)
                found = {name: getattr(figures, name) for name in ("dice", "hd95_mm", "surface_dice")}
            else:
                found = {"dice": dice(predicted.voxels == index, np.isin(label.voxels, target.ids))}
            rows[target.name] = {name: None if value is None else round(value, 4) for name, value in found.items()}
        return rows


def mean_scores(row: Mapping[str, Any], domain: str, figure: str) -> dict[str, float]:
    """Per case of a row with `scores`, the mean of `figure` over labels; cases without the figure are left out."""
    means = {}
    for case, labels in row["scores"][domain].items():
        values = [label[figure] for label in labels.values() if label[figure] is not None]
        if values:
            means[case] = float(np.mean(values))
    return means
