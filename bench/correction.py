"""An organ from one outlined slice by `polycl-sam2-ct`, and then a correction: what a user waits for.

The image and the models are loaded, nothing of the image is computed yet. The first slice is the organ's middle one,
the correction its reference three quarters up; so half of what was found is void. Both without and with the segmenters
that ship. Real CT where `../shared` has it, else the liver of a phantom. Each is done three times; the fastest counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polycl.catalogue import Catalogue
from polycl.corrector.loading import load_correctors
from polycl.dataset import find_cases
from polycl.errors import ModelError
from polycl.phantom import LABELS, make_phantom
from polycl.propagate.guides import SegmenterGuide
from polycl.propagate.loading import DEFAULT, load_propagator
from polycl.propagate.seeds import Seed
from polycl.propagate.session import Propagation
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ORGANS = (("chaos", "chaos_03", "liver", 1), ("ircad", "ircad_01", "spleen", 2), ("ircad", "ircad_01", "kidney", 4))
TIMES = 3


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each organ and return the figures; none without the weights."""
    try:
        engine = load_propagator(DEFAULT, settings)
    except ModelError as error:
        print(f"correction: not measured, {error.in_full()}")  # noqa: T201
        return {}
    catalogue = Catalogue.default(settings)
    entries = [catalogue.entry(name, "segmenter") for name in catalogue.names("segmenter")]
    segmenters = {one.name: Segmenter.load(one.path, sha256=one.sha256, device=settings.device) for one in entries}
    correctors = load_correctors(settings, segmenters)
    figures: dict[str, Any] = {}
    for name, image, mask in _organs():
        row: dict[str, Any] = {"slices": int(mask.any(axis=(0, 1)).sum())}
        line = f"correction, {name}, {row['slices']} slices:"
        for helped in (False, True):
            times = []
            for _ in range(TIMES):
                guides = [SegmenterGuide(one, key, image, correctors) for key, one in segmenters.items() if helped]
                times.append(_timed(Propagation(image, engine, guides=guides), mask))
            first, correction = map(min, zip(*times, strict=True))
            row["with segmenters" if helped else "alone"] = {"first": first, "correction": correction}
            line += (
                f"{'; with segmenters' if helped else ''} {first:.1f} s ({row['slices'] / first:.0f} slices/s), "
                f"corrected {correction:.1f} s ({correction / first:.0%})"
            )
        figures[name] = row
        print(line)  # noqa: T201
    return figures


def _organs() -> Iterator[tuple[str, Volume, Any]]:
    """Canonical images, each with the mask of an organ."""
    if not all((DATA / folder).is_dir() for folder, *_ in ORGANS):
        phantom = make_phantom(0, shape=(512, 512, 140), spacing=(0.75, 0.75, 2.0))
        yield "phantom liver", phantom.image.canonical(), phantom.labels.canonical().voxels == LABELS["liver"]
        return
    for folder, case_name, organ, number in ORGANS:
        (case,) = (case for case in find_cases(DATA / folder) if case.name == case_name)
        image, label = case.read()
        assert label is not None
        yield f"{case_name} {organ}", image.canonical(), label.canonical().voxels == number


def _timed(session: Propagation, mask: Any) -> tuple[float, float]:
    """Seconds from the middle slice to the whole organ, and from a second one."""
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    taken = []
    for z in (slices[len(slices) // 2], slices[3 * len(slices) // 4]):
        session.put(1, {int(z): Seed(mask[:, :, z])})
        start = time.perf_counter()
        session.run()
        taken.append(time.perf_counter() - start)
    return taken[0], taken[1]
