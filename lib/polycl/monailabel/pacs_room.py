"""What the series of a PACS take on this disk, which ones go when that is too much, and when each was last used.

A series is `UID.nii.gz` beside the folder `UID` of its DICOM files, whose time of change says when it was last used.
All can be fetched again. Those with a label here stay: they are trained on.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".nii.gz"
IN_USE_S = 900.0
"""A series used within so long may be read at this moment."""


@dataclass(frozen=True)
class Kept:
    """A series on disk: bytes, and when it was last used."""

    uid: str
    size: int
    used: float


def used(target: Path) -> None:
    """Somebody uses the series whose NIfTI file is `target`."""
    with suppress(OSError):
        os.utime(target.with_name(target.name.removesuffix(SUFFIX)))


def kept(folder: Path) -> list[Kept]:
    """All series in `folder`, the one used longest ago first."""
    found = []
    for file in folder.glob(f"*{SUFFIX}"):
        dicom = file.with_name(file.name.removesuffix(SUFFIX))
        with suppress(OSError):
            parts = [file, *(dicom.iterdir() if dicom.is_dir() else ())]
            last = (dicom if dicom.is_dir() else file).stat().st_mtime
            found.append(Kept(dicom.name, sum(part.stat().st_size for part in parts), last))
    return sorted(found, key=lambda one: one.used)


def make_room(folder: Path, room: int, remove: Callable[[str], bool]) -> list[str]:
    """Let `remove` take series out of `folder`, and say if it did, until the rest takes `room` bytes. Their UIDs."""
    series, gone = kept(folder), []
    taken = sum(one.size for one in series)
    for one in series:
        if taken <= room or time.time() - one.used < IN_USE_S:
            break
        if remove(one.uid):
            gone.append(one.uid)
            taken -= one.size
    return gone
