"""Give a reader damaged files until one of them raises what it should not, crashes it, or takes ten seconds of
processor time.

    .venv/bin/python scripts/fuzz_readers.py READER --minutes 20 [--keep FOLDER]

With the package atheris it is guided by the code that a file reaches; without, files are damaged at random. The first
files are made from a phantom; with --keep what was found stays in FOLDER, and the next run begins with it. A file that
fails is kept there too, as crash-… or timeout-….
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

try:
    import atheris
except ImportError:
    atheris = None

SHAPE, SPACING = (9, 8, 4), (2.0, 2.5, 5.0)
MAX_VOXELS = 20_000
MAX_BYTES = 16_384
SLOW_S = 10
"""Of processor time, so that a machine that is busy with other things does not count."""
ASLEEP_S = 900
"""Of any time: whatever takes so long waits for something."""
MEMORY_MB = 3_000
INTERESTING = (0, 1, 127, 128, 255, 256, 32_767, 32_768, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
INSTRUMENTED = ["polycl.volume", "polycl.dicomseg", "polycl.labels", "polycl.checkpoints", "nrrd", "nibabel", "pydicom"]

Read = Callable[[bytes], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader of files: those to begin with, and what reads the bytes of one. PolyclErrors are what it may raise."""

    corpus: Sequence[bytes]
    read: Read


def phantom() -> Any:
    """An image of few voxels."""
    from polycl.phantom import make_phantom

    return make_phantom(0, shape=SHAPE, spacing=(40.0, 40.0, 100.0)).image


def images(folder: Path, suffix: str) -> Target:
    """`read_volume` of one format, as image and as label, plain and packed."""
    import numpy as np

    from polycl.volume import read_segments, read_volume, write_volume

    image = phantom()
    label = image.with_voxels((image.voxels > 0).astype(np.uint8))
    real = image.with_voxels(image.voxels.astype(np.float32))
    corpus = []
    for number, volume in enumerate((image, label, real)):
        path = folder / f"{number}{suffix}"
        names = {"names": {"liver": 1}} if suffix == ".nrrd" and volume is label else {}
        write_volume(volume, path, compress=False, **names)
        corpus.append(path.read_bytes())
    file = folder / "file"

    def read(data: bytes) -> None:
        packed = suffix == ".nii" and data[-1:] > b"\xc0"  # as no fuzzer guesses a checksum
        file.write_bytes(gzip.compress(data, 1) if packed else data)
        for kind in ("ct", "label"):
            tried(lambda kind=kind: read_volume(file, kind=kind, max_voxels=MAX_VOXELS))
        tried(lambda: read_segments(file))

    return Target(corpus, read)


def dicom(folder: Path) -> Target:
    """A series, one file of which is damaged."""
    from polycl.phantom import write_dicom_series
    from polycl.volume import list_series, read_series, read_volume

    files = write_dicom_series(phantom(), folder / "series", seed=0)
    file = files[1]
    corpus = [one.read_bytes() for one in files]

    def read(data: bytes) -> None:
        file.write_bytes(data)
        tried(lambda: read_series(folder / "series", max_voxels=MAX_VOXELS))
        tried(lambda: read_volume(file, allow_any_values=True, max_voxels=MAX_VOXELS))
        tried(lambda: list_series(folder / "series"))

    return Target(corpus, read)


def seg(folder: Path) -> Target:
    """A DICOM SEG of a series that is as it should be."""
    import numpy as np

    from polycl.dicomseg import Algorithm, Identity, Segment, SourceSeries, read_seg, write_seg
    from polycl.phantom import write_dicom_series

    write_dicom_series(phantom(), folder / "series", seed=0)
    source, corpus = SourceSeries.read(folder / "series"), []
    for values in ([1], [2, 5]):
        voxels = np.random.default_rng(0).choice(np.array([0, *values], np.uint8), source.grid.shape)
        segments = [Segment(f"organ {value}", value, Algorithm("MANUAL")) for value in values]
        write_seg(source.grid.with_voxels(voxels), segments, source, folder / "seg.dcm", Identity.of("fuzz"))
        corpus.append((folder / "seg.dcm").read_bytes())
    file = folder / "file"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        tried(lambda: read_seg(file, source))

    return Target(corpus, read)


def safetensors(folder: Path) -> Target:
    """The header of a checkpoint, and its tensors."""
    import torch

    from polycl import checkpoints

    checkpoints.save(folder / "file", {"a": torch.zeros(3), "b": torch.ones(2, 2)}, checkpoints.Header())
    corpus, file = [(folder / "file").read_bytes()], folder / "file"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        tried(lambda: checkpoints.load(file))
        tried(lambda: checkpoints.kind_of(file))

    return Target(corpus, read)


