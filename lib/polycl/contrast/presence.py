"""Whether the target is in each slice of a store: from label maps, from slice ranges, or from saved labels.

All return bool `[N]`, aligned with the store's slices.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.contrast.contents import ContentHashes
from polycl.contrast.saved import saved_labels
from polycl.contrast.scanfile import ScanFile, StoreError
from polycl.contrast.store import SliceStore
from polycl.dataset import Case, Target
from polycl.errors import InputError, PolyclError
from polycl.files import replacing
from polycl.volume import read_volume

COLUMNS = ("scan", "first", "last")
FORMAT = 1
NAMED = 5
"""Scans that a message names before it stops."""


class UnusableLabelsError(InputError):
    """Scans of which presence cannot be told, and why; `store.without(error.reasons)` leaves them out."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:NAMED])
        more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        super().__init__(f"whether the target is present cannot be told for {len(reasons)} scans: {shown}{more}")


def from_labels(
    store: SliceStore, cases: Sequence[Case], target: Target, *, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.bool_]:
    """From the label maps of a data set; a slice with any of the target's ids has the target.

    What a label map holds is remembered beside the store, by content. Raises UnusableLabelsError for scans without a
    label, or with one that cannot be read or is on another grid, InputError where no label holds any of the ids.
    """
    return _from_maps(store, {case.name: case.label for case in cases}, lambda _: target.ids, target.name, progress)


def from_saved_labels(
    store: SliceStore, folder: Path, target: Target, *, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.bool_]:
    """From the final labels in a folder that MONAI Label keeps; scans are named as its images are.

    A label that was saved with the names of its segments is read by `target.name`; one without, by `target.ids`.
    Errors as `from_labels`; a saved label whose names do not list the target cannot tell.
    """
    saved = saved_labels(folder)
    listed = {name: one.ids(target) for name, one in saved.items()}
    if not any(listed.values()):
        names = sorted({segment for one in saved.values() for segment in one.segments or ()})
        raise InputError(f"no saved label lists {target.name!r}; they list {', '.join(names) or 'nothing'}")
    labels = {name: one.label for name, one in saved.items()}
    return _from_maps(store, labels, lambda name: listed.get(name, ()), target.name, progress)


def from_ranges(store: SliceStore, table: Path) -> NDArray[np.bool_]:
    """From a CSV file with the columns scan, first, last: ranges of slice numbers, both ends included.

    Slices are numbered from 0 along the third canonical axis, feet to head. A scan may have several rows, or none,
    and then the target is in none of its slices. Raises InputError, with the line, for anything else.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise InputError(f"{table.name}: the first line must be {','.join(COLUMNS)}")
            ranges = [(rows.line_num, row) for row in rows]
    except OSError as error:
        raise InputError(f"{table.name}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError):
        raise InputError(f"{table.name}: is no CSV text in UTF-8") from None
    index = {name: number for number, name in enumerate(store.names)}
    seen = [np.zeros(one.slices, bool) for one in store.files]
    for line, row in ranges:
        name = (row["scan"] or "").strip()
        if name in store.skipped:
            continue
        if name not in index:
            raise InputError(f"{table.name}, line {line}: no scan is called {name!r}; {_some(store.names)}")
        first, last = _ends(row, len(seen[index[name]]), f"{table.name}, line {line}")
        seen[index[name]][first : last + 1] = True
    return _aligned(store, seen)


def _ends(row: Mapping[str | None, str | None], slices: int, where: str) -> tuple[int, int]:
    try:
        first, last = int(row["first"] or ""), int(row["last"] or "")
    except ValueError:
        raise InputError(f"{where}: first and last must be whole numbers") from None
    if None in row:
        raise InputError(f"{where}: there are more than three values")
    if not 0 <= first <= last < slices:
        raise InputError(f"{where}: {first} to {last} is no range of slices from 0 to {slices - 1}")
    return first, last


def _from_maps(
    store: SliceStore,
    labels: Mapping[str, Path | None],
    ids: Callable[[str], Sequence[int]],
    target: str,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.bool_]:
    if wrong := [number for name in store.names for number in ids(name) if not 0 < number < 256]:
        raise InputError(f"{target!r} has the id {wrong[0]}; ids in a label map are 1 to 255")
    hashes = ContentHashes(store.folder)

    def look(name: str, scan: ScanFile) -> NDArray[np.bool_] | str:
        label = labels.get(name)
        if label is None:
            return "it has no label"
        if not ids(name):
            return f"its label does not list {target!r}"
        try:
            return _held(store.folder, scan, label, hashes)
        except StoreError:
            raise
        except PolyclError as error:
            return str(error)

    tables: dict[str, NDArray[np.bool_]] = {}
    problems: dict[str, str] = {}
    # threads: most of the time goes into decompression, which lets others run
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, (name, found) in enumerate(
            zip(store.names, pool.map(look, store.names, store.files), strict=True), start=1
        ):
            if isinstance(found, str):
                problems[name] = found
            else:
                tables[name] = found
            if progress is not None:
                progress(done, len(store.names))
    hashes.save()
    if problems:
        raise UnusableLabelsError(problems)
    if not any(tables[name][:, list(ids(name))].any() for name in store.names):
        held = np.flatnonzero(np.any([table.any(axis=0) for table in tables.values()], axis=0))
        known = ", ".join(str(value) for value in held if value) or "nothing but background"
        raise InputError(f"no label holds {target!r}; the ids in them are {known}")
    return _aligned(store, [tables[name][:, list(ids(name))].any(axis=1) for name in store.names])


def _held(folder: Path, scan: ScanFile, label: Path, hashes: ContentHashes) -> NDArray[np.bool_]:
    """Which ids are in which slice, `[slices, 256]`; read from the label map if it was not seen before."""
    known = folder / f"label-{FORMAT}-{scan.content[:32]}-{hashes.of(label)[:32]}.npy"
    try:
        table: NDArray[np.bool_] = np.load(known)
        if table.shape == (scan.slices, 256) and table.dtype == np.bool_:
            return table
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged
    volume = read_volume(label, kind="label")
    scan.grid.require_same_grid(volume, f"the label {label.name}")
    voxels = volume.canonical().voxels
    table = np.zeros((scan.slices, 256), bool)
    for z in range(scan.slices):
        table[z] = np.bincount(voxels[:, :, z].ravel(order="K"), minlength=256) > 0
    try:
        with replacing(known) as stream:
            np.save(stream, table)
    except OSError as error:
        raise StoreError(f"cannot write the slice store {folder}: {error.strerror}") from None
    return table


def _aligned(store: SliceStore, seen: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Presence in all the slices of each scan, as presence in the slices of the store."""
    starts = np.cumsum([0, *(len(one) for one in seen)])
    return np.concatenate(seen)[starts[store.scan] + store.z]


def _some(names: Sequence[str]) -> str:
    return f"scans are {', '.join(names[:NAMED])}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
