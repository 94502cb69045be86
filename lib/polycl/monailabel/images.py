"""The images last used, so that a second request for the same file does not read it again."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from polycl.volume import Volume

Key = tuple[str, bool, tuple[tuple[str, int, int], ...]]
Reader = Callable[[Path, bool], Volume]
"""Reads the image at a path; the flag allows values, or a modality, that are no CT."""


class VolumeCache:
    """Volumes by path, modification time and size; the oldest go when they exceed `capacity` bytes together.

    Safe for several threads: those that ask for the same file at once share one read. Failures are not kept.
    """

    def __init__(self, read: Reader, capacity: int) -> None:
        self._read = read
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Volume] = OrderedDict()
        self._pending: dict[Key, Future[Volume]] = {}

    def get(self, path: Path, allow_any_values: bool = False) -> Volume:
        """The volume in the file, or the DICOM series in the folder, at `path`. Raises what the reader raises."""
        key = _key(path, allow_any_values)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            pending = self._pending.get(key)
            if pending is None:
                mine: Future[Volume] = Future()
                self._pending[key] = mine
        return pending.result() if pending is not None else self._load(key, path, mine)

    def _load(self, key: Key, path: Path, promise: "Future[Volume]") -> Volume:
        try:
            volume = self._read(path, key[1])
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            promise.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._keep(key, volume)
        promise.set_result(volume)
        return volume

    def _keep(self, key: Key, volume: Volume) -> None:
        if volume.voxels.nbytes > self._capacity:
            return
        self._kept[key] = volume
        while sum(kept.voxels.nbytes for kept in self._kept.values()) > self._capacity:
            self._kept.popitem(last=False)


def _key(path: Path, allow_any_values: bool) -> Key:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return str(path.resolve()), allow_any_values, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
