"""Propagation of one reference mask on an organ's middle slice, on real CT that trained no model of ours.

Beside the Dice in 3D: what was found beyond the organ's own ends, as a share of its volume, and seconds; the same with
the help of the segmenters that ship, as a user has it, where one recognises the organ; and with that help, where it is
said at which slices the organ begins and ends. Also with that help from two slices, a quarter from each end; and for
some organs from a shaky seed (eroded, dilated, shifted by 3 mm; the worst counts).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.catalogue import Catalogue
from polycl.corrector.loading import load_correctors
from polycl.dataset import find_cases
from polycl.errors import ModelError
from polycl.inexact import shifted, tighter, wider
from polycl.metrics import dice
from polycl.propagate.engine import VideoEngine
from polycl.propagate.guides import Guide, SegmenterGuide
from polycl.propagate.loading import DEFAULT, load_propagator
from polycl.propagate.seeds import Seed, with_ends
from polycl.propagate.session import Propagation
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SHAKE_MM = 3.0
HEAD_AND_NECK_TEST = 30
Mask = NDArray[np.bool_]
Helpers = Callable[[Volume], Sequence[Guide]]
"""Segmenters that may help, for a canonical volume."""


@dataclass(frozen=True)
class Organ:
    """An organ by its ids in a data set's label maps, and the Dice to reach; `shaky` ones get shaky seeds, too."""

    name: str
    ids: tuple[int, ...]
    least: float
    shaky: bool = False


