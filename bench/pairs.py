"""Drawing pairs for contrastive pre-training: from the slice store, and by reading both volumes anew for each pair.

The peer does what the published script does for a pair, less what it need not: each volume is read whole through
nibabel's get_fdata, one slice taken, windowed and resized; it reads no segmentation, and windows one slice, not all.
Ours draws a triplet by rule and reads its three slices, and counts it as one pair. All files are in the page cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polycl.checkpoints import Preprocessing
from polycl.contrast import presence
from polycl.contrast.scans import find_scans
from polycl.contrast.selection import STRATEGIES, Triplets
from polycl.contrast.store import SliceStore
from polycl.dataset import Case, Target
from polycl.phantom import LABELS, make_phantom
from polycl.settings import Settings
from polycl.volume import write_volume

SCANS, SHAPE, SPACING = 4, (256, 256, 80), (1.5, 1.5, 5.0)
PREPROCESSING = Preprocessing(spacing=1.5, size=256)
BATCH, SECONDS = 64, 3.0
GOAL = 100


def run(settings: Settings) -> dict[str, Any]:
    """Measure; prints a table and returns the figures."""
    with tempfile.TemporaryDirectory() as name:
        cases = _scans(Path(name))
        started = time.perf_counter()
        store = SliceStore.build(cases, PREPROCESSING, Path(name) / "store")
        built = time.perf_counter() - started
        started = time.perf_counter()
        SliceStore.build(cases, PREPROCESSING, Path(name) / "store")
        again = time.perf_counter() - started
        present = presence.from_labels(store, cases, Target("liver", (LABELS["liver"],)))
        ours = {strategy: store_rate(store, present, strategy) for strategy in STRATEGIES}
        peer = reading_rate([case.image for case in cases])
    shape, size = " x ".join(map(str, SHAPE)), PREPROCESSING.size
    lines = [f"pairs of slices of {SCANS} scans of {shape}, {size} x {size}"]
    lines += [f"  reading both volumes for each pair: {peer:.2f} pairs/s"]
    lines += [
        f"  store, {one}: {rate:.0f} pairs/s, {rate / peer:.0f} times (goal {GOAL})" for one, rate in ours.items()
    ]
    lines += [
        f"  store built in {built:.2f} s by one process ({len(store)} slices), found again in {again * 1000:.0f} ms"
    ]
    print("\n".join(lines))  # noqa: T201
    return {
        "reading_pairs_per_second": peer,
        "store_pairs_per_second": ours,
        "ratio": min(ours.values()) / peer,
        "build_slices_per_second": len(store) / built,
        "found_again_seconds": again,
    }


def _scans(folder: Path) -> list[Case]:
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for seed in range(SCANS):
        phantom = make_phantom(seed, shape=SHAPE, spacing=SPACING)
        write_volume(phantom.image, folder / "images" / f"{seed}.nii.gz")
        write_volume(phantom.labels, folder / "labels" / f"{seed}.nii.gz")
    return find_scans(folder)


def store_rate(store: SliceStore, present: NDArray[np.bool_], strategy: Any) -> float:
    """Triplets a second, drawn and read in batches."""
    triplets = Triplets(strategy, store.scan, present, seed=0)
    store.read(triplets.draw(np.arange(BATCH)))
    batches, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < SECONDS:
        store.read(triplets.draw(np.arange(batches * BATCH, (batches + 1) * BATCH)))
        batches += 1
    return batches * BATCH / taken


def reading_rate(images: list[Path]) -> float:
    """Pairs a second, where each slice of a pair costs a reading of its volume."""
    random = np.random.default_rng(0)
    read_slice(images[0], random)
    pairs, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < SECONDS or pairs < 5:
        for scan in random.integers(len(images), size=2):
            read_slice(images[scan], random)
        pairs += 1
    return pairs / taken


def read_slice(image: Path, random: np.random.Generator) -> NDArray[np.float64]:
    """A random slice of a volume, read for it alone."""
    voxels = nibabel.load(image).get_fdata()
    hu = voxels[:, :, random.integers(voxels.shape[2])]
    window, size = PREPROCESSING.window, PREPROCESSING.size
    seen = np.clip(hu, window.low, window.high).astype(np.float32)
    return (
        np.asarray(Image.fromarray(seen).resize((size, size), Image.Resampling.BILINEAR)) - window.low
    ) / window.width
