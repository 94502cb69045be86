"""One scan in the slice store: a `.npy` of its axial slices as the network sees them, and a `.json` that describes it.

The description is written last: a scan is in the store when both are there and fit each other. Both appear by
replacement, and their name is their content, so that two processes that write the same scan write the same files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from polycl.checkpoints import Preprocessing, Typed
from polycl.contrast.contents import content_hash, stamp_of
from polycl.errors import InputError, PolyclError
from polycl.files import replacing, write_atomically
from polycl.slices import SliceGrid
from polycl.volume import Volume, read_volume
from polycl.volume.checks import reading

FORMAT: Literal[1] = 1
"""To be raised whenever the same image would give other pixels."""
BATCH = 16

Row = tuple[float, float, float, float]


class StoreError(InputError):
    """The store itself cannot be written: no fault of any one scan."""


class ScanFile(Typed):
    """Of one scan: the hash of its image, the grid of that image as on disk, and its number of axial slices."""

    content: str
    key: str
    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]
    slices: int

    @property
    def grid(self) -> Volume:
        """A volume without voxels of its own (all zero, no memory) on the image's grid."""
        return Volume(np.broadcast_to(np.uint8(0), self.shape), np.array(self.affine))

    def file(self, folder: Path) -> Path:
        """Where the slices are, uint8 `[slices, size, size]`."""
        return folder / f"{self.key}.npy"


class Job(Typed):
    """A scan to be in the store, as it is handed to a worker process. `content` is its image's hash where known."""

    image: Path
    content: str | None
    preprocessing: Preprocessing
    folder: Path


class Outcome(Typed):
    """What became of a job: the scan, or the reason why its image cannot be used."""

    stamp: str = ""
    scan: ScanFile | None = None
    problem: str = ""


def prepare(job: Job) -> Outcome:
    """Have the scan in the store: read, window, resample, write, unless it is there. StoreError if it cannot write."""
    try:
        stamp = stamp_of(job.image)
        content = job.content or content_hash(job.image)
        scan = find(job.folder, scan_key(content, job.preprocessing), job.preprocessing.size)
        if scan is None:
            image = read_volume(job.image)
            if stamp_of(job.image) != stamp:
                raise InputError(f"{job.image.name}: changed while it was read")
            with reading(job.image.name):
                grid = SliceGrid.of(image.canonical(), job.preprocessing.spacing, stride=1)
            scan = _write(job.folder, image, grid, content, job.preprocessing)
    except StoreError:
        raise
    except PolyclError as error:
        return Outcome(problem=str(error))
    return Outcome(stamp=stamp, scan=scan)


def scan_key(content: str, preprocessing: Preprocessing) -> str:
    """The name of a scan's files: image, preprocessing and format in one hash."""
    made_of = {"format": FORMAT, "content": content, "preprocessing": preprocessing.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def find(folder: Path, key: str, size: int) -> ScanFile | None:
    """The scan of this key, if the store has it whole."""
    try:
        scan = ScanFile.model_validate_json((folder / f"{key}.json").read_bytes())
        slices = np.load(scan.file(folder), mmap_mode="r")
    except (OSError, ValueError, EOFError, ValidationError):
        return None
    fits = scan.key == key and slices.dtype == np.uint8 and slices.shape == (scan.slices, size, size)
    return scan if fits else None


def centred(slices: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The middle `size` x `size` pixels of `[B, X, Y]`, with zeros around where there are fewer."""
    result = np.zeros((len(slices), size, size), np.uint8)
    (x, to_x), (y, to_y) = (_middle(side, size) for side in slices.shape[1:])
    result[:, to_x, to_y] = slices[:, x, y]
    return result


def _middle(side: int, size: int) -> tuple[slice, slice]:
    """Where the part that is kept lies, before and after."""
    kept = min(side, size)
    before, after = (side - kept) // 2, (size - kept) // 2
    return slice(before, before + kept), slice(after, after + kept)


def _write(folder: Path, image: Volume, grid: SliceGrid, content: str, preprocessing: Preprocessing) -> ScanFile:
    volume = image.canonical()
    count, size = volume.shape[2], preprocessing.size
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in image.affine]
    scan = ScanFile(
        content=content,
        key=scan_key(content, preprocessing),
        shape=image.shape,
        affine=(rows[0], rows[1], rows[2], rows[3]),
        slices=count,
    )
    description = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
    try:
        with replacing(scan.file(folder)) as stream:
            np.lib.format.write_array_header_1_0(stream, description)  # type: ignore[no-untyped-call]
            for start in range(0, count, BATCH):
                seen = grid.read(volume, preprocessing.window, start, min(start + BATCH, count))[:, 0]
                stream.write(centred(seen.mul_(255).round_().byte().numpy(), size).tobytes())
        write_atomically(folder / f"{scan.key}.json", scan.model_dump_json().encode())
    except OSError as error:
        raise StoreError(f"cannot write the slice store {folder}: {error.strerror}; what is whole is kept") from None
    except InputError as error:  # write_atomically's own
        raise StoreError(str(error)) from None
    return scan