TABLE: dict[str, tuple[str, tuple[Organ, ...]]] = {
    "chaos": ("chaos_03", (Organ("liver", (1,), 0.94, True),)),
    "lits": ("lits_08 lits_09 lits_10", (Organ("liver", (1, 2), 0.94),)),
    "ircad": (
        "ircad_01",
        (
            Organ("right kidney", (4,), 0.93, True),
            Organ("left kidney", (3,), 0.93, True),
            Organ("spleen", (2,), 0.90, True),
        ),
    ),
    "totalseg": (
        "totalseg_example",
        (
            Organ("liver", (40,), 0.88, True),
            Organ("spleen", (77,), 0.88, True),
            Organ("left kidney", (38,), 0.88, True),
            Organ("right kidney", (39,), 0.88, True),
        ),
    ),
    "openkbp": (
        "last",
        (
            Organ("mandible", (7,), 0.80),
            Organ("brainstem", (1,), 0.80),
            Organ("right parotid", (3,), 0.80),
            Organ("left parotid", (4,), 0.80),
        ),
    ),
}
"""By data set: its cases, and the organs in each."""


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each organ and return the figures; no figures without the data or the weights."""
    if not DATA.is_dir():
        print("propagation_accuracy: not measured, it needs the real CT in ../shared/data")  # noqa: T201
        return {}
    try:
        engine = load_propagator(DEFAULT, settings)
    except ModelError as error:
        print(f"propagation_accuracy: not measured, {error.in_full()}")  # noqa: T201
        return {}
    catalogue = Catalogue.default(settings)
    entries = [catalogue.entry(name, "segmenter") for name in catalogue.names("segmenter")]
    where = {"device": settings.device, "precision": settings.precision}
    segmenters = {one.name: Segmenter.load(one.path, sha256=one.sha256, **where) for one in entries}
    correctors = load_correctors(settings, segmenters)

    def helpers(image: Volume) -> list[Guide]:
        return [SegmenterGuide(one, name, image, correctors) for name, one in segmenters.items()]

    return measure(engine, helpers)


def measure(
    engine: VideoEngine,
    helpers: Helpers | None,
    most: int = HEAD_AND_NECK_TEST,
    *,
    varied: bool = True,
) -> dict[str, Any]:
    """Figures by data set and organ, of `most` volumes at most; printed as they come. `varied`: other seeds too."""
    figures: dict[str, Any] = {}
    for folder, (names, organs) in TABLE.items():
        for organ in organs:
            cases = islice(_cases(folder, names, organ), most)
            kinds = {"two": varied, "shaky": varied and organ.shaky}
            rows = [_row(image, mask, engine, helpers, **kinds) for image, mask in cases]
            if not rows:
                continue
            means = {key: float(np.mean([row[key] for row in rows if key in row])) for key in rows[0]}
            figures[f"{folder} {organ.name}"] = means | {"least": organ.least, "volumes": len(rows)}
            others = "".join(f", {key} {means[key]:.3f}" for key in ("bounded", "shaky", "two seeds") if key in means)
            helped = (
                ""
                if helpers is None
                else (
                    f"; with a segmenter that recognised {means['recognised']:.0%} of them {means['helped']:.3f}, "
                    f"beyond {means['helped beyond']:.1%}, {means['helped seconds']:.1f} s"
                )
            )
            print(  # noqa: T201
                f"{folder} {organ.name} ({len(rows)}): Dice {means['dice']:.3f} (at least {organ.least:.2f}){others}, "
                f"beyond its ends {means['beyond']:.1%}, {means['seconds']:.1f} s{helped}"
            )
    return figures


def _cases(folder: str, names: str, organ: Organ) -> Iterator[tuple[Volume, Mask]]:
    """Canonical images that hold the organ, with its mask."""
    cases = find_cases(DATA / folder)
    chosen = cases[-HEAD_AND_NECK_TEST:] if names == "last" else [case for case in cases if case.name in names.split()]
    for case in chosen:
        image, label = case.read()
        if label is not None and (mask := np.isin(label.voxels, organ.ids)).any():
            yield image, mask


def _row(
    image: Volume, reference: Mask, engine: VideoEngine, helpers: Helpers | None, *, two: bool, shaky: bool
) -> dict[str, float]:
    slices = np.flatnonzero(reference.any(axis=(0, 1)))
    middle = int(slices[len(slices) // 2])
    row = {}
    for kind, help_by in (("", None),) if helpers is None else (("", None), ("helped ", helpers)):
        start = time.perf_counter()
        session = _session(image, engine, {middle: reference[:, :, middle]}, help_by)
        found = _found(session)
        row[kind.strip() or "dice"] = _dice(found, reference)
        row[f"{kind}seconds"] = time.perf_counter() - start
        found[:, :, slices[0] : slices[-1] + 1] = False
        row[f"{kind}beyond"] = float(found.sum() / reference.sum())
        row["recognised"] = float(bool(session.recognised))
    ends = (int(slices[0]), int(slices[-1]))
    bounded = _session(image, engine, {middle: reference[:, :, middle]}, helpers, ends)
    row["bounded"] = _dice(_found(bounded), reference)
    if shaky:
        seeds = _shaken(reference[:, :, middle], image.spacing)
        sessions = [_session(image, engine, {middle: seed}, helpers) for seed in seeds]
        row["shaky"] = min(_dice(_found(session), reference) for session in sessions)
    if two:
        quarters = [int(slices[int(len(slices) * share)]) for share in (0.25, 0.75)]
        session = _session(image, engine, {z: reference[:, :, z] for z in quarters}, helpers)
        row["two seeds"] = _dice(_found(session), reference)
    return row


def _session(
    image: Volume,
    engine: VideoEngine,
    seeds: dict[int, Mask],
    helpers: Helpers | None = None,
    ends: tuple[int | None, int | None] = (None, None),
) -> Propagation:
    session = Propagation(image, engine, guides=() if helpers is None else helpers(image.canonical()))
    session.put(1, with_ends({z: Seed(mask) for z, mask in seeds.items()}, image, *ends))
    return session


def _found(session: Propagation) -> Mask:
    return np.asarray(session.run().canonical().voxels == 1)


def _dice(found: Mask, reference: Mask) -> float:
    score = dice(found, reference)
    return 0.0 if score is None else score


def _shaken(mask: Mask, spacing: tuple[float, float, float]) -> list[Mask]:
    """The mask made smaller and larger by `SHAKE_MM`, and moved by that aslant; without what nothing is left of."""
    plane = spacing[:2]
    seeds = tighter(mask, plane, SHAKE_MM), wider(mask, plane, SHAKE_MM), shifted(mask, plane, SHAKE_MM, np.pi / 4)
    return [one for one in seeds if one.any()]
