"""Embeddings of slices, each computed once: bounded in bytes, shared by all requests, filled ahead in idle time.

Concurrency. One lock guards the maps and counters and is never held while an embedding is computed, read or written.
The first to ask for a key computes it; others who ask meanwhile wait for that one. One background thread fills ahead.
Before each slice it waits until no request is being served, so a request waits at most for the slice under way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from polycl.errors import PolyclError
from polycl.sam.disk import DiskTier
from polycl.sam.engine import Embedding
from polycl.volume import Volume
from polycl.window import Window

log = logging.getLogger(__name__)

DISK_CAPACITY = 4 * 2**30


@dataclass(frozen=True)
class EmbeddingKey:
    """All that an embedding depends on."""

    content: str
    index: int
    window: Window
    engine: str
    weights: str
    size: int

    @property
    def name(self) -> str:
        """A hash of it, as a file's name."""
        values = [self.content, self.index, self.window.level, self.window.width, self.engine, self.weights, self.size]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass
class Statistics:
    """Counters since the start. `misses` were computed for a request, `prefetched` ahead of any."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    disk_hits: int = 0
    prefetched: int = 0
    evictions: int = 0


class Prefetch:
    """Slices to be computed ahead. It ends when all are there, when cancelled, or when they take `limit` bytes.

    `keys` is only asked for the next when no request is being served, so what it does for that may take a while.
    """

    def __init__(
        self, keys: Iterable[EmbeddingKey], compute: Callable[[EmbeddingKey], Embedding], limit: float
    ) -> None:
        self.keys = iter(keys)
        self.compute = compute
        self.limit = limit
        self.stored = 0
        self._cancelled = threading.Event()
        self._done = threading.Event()

    def cancel(self) -> None:
        """Compute none of the rest; a slice under way is finished."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it ended within `timeout` seconds."""
        return self._done.wait(timeout)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def finish(self) -> None:
        self._done.set()


