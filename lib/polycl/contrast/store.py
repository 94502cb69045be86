"""Axial slices of many scans, windowed and resampled once, as memory-mapped files: a slice costs a copy of its pixels.

A store is a folder that any number of data sets, preprocessings and processes share. Nothing in it is needed: what is
missing is built again.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.checkpoints import Preprocessing
from polycl.contrast import scanfile
from polycl.contrast.contents import ContentHashes
from polycl.contrast.scanfile import Job, Outcome, ScanFile, StoreError
from polycl.dataset import Case
from polycl.errors import InputError

OPEN_FILES = 512
"""Scans mapped at a time in one process. Each holds a file open, and 1,024 is a usual limit."""
ABANDONED_SECONDS = 86400
"""A temporary file that was not written to for so long belongs to a process that was killed."""


@dataclass(frozen=True, eq=False, repr=False)
class SliceStore:
    """The chosen slices of the scans that could be read. It holds no open file, so that worker processes share it.

    Attributes:
        folder: where the files are.
        size: pixels a side of a slice.
        names: the scans.
        files: of each scan, its file and the grid of its image.
        scan: int32 `[N]`, index in `names` of each slice.
        z: int32 `[N]`, number of each slice along the third canonical axis of its scan.
        skipped: scans that are not in the store, and why.
    """

    folder: Path
    size: int
    names: tuple[str, ...]
    files: tuple[ScanFile, ...]
    scan: NDArray[np.int32]
    z: NDArray[np.int32]
    skipped: Mapping[str, str]

    @classmethod
    def build(
        cls,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        folder: Path,
        *,
        slice_range: tuple[float, float] = (0.0, 1.0),
        workers: int = 0,
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> SliceStore:
        """The store of these cases' images in `folder`, made of what is there and, for the rest, of the images.

        All slices are stored; `slice_range`, as fractions of a scan's slices, chooses those that this store lists.
        `workers` processes read scans side by side; 0 reads them in this process. `progress` is told scans done and
        scans in all.

        Raises InputError if the folder cannot be written or its disk is full, if no image can be used, and with
        `strict` if any image cannot; otherwise those are in `skipped`. A run that was killed goes on where it was.
        """
        _check(cases, slice_range)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
        except OSError as error:
            raise InputError(f"cannot write the slice store {folder}: {error.strerror}") from None
        hashes = ContentHashes(folder)
        jobs = [
            Job(image=case.image, content=hashes.find(case.image), preprocessing=preprocessing, folder=folder)
            for case in cases
        ]
        outcomes: dict[int, Outcome] = {}
        try:
            with closing(_outcomes(jobs, workers)) as results:
                for index, outcome in results:
                    if strict and outcome.scan is None:
                        raise InputError(outcome.problem)
                    if outcome.scan is not None and outcome.stamp:
                        hashes.add(cases[index].image, outcome.stamp, outcome.scan.content)
                    outcomes[index] = outcome
                    if progress is not None:
                        progress(len(outcomes), len(cases))
        finally:
            hashes.save()
        found = {case.name: outcomes[index].scan for index, case in enumerate(cases)}
        files = {name: scan for name, scan in found.items() if scan is not None}
        skipped = {case.name: outcomes[i].problem for i, case in enumerate(cases) if outcomes[i].scan is None}
        if not files:
            raise InputError(f"none of the {len(cases)} scans can be used; the first: {next(iter(skipped.values()))}")
        return cls._of(folder, preprocessing.size, files, slice_range, skipped)

    @classmethod
    def _of(
        cls,
        folder: Path,
        size: int,
        files: Mapping[str, ScanFile],
        slice_range: tuple[float, float],
        skipped: Mapping[str, str],
    ) -> SliceStore:
        chosen = [_middle(scan.slices, slice_range) for scan in files.values()]
        return cls(
            folder=folder,
            size=size,
            names=tuple(files),
            files=tuple(files.values()),
            scan=np.repeat(np.arange(len(chosen), dtype=np.int32), [len(one) for one in chosen]),
            z=np.concatenate([np.asarray(one, dtype=np.int32) for one in chosen]),
            skipped=skipped,
        )

    def __len__(self) -> int:
        return len(self.scan)

    def __repr__(self) -> str:
        return f"{len(self)} slices of {len(self.names)} scans, {self.size} x {self.size} pixels"

    def read(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The slices `[*indices.shape, size, size]`, 0 to 255 over the window; InputError if their file is gone."""
        rows = np.asarray(indices).reshape(-1)
        slices = np.empty((len(rows), self.size, self.size), np.uint8)
        for row, (scan, z) in enumerate(zip(self.scan[rows].tolist(), self.z[rows].tolist(), strict=True)):
            slices[row] = _mapped(self._paths[scan])[z]
        return slices.reshape(*np.shape(indices), self.size, self.size)

    @cached_property
    def _paths(self) -> list[str]:
        return [str(one.file(self.folder)) for one in self.files]

    def without(self, reasons: Mapping[str, str]) -> SliceStore:
        """This store less the scans named, which join `skipped`; InputError if none would be left."""
        kept = [index for index, name in enumerate(self.names) if name not in reasons]
        if not kept:
            raise InputError(f"none of the {len(self.names)} scans can be used; the first: {min(reasons.values())}")
        stays = np.isin(self.scan, kept)
        return SliceStore(
            folder=self.folder,
            size=self.size,
            names=tuple(self.names[index] for index in kept),
            files=tuple(self.files[index] for index in kept),
            scan=np.searchsorted(kept, self.scan[stays]).astype(np.int32),
            z=self.z[stays],
            skipped={**self.skipped, **{name: reasons[name] for name in self.names if name in reasons}},
        )


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str) -> NDArray[np.uint8]:
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError, EOFError):
        raise InputError("a file of the slice store is gone or damaged; start again, and it is made anew") from None


