"""Saved labels of small phantoms, as the label store would list them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from polycl.files import sha256_of
from polycl.labels.record import Known, LabelRecord, SavedLabel
from polycl.phantom import LABELS, make_phantom
from polycl.volume import Volume, write_volume

NAMES = {"liver": 1, "spleen": 2}
SHAPE, SPACING = (48, 48, 8), (8.0, 8.0, 20.0)


def phantom(seed: int, shift_hu: int = 0) -> tuple[Volume, Volume]:
    """A small CT whose soft tissue is `shift_hu` brighter, and its label map with the values of `NAMES`."""
    made = make_phantom(seed, shape=SHAPE, spacing=SPACING)
    tissue = made.image.voxels > -300
    values = np.zeros(SHAPE, dtype=np.uint8)
    for name, value in NAMES.items():
        values[made.labels.voxels == LABELS[name]] = value
    return made.image.with_voxels((made.image.voxels + shift_hu * tissue).astype(np.int16)), made.labels.with_voxels(
        values
    )


def save(
    folder: Path,
    name: str,
    image: Volume,
    label: Volume,
    *,
    known: Mapping[str, Known] | None = None,
    labels: Mapping[str, int] = NAMES,
    minute: int = 0,
) -> SavedLabel:
    """Write an image and its label; everything is known of the names if not said otherwise."""
    files = (folder / f"{name}.nii.gz", folder / "labels" / "final" / f"{name}.nii.gz")
    files[1].parent.mkdir(parents=True, exist_ok=True)
    for volume, file in zip((image, label), files, strict=True):
        write_volume(volume, file)
    voxels = label.canonical().voxels
    record = LabelRecord(
        image=name,
        version=1,
        file=files[1].name,
        sha256=sha256_of(files[1]),
        saved=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute),
        shape=voxels.shape,
        labels=dict(labels),
        voxels={name: int((voxels == value).sum()) for name, value in labels.items()},
        painted={},
        known=dict.fromkeys(labels, "all") if known is None else dict(known),
    )
    return SavedLabel(name, *files, record)


def save_phantoms(folder: Path, count: int, shift_hu: int = 0) -> list[SavedLabel]:
    """So many labelled phantoms, each a patient of its own."""
    return [save(folder, f"case_{seed:02d}", *phantom(seed, shift_hu), minute=seed) for seed in range(count)]
