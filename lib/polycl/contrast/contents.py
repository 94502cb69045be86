"""Files told apart by content: hashes, remembered so that what has not changed is not read again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Lock

from polycl.errors import InputError, NotFoundError
from polycl.files import sha256_of, write_atomically

HASHES = "hashes.json"


def content_hash(path: Path) -> str:
    """sha256 of a file, or of all the files in a folder (a DICOM series) with their names.

    NotFoundError if there is nothing at `path`, InputError if it cannot be read.
    """
    try:
        if not path.is_dir():
            return sha256_of(path)
        parts = [f"{file.relative_to(path)}\0{sha256_of(file)}" for file in _files(path)]
    except FileNotFoundError:
        raise NotFoundError(f"{path.name}: no such file or folder") from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}") from None
    return _digest("\n".join(parts))


def stamp_of(path: Path) -> str:
    """Changes whenever the file, or a file of the folder, was written: sizes and times. Errors as `content_hash`."""
    try:
        stats = [(file, file.stat()) for file in (_files(path) if path.is_dir() else [path])]
    except FileNotFoundError:
        raise NotFoundError(f"{path.name}: no such file or folder") from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}") from None
    return _digest("\n".join(f"{file}\0{one.st_size}\0{one.st_mtime_ns}\0{one.st_ctime_ns}" for file, one in stats))


class ContentHashes:
    """The hashes of files seen before, kept in `folder`; paths are not, as they may name patients. Thread-safe.

    Losing this file costs time only, so that two processes may overwrite each other's entries.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / HASHES
        self._known = self._load()
        self._saved = len(self._known)
        self._lock = Lock()

    def find(self, path: Path) -> str | None:
        """The hash of what is at `path`, if it was seen in this state before."""
        try:
            return self._known.get(self._entry(path, stamp_of(path)))
        except (InputError, NotFoundError):
            return None

    def add(self, path: Path, stamp: str, content: str) -> None:
        """Remember the hash of what was at `path` while it had this stamp."""
        with self._lock:
            self._known[self._entry(path, stamp)] = content

    def of(self, path: Path) -> str:
        """The hash of what is at `path`, read if it has to be. Errors as `content_hash`."""
        stamp = stamp_of(path)
        content = self._known.get(self._entry(path, stamp)) or content_hash(path)
        self.add(path, stamp, content)
        return content

    def save(self) -> None:
        """Write what was added since, beside what other processes wrote; InputError if that fails."""
        with self._lock:
            if len(self._known) > self._saved:
                self._known = self._load() | self._known
                self._saved = len(self._known)
                write_atomically(self._file, json.dumps(self._known).encode())

    def _load(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @staticmethod
    def _entry(path: Path, stamp: str) -> str:
        return _digest(f"{path.resolve()}\0{stamp}")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _digest(text: str) -> str:
    # surrogateescape: a file's name may be any bytes
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
