"""Labels on their way to a PACS: a queue on disk, worked off by one thread, that gives up nothing.

An entry is a small file that names a version of a label; the label itself lies in the store. It is removed when the
PACS has taken the label, and only then. After a failure the next try is 5 s later, then 10, 20, … up to 10 minutes, and
at once after a start. The UIDs of what is sent follow from the label, so that sending twice makes no second copy.
Several processes may share a folder: one of them sends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from polycl.checkpoints import Typed
from polycl.files import write_atomically
from polycl.monailabel.pacs_client import reason_of

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0


class Entry(Typed):
    """A version of the label of an image, under a tag, that the PACS does not have yet."""

    image: str
    tag: str
    version: int

    @property
    def name(self) -> str:
        """Of its file; in the order of versions."""
        return f"{self.image}.{self.tag}.{self.version:06d}.json"


class Outbox:
    """The queue in `folder`. `send` takes an entry and raises for as long as the PACS does not have it."""

    def __init__(self, folder: Path, send: Callable[[Entry], None]) -> None:
        self._folder, self._send = folder, send
        self._lock = FileLock(folder / ".sending")
        self._changed = threading.Condition()
        self._failures: dict[str, tuple[int, float, str]] = {}  # tries, time of the next, reason
        self._thread: threading.Thread | None = None
        self._stopped = False
        if self.waiting():
            self._start()

    def put(self, entry: Entry) -> None:
        """Queue an entry; it is on disk when this returns. InputError where it cannot be written."""
        write_atomically(self._folder / entry.name, entry.model_dump_json().encode())
        with self._changed:
            self._failures.pop(entry.name, None)
            self._changed.notify_all()
        self._start()

    def wait(self, entry: Entry, seconds: float) -> str:
        """Wait for the first try of an entry; an empty text if it was taken, else the reason why not (yet)."""
        until = time.monotonic() + seconds
        with self._changed:
            while (self._folder / entry.name).exists():
                failed = self._failures.get(entry.name)
                left = until - time.monotonic()
                if failed:
                    return failed[2]
                if left <= 0:
                    return "the PACS is slow"
                self._changed.wait(min(left, 0.5))
        return ""

    def waiting(self) -> list[Entry]:
        """What the PACS does not have yet, in the order in which it is sent."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(Entry.model_validate_json(path.read_bytes()))
            except FileNotFoundError:
                continue
            except (OSError, ValidationError):
                logger.warning("an entry of the outbox cannot be read: %s", path.name)
        return found

    def stop(self) -> None:
        """Send nothing any more; what waits is sent after the next start."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _start(self) -> None:
        with self._changed:
            if not self._stopped and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                waiting = self.waiting()
                if self._stopped or not waiting:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [entry for entry in waiting if self._due(entry) <= now]
                if not due:
                    self._changed.wait(min(self._due(entry) for entry in waiting) - now)
                    continue
            try:
                with self._lock.acquire(timeout=0):
                    self._try(due[0])
            except Timeout:  # another process is at it
                with self._changed:
                    self._changed.wait(1.0)

    def _due(self, entry: Entry) -> float:
        return self._failures.get(entry.name, (0, 0.0, ""))[1]

    def _try(self, entry: Entry) -> None:
        path = self._folder / entry.name
        if not path.exists():
            return
        try:
            self._send(entry)
        except Exception as error:  # whatever it is, the label must not be lost, nor those behind it held up
            reason = reason_of(error)
            with self._changed:
                tries = self._failures.get(entry.name, (0, 0.0, ""))[0] + 1
                pause = min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)
                self._failures[entry.name] = (tries, time.monotonic() + pause, reason)
                self._changed.notify_all()
            logger.warning("a label was not sent (%s, try %d); again in %.0f s", reason, tries, pause)
            return
        with suppress(FileNotFoundError):
            path.unlink()
        with self._changed:
            self._failures.pop(entry.name, None)
            self._changed.notify_all()
        logger.info("a label was sent to the PACS")