class EmbeddingCache:
    """Embeddings in memory up to `capacity_bytes`, and in the folder `disk` up to `disk_capacity`, if it is given."""

    def __init__(self, capacity_bytes: int, disk: Path | None = None, *, disk_capacity: int = DISK_CAPACITY) -> None:
        self.capacity = capacity_bytes
        self._disk = DiskTier(disk, disk_capacity) if disk is not None else None
        self._items: OrderedDict[EmbeddingKey, Embedding] = OrderedDict()
        self._running: dict[EmbeddingKey, Future[Embedding]] = {}
        self._bytes = 0
        self._counts = Statistics()
        self._changed = threading.Condition()
        self._serving = 0
        self._jobs: deque[Prefetch] = deque()
        self._worker: threading.Thread | None = None

    def get(self, key: EmbeddingKey, compute: Callable[[], Embedding]) -> Embedding:
        """The embedding for `key`, by `compute` if neither memory nor disk has it. What that raises is raised here."""
        with self.serving():
            return self._get(key, compute, ahead=False)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While a request is inside, nothing new is computed ahead. May be nested."""
        with self._changed:
            self._serving += 1
        try:
            yield
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether no request is being served, at once or within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._serving, timeout)

    def prefetch(
        self,
        keys: Iterable[EmbeddingKey],
        compute: Callable[[EmbeddingKey], Embedding],
        *,
        urgent: bool = False,
        share: float = 1.0,
    ) -> Prefetch:
        """Compute `keys` in this order when no request is being served; an `urgent` job before those that wait.

        It takes no more than `share` of the capacity, of the disk's where there is one: more would push out its own
        first, or what others work with.
        """
        job = Prefetch(keys, compute, share * max(self.capacity, self._disk.capacity if self._disk else 0))
        with self._changed:
            if urgent:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._fill, name="embeddings-ahead", daemon=True)
                self._worker.start()
        return job

    def __contains__(self, key: EmbeddingKey) -> bool:
        with self._changed:
            return key in self._items

    def statistics(self) -> dict[str, int]:
        """Counters, and what is held now; bytes, also those that the disk may take."""
        with self._changed:
            held = {"entries": len(self._items), "bytes": self._bytes, "capacity": self.capacity}
            held |= {"waiting": len(self._jobs), "disk_capacity": self._disk.capacity if self._disk else 0}
            return asdict(self._counts) | held

    def close(self, seconds: float | None = None) -> bool:
        """Cancel all that waits, and write what is to be on disk. Whether the slice under way was done in time."""
        with self._changed:
            for job in self._jobs:
                job.cancel()
            worker = self._worker
            self._changed.notify_all()
        if worker is not None:
            worker.join(seconds)
        if self._disk is not None:
            self._disk.close()
        return worker is None or not worker.is_alive()

    def _get(self, key: EmbeddingKey, compute: Callable[[], Embedding], *, ahead: bool) -> Embedding:
        with self._changed:
            if (found := self._items.get(key)) is not None:
                self._items.move_to_end(key)
                self._counts.hits += not ahead
                return found
            running = self._running.get(key)
            if running is None:
                mine = self._running[key] = Future()
            else:
                self._counts.shared += not ahead
        if running is not None:
            return running.result()
        try:
            embedding, from_disk = self._read_or(key, compute)
        except BaseException as error:
            with self._changed:
                del self._running[key]
            mine.set_exception(error)
            raise
        with self._changed:
            del self._running[key]
            self._count(ahead, from_disk)
            self._keep(key, embedding)
        mine.set_result(embedding)
        if self._disk is not None and not from_disk:
            self._disk.write(key.name, embedding)
        return embedding

    def _read_or(self, key: EmbeddingKey, compute: Callable[[], Embedding]) -> tuple[Embedding, bool]:
        """The embedding, and whether it came from the disk."""
        found = self._disk.read(key.name) if self._disk is not None else None
        return (found, True) if found is not None else (compute(), False)

    def _count(self, ahead: bool, from_disk: bool) -> None:
        if from_disk:
            self._counts.disk_hits += 1
        elif ahead:
            self._counts.prefetched += 1
        else:
            self._counts.misses += 1

    def _keep(self, key: EmbeddingKey, embedding: Embedding) -> None:
        """With the lock held: store it, and evict the least recently used until all fits."""
        if embedding.nbytes > self.capacity:
            return
        self._items[key] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self.capacity:
            _, evicted = self._items.popitem(last=False)
            self._bytes -= evicted.nbytes
            self._counts.evictions += 1

    def _fill(self) -> None:
        """The background thread: one slice at a time, of the first job that wants one; ends when there is none."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._serving or not self._jobs or self._jobs[0].cancelled)
                while self._jobs and self._jobs[0].cancelled:
                    self._jobs.popleft().finish()
                if not self._jobs:
                    self._worker = None
                    return
                if self._serving:
                    continue
                job = self._jobs[0]
            self._ahead(job)

    def _ahead(self, job: Prefetch) -> None:
        try:
            key = next(job.keys, None)
            if key is None:
                job.cancel()
                return
            embedding = self._get(key, lambda: job.compute(key), ahead=True)
        except Exception as error:
            reason = str(error) if isinstance(error, PolyclError) else type(error).__name__
            log.warning("embeddings are not computed ahead: %s", reason)
            job.cancel()
            return
        job.stored += embedding.nbytes
        if job.stored + embedding.nbytes > job.limit:
            job.cancel()


_hashes: weakref.WeakKeyDictionary[Volume, str] = weakref.WeakKeyDictionary()
_hashing = threading.Lock()


def content_hash(volume: Volume) -> str:
    """A hash of a volume's voxels in canonical axes, the same for all 48 axis orders; computed once for each volume."""
    canonical = volume.canonical()
    with _hashing:
        if (known := _hashes.get(canonical)) is not None:
            return known
    voxels = canonical.voxels
    digest = hashlib.blake2b(f"{voxels.dtype.str} {voxels.shape}".encode(), digest_size=20)
    for index in range(voxels.shape[2]):
        digest.update(voxels[:, :, index].T.tobytes())
    with _hashing:
        return _hashes.setdefault(canonical, digest.hexdigest())
