"""Propagation of structures that no model of ours learned to find, alone: all that TotalSegmentator's example shows.

From one reference mask on the middle slice, and from two, a quarter from each end. And pairs of liver lesions, one
above the other, each from the slice where it is largest, both as one label: two things that must stay two.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.dataset import find_cases
from polycl.errors import ModelError
from polycl.metrics import dice
from polycl.propagate.engine import VideoEngine
from polycl.propagate.loading import DEFAULT, load_propagator
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.settings import Settings
from polycl.volume import Volume

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WHERE = {"one": (0.5,), "two": (0.25, 0.75)}
"""Annotated slices, in shares of a structure's length."""
LEAST_SLICES = 5
LESIONS = {"lits": 2, "ircad": 6}
LEAST_LESION = (3, 60)
"""Slices and voxels."""
PAIRS = 5
"""Of a patient, at most, chosen at random."""
Mask = NDArray[np.bool_]


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each structure and return the figures; none without the data or the weights."""
    if not DATA.is_dir():
        print("generality: not measured, it needs the real CT in ../shared/data")  # noqa: T201
        return {}
    try:
        engine = load_propagator(DEFAULT, settings)
    except ModelError as error:
        print(f"generality: not measured, {error.in_full()}")  # noqa: T201
        return {}
    structures = _structures(engine)
    lesions = list(_lesions(engine))
    means = {kind: float(np.mean([row[kind] for row in structures.values()])) for kind in WHERE}
    figures = {"structures": structures, "mean": means, "lesions": float(np.mean(lesions)), "pairs": len(lesions)}
    print(  # noqa: T201
        f"{len(structures)} structures: mean Dice from one slice {means['one']:.3f}, from two {means['two']:.3f}; "
        f"{len(lesions)} pairs of lesions: {figures['lesions']:.3f}"
    )
    return figures


def _structures(engine: VideoEngine) -> dict[str, dict[str, float]]:
    names = json.loads((DATA / "totalseg" / "labels.json").read_text())
    image, labels = find_cases(DATA / "totalseg")[0].read()
    assert labels is not None
    rows = {}
    for index in sorted(set(np.unique(labels.voxels).tolist()) - {0}):
        mask = labels.voxels == index
        there = np.flatnonzero(mask.any(axis=(0, 1)))
        if len(there) < LEAST_SLICES:
            continue
        row = {
            kind: _score(engine, image, mask, [int(there[int(len(there) * share)]) for share in shares])
            for kind, shares in WHERE.items()
        }
        name = names[str(index)].replace("_", " ")
        print(f"{name}: from one slice {row['one']:.3f}, from two {row['two']:.3f}")  # noqa: T201
        rows[name] = row
    return rows


def _lesions(engine: VideoEngine) -> Iterator[float]:
    """Dice of pairs, each of one patient."""
    random = np.random.default_rng(0)
    for folder, index in LESIONS.items():
        for case in find_cases(DATA / folder):
            image, labels = case.read()
            assert labels is not None
            pairs = _apart(labels.voxels == index)
            for number in random.permutation(len(pairs))[:PAIRS]:
                both = pairs[number]
                largest = [int(np.argmax(one.sum(axis=(0, 1)))) for one in both]
                yield _score(engine, image, both[0] | both[1], largest)


def _apart(mask: Mask) -> list[tuple[Mask, Mask]]:
    """Pairs of pieces, the first of which ends below where the second begins, with a slice between."""
    pieces, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = pieces == number
        if box[2].stop - box[2].start >= LEAST_LESION[0] and piece.sum() >= LEAST_LESION[1]:
            found.append((box[2], piece))
    return [
        (one, other) for (low, one), (high, other) in itertools.permutations(found, 2) if low.stop + 1 <= high.start
    ]


def _score(engine: VideoEngine, image: Volume, mask: Mask, slices: Sequence[int]) -> float:
    session = Propagation(image, engine)
    session.put(1, {z: Seed(mask[:, :, z]) for z in slices})
    return dice(session.run().canonical().voxels == 1, mask) or 0.0
