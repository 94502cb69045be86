"""Hasty outlines on single slices of real CT: how often, and how well, they are found and mended.

Each structure is taken on three slices, a quarter, a half and three quarters along it, as its reference has it and too
tight, too wide and beside it by 3 mm. Outlines of the reference should stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polycl.dataset import Case, find_cases
from polycl.inexact import shifted, tighter, wider
from polycl.metrics import dice
from polycl.propagate.haste import placed
from polycl.settings import Settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
Mask = NDArray[np.bool_]
Spacing = tuple[float, float]
OFF_MM = 3.0
SETS = {
    "chaos": slice(None),
    "ircad": slice(None),
    "lits": slice(None),
    "totalseg": slice(None),
    "openkbp": slice(95, None),
}
"""By data set: its cases; of OpenKBP those for testing."""
JOINED = {"lits": {2: 1}, "ircad": {6: 1}}
"""By data set: lesions, and the organ that they count to."""
LEFT_OUT = {"ircad": {5, 7}, "openkbp": {2, 5, 6}}
"""Structures of several parts, all lungs or bones, and those that only some patients have."""
SHARES = (0.25, 0.5, 0.75)
LEAST_PIXELS, LEAST_MM2 = 25, 150.0
KINDS: dict[str, Callable[[Mask, Spacing], Mask]] = {
    "as it is": lambda mask, spacing: mask,
    "too tight": lambda mask, spacing: tighter(mask, spacing, OFF_MM),
    "too wide": lambda mask, spacing: wider(mask, spacing, OFF_MM),
    "beside it": lambda mask, spacing: shifted(mask, spacing, OFF_MM, np.pi / 4),
}


class Slice(NamedTuple):
    """HU and mask of a structure on an axial slice, [X, Y], and mm between pixels."""

    hu: NDArray[Any]
    mask: Mask
    spacing: Spacing


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each data set and kind and return the figures; none without the data."""
    if not DATA.is_dir():
        print("haste: not measured, it needs the real CT in ../shared/data")  # noqa: T201
        return {}
    figures: dict[str, Any] = {}
    for folder, chosen in SETS.items():
        slices = [one for case in find_cases(DATA / folder)[chosen] for one in _slices(case, folder)]
        for kind, draw in KINDS.items():
            outlines = [(one, draw(one.mask, one.spacing)) for one in slices]
            told = [
                (one, drawn)
                for one, drawn in outlines
                if drawn.any() and (drawn is one.mask or (drawn != one.mask).any())
            ]
            rows = [_row(one, drawn) for one, drawn in told]
            if rows:
                drawn, found, moved = (float(value) for value in np.mean(rows, axis=0))
                figures[f"{folder} {kind}"] = {"drawn": drawn, "placed": found, "moved": moved, "slices": len(rows)}
                scores = f"Dice {drawn:.3f} drawn, {found:.3f} placed"
                print(f"{folder} {kind} ({len(rows)} slices): moved {moved:.1%}, {scores}")  # noqa: T201
    return figures


def _slices(case: Case, folder: str) -> Iterator[Slice]:
    image, label = case.read()
    assert label is not None
    ids = label.voxels.copy()
    for lesion, organ in JOINED.get(folder, {}).items():
        ids[ids == lesion] = organ
    for index in sorted(set(np.unique(ids).tolist()) - {0} - LEFT_OUT.get(folder, set())):
        there = np.flatnonzero((ids == index).any(axis=(0, 1)))
        for z in [int(there[int(len(there) * share)]) for share in SHARES]:
            mask = ids[:, :, z] == index
            area = mask.sum() * image.spacing[0] * image.spacing[1]
            if mask.sum() >= LEAST_PIXELS and area >= LEAST_MM2:
                yield Slice(image.voxels[:, :, z], mask, image.spacing[:2])


def _row(one: Slice, drawn: Mask) -> tuple[float, float, float]:
    """Dice as drawn and as placed, and whether it was moved."""
    found = placed(drawn, one.hu, one.spacing)
    return dice(drawn, one.mask) or 0.0, dice(found, one.mask) or 0.0, float(found is not drawn)
