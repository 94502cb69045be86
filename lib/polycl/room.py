"""Room on the disks that the server writes to: what is sent is refused before one is full, not half way through."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from polycl.errors import StorageError

COPIES = 2
"""Of what is sent: as it comes in, and where it stays."""
FULL = "the disk of the server is nearly full, so nothing more is taken in; whoever runs the server has to make room"
LARGE = "this is too large for what is left of the server's disk; whoever runs the server has to make room"


def free_bytes(folder: Path) -> int:
    """Free on the disk of a folder, or of the one above that exists."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


@dataclass(frozen=True)
class Room:
    """The disks of `folders`, of each of which `reserve` bytes stay free: for what is under way, records and logs."""

    folders: tuple[Path, ...]
    reserve: int

    def require(self, size: int = 0) -> None:
        """StorageError if a disk is nearly full, or would be with `size` bytes more."""
        for folder in self.folders:
            free = free_bytes(folder)
            if free - COPIES * size < self.reserve:
                raise StorageError(FULL if free < self.reserve else LARGE, hint=f"it is the disk of {folder}")
