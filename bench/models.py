"""The segmenters that ship, on real CT that trained none of them: Dice, HD95, and what they find where nothing is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polycl.catalogue import Catalogue
from polycl.dataset import Case, find_cases
from polycl.metrics import compare
from polycl.segmenter import Segmenter
from polycl.settings import Settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Part:
    """Volumes of a data set: those of the given names, or `first` to `last` of all; ids by label, none if absent."""

    folder: str
    title: str
    names: tuple[str, ...] = ()
    first: int | None = None
    last: int | None = None
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """In name order."""
        cases = find_cases(DATA / self.folder)
        return [case for case in cases if case.name in self.names] if self.names else cases[self.first : self.last]


HEAD = {"brainstem": (1,), "spinal cord": (2,), "right parotid": (3,), "left parotid": (4,), "mandible": (7,)}
RIGHT, LEFT = "right kidney", "left kidney"
TABLE: dict[str, tuple[Part, ...]] = {
    "polycl-abdomen": (
        Part("lits", "validation", ("lits_08", "lits_09", "lits_10"), ids={"liver": (1, 2)}),
        Part("chaos", "another hospital", ("chaos_03",), ids={"liver": (1,)}),
        Part(
            "ircad",
            "another hospital, large tumours",
            ("ircad_01",),
            ids={"liver": (1, 6), "spleen": (2,), RIGHT: (4,), LEFT: (3,)},
        ),
        Part(
            "totalseg",
            "3 mm voxels, no contrast medium",
            ("totalseg_example",),
            ids={"liver": (40,), "spleen": (77,), RIGHT: (39,), LEFT: (38,)},
        ),
        Part("openkbp", "none of them", first=-45),
    ),
    "polycl-liver": (
        Part("lits", "validation", ("lits_08", "lits_09", "lits_10"), ids={"liver": (1, 2)}),
        Part("chaos", "another hospital", ("chaos_03",), ids={"liver": (1,)}),
        Part("ircad", "another hospital, large tumours", ("ircad_01",), ids={"liver": (1, 6)}),
        Part("totalseg", "3 mm voxels", ("totalseg_example",), ids={"liver": (40,)}),
        Part("openkbp", "no liver", first=-45),
    ),
    "polycl-headneck": (
        Part("openkbp", "validation", first=80, last=95, ids=HEAD),
        Part("openkbp", "test", first=-30, ids=HEAD),
        Part("lits", "no head or neck"),
        Part("chaos", "no head or neck"),
        Part("ircad", "no head or neck"),
    ),
}
"""What each model is tried on."""


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each part and label, and return the figures; none without the data."""
    if not DATA.is_dir():
        print("models: not measured, it needs the real CT in ../shared/data")  # noqa: T201
        return {}
    catalogue = Catalogue.default(settings)
    figures: dict[str, Any] = {}
    for name in sorted(TABLE.keys() & set(catalogue.names("segmenter"))):
        entry = catalogue.entry(name, "segmenter")
        where = {"device": settings.device, "precision": settings.precision}
        segmenter = Segmenter.load(entry.path, sha256=entry.sha256, **where)
        for part in TABLE[name]:
            rows = list(_rows(segmenter, part))
            for label in segmenter.header.labels:
                key = f"{name} {part.folder}, {part.title}: {label}"
                figures[key] = row = _summary([one[label] for one in rows])
                print(key, _told(row), sep=": ")  # noqa: T201
    return figures


def _rows(segmenter: Segmenter, part: Part) -> Iterator[dict[str, dict[str, float | None]]]:
    """Of each volume, the figures by label."""
    for case in part.cases():
        image, reference = case.read()
        found = segmenter.segment(image)
        row: dict[str, dict[str, float | None]] = {}
        for label, index in segmenter.header.labels.items():
            if reference is not None and label in part.ids:
                row[label] = compare(found, reference, index, reference_indices=part.ids[label]).as_dict()
            else:
                row[label] = {"predicted_ml": found.millilitres(found.voxels == index)}
        yield row


def _summary(rows: list[dict[str, float | None]]) -> dict[str, float]:
    """Means over the volumes that have a figure, and the most that was found in one."""
    figures = ("dice", "hd95_mm", "surface_dice")
    values = {name: [value for row in rows if (value := row.get(name)) is not None] for name in figures}
    means = {name: float(np.mean(found)) for name, found in values.items() if found}
    most = max(value for row in rows if (value := row["predicted_ml"]) is not None)
    return means | {"volumes": len(rows), "most_ml": most}


def _told(row: Mapping[str, float]) -> str:
    if "dice" not in row:
        return f"at most {row['most_ml']:.1f} ml in any of {row['volumes']}"
    distance = f"{row['hd95_mm']:.1f} mm" if "hd95_mm" in row else "-"
    return f"Dice {row['dice']:.3f}, HD95 {distance}, surface Dice {row['surface_dice']:.3f} ({row['volumes']} volumes)"