def _check(cases: Sequence[Case], slice_range: tuple[float, float]) -> None:
    low, high = slice_range
    if not 0.0 <= low < high <= 1.0:
        raise InputError(f"a slice range of {low:g} to {high:g} is none; give two rising fractions from 0 to 1")
    if not cases:
        raise InputError("there is no scan to build a slice store of")
    if twice := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        raise InputError(f"several scans are called {', '.join(twice[:5])}; each needs a name of its own")


def _middle(slices: int, slice_range: tuple[float, float]) -> range:
    """The slice numbers of that part of a scan, at least one."""
    first = min(round(slice_range[0] * slices), slices - 1)
    return range(first, max(first + 1, round(slice_range[1] * slices)))


def _sweep(folder: Path) -> None:
    """Remove what killed processes left: no reader ever looks at it, but it takes room."""
    for file in folder.glob(".*.npy.*"):
        try:
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
        except FileNotFoundError:  # another process was quicker
            continue


def _outcomes(jobs: Sequence[Job], workers: int) -> Generator[tuple[int, Outcome], None, None]:
    """The outcome of each job with its index, as they come. StoreError stops it all."""
    left = []
    for index, job in enumerate(jobs):
        if (scan := _known(job)) is not None:
            yield index, Outcome(scan=scan)
        else:
            left.append(index)
    if workers == 0 or len(left) < 2:
        for index in left:
            yield index, scanfile.prepare(jobs[index])
        return
    # spawn: a fork of a process that has used torch may hang in its threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(left)), context, _start_worker) as pool:
        futures = {pool.submit(scanfile.prepare, jobs[index]): index for index in left}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise StoreError(
                "a process that built the slice store was killed, as happens when memory runs out; "
                "what is whole is kept: start again with fewer workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread a worker; and it ends with its parent, which cannot tell it to when it was killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _known(job: Job) -> ScanFile | None:
    """The job's scan where its image has not changed since it was hashed, and the store has it."""
    if job.content is None:
        return None
    return scanfile.find(job.folder, scanfile.scan_key(job.content, job.preprocessing), job.preprocessing.size)