def record(folder: Path) -> Target:
    """The record of a saved label."""
    from datetime import UTC, datetime

    from polycl.labels.record import LabelRecord, ModelVersion, read_record

    made = LabelRecord(
        image="a",
        version=2,
        parent=1,
        file="a.nii.gz",
        sha256="0" * 64,
        saved=datetime(2026, 1, 1, tzinfo=UTC),
        model=ModelVersion(name="m"),
        shape=SHAPE,
        labels={"liver": 1, "spleen": 2},
        voxels={"liver": 3, "spleen": 0},
        painted={"liver": ((0, 2),)},
        known={"liver": ((0, 2),), "spleen": "all"},
    )
    corpus, file = [made.model_dump_json().encode()], folder / "file"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = tried(lambda: read_record(file))
        if found is not None:
            for name in found.known:
                tried(lambda name=name: found.known_slices(name))

    return Target(corpus, read)


READERS: dict[str, Callable[[Path], Target]] = {
    "nifti": lambda folder: images(folder, ".nii"),
    "nrrd": lambda folder: images(folder, ".nrrd"),
    "dicom": dicom,
    "seg": seg,
    "safetensors": safetensors,
    "record": record,
}


def tried(read: Callable[[], Any]) -> Any:
    """What a reader gives; None for what it refuses as it should."""
    from polycl.errors import PolyclError

    try:
        return read()
    except PolyclError:
        return None


def damaged(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """`data` with some changes, drawn by `draw`: bits, bytes, numbers, pieces lost, twice, or of another file."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1)
        how = draw.randrange(6)
        if how == 0 and changed:
            changed[at % len(changed)] ^= 1 << draw.randrange(8)
        elif how == 1:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(INTERESTING) % (1 << 8 * size)
            changed[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif how == 2:
            del changed[at : at + draw.choice((1, 4, 64, 4096))]
        elif how == 3:
            changed[at:at] = changed[at : at + draw.choice((1, 8, 128))]
        elif how == 4:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            changed[at : at + 32] = other[start : start + 32]
        else:
            changed[at:at] = draw.choice((b"\0", b"\xff" * 8, b"-1", b"nan", b"1e999", b"9" * 30, b"[" * 200, b"\n"))
    return bytes(changed[:MAX_BYTES])


def run(target: Target, executions: int, seed: int = 0) -> None:
    """Read so many damaged files, the same for the same seed. Raises what a reader should not, with the file noted."""
    draw = random.Random(seed)
    for data in target.corpus:
        target.read(data)
    for number in range(executions):
        data = damaged(draw.choice(target.corpus), draw, target.corpus)
        try:
            timed(target.read, data)
        except Exception as error:
            error.add_note(f"file {number} of seed {seed}: {data[:200]!r}…")
            raise


def timed(read: Read, data: bytes) -> None:
    """Read. TimeoutError, where the reader comes to, after `SLOW_S` seconds of processor time."""

    def slow(*_: object) -> NoReturn:
        raise TimeoutError(f"more than {SLOW_S} s of processor time")

    signal.signal(signal.SIGPROF, slow)
    signal.setitimer(signal.ITIMER_PROF, SLOW_S)
    try:
        read(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def guided(target: Target, minutes: float, kept: Path) -> None:
    """Let atheris look for files; it ends the process, with an error where it found one."""
    for number, data in enumerate(target.corpus):
        (kept / f"begin-{number}").write_bytes(data)
    options = {
        "max_total_time": round(minutes * 60),
        "timeout": ASLEEP_S,
        "max_len": MAX_BYTES,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{kept}/",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    switches = (f"-{name}={value}" for name, value in options.items())
    atheris.Setup([sys.argv[0], str(kept), *switches], lambda data: timed(target.read, data))
    atheris.Fuzz()


def main() -> None:
    """Until the time is over, or a file fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--keep", type=Path, help="a folder for files that were found")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    kept = given.keep or folder / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    if atheris is not None:
        with atheris.instrument_imports(include=INSTRUMENTED):
            target = READERS[given.reader](folder)
        guided(target, given.minutes, kept)
        return
    target, until, seed, count = READERS[given.reader](folder), time.monotonic() + given.minutes * 60, given.seed, 0
    while time.monotonic() < until:
        run(target, 1000, seed)
        seed, count = seed + 1, count + 1000
    print(f"{given.reader}: {count} files, none failed")


if __name__ == "__main__":
    main()
