"""Propagations under way: who asked, how far they are, and how to stop them.

Concurrency: the thread that works reports; any other looks and cancels. Numbers are written by one thread only.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from polycl.errors import Cancelled, NotFoundError

WINDOW = "ohif-"
"""How our script in OHIF begins the id of a window (`server/viewer/polycl.js`)."""
MAX_NAME = 200


@dataclass(eq=False)
class Running:
    """One piece of work. `owner`: who may see and stop it; `client`: what the client calls itself."""

    owner: str
    client: str
    model: str
    label: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked: float = field(default_factory=time.monotonic)
    started: float | None = None
    done: int = 0
    total: int = 0
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises Cancelled once somebody stopped it."""
        if self._cancelled.is_set():
            raise Cancelled("the propagation was cancelled; nothing was kept of it")

    def step(self, done: int, total: int) -> None:
        """`done` of `total` slices are done. Raises Cancelled."""
        if self.started is None:
            self.started = time.monotonic()
        self.done, self.total = done, total
        self.check()

    def cancel(self) -> None:
        """End it at its next slice."""
        self._cancelled.set()

    def described(self) -> dict[str, Any]:
        """As a client is told; `seconds_left` is null until a slice is done."""
        now = time.monotonic()
        told = {"id": self.id, "client_id": self.client, "model": self.model, "label": self.label}
        left = None
        if self.started is not None and self.done:
            left = round((now - self.started) / self.done * (self.total - self.done), 1)
        slices = {"slices_done": self.done, "slices_total": self.total}
        return {**told, **slices, "seconds": round(now - self.asked, 1), "seconds_left": left}


class Work:
    """All that runs."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()

    @contextmanager
    def run(self, running: Running) -> Iterator[Running]:
        """`running` is listed meanwhile."""
        with self._lock:
            self._running[running.id] = running
        try:
            yield running
        finally:
            with self._lock:
                del self._running[running.id]

    def of(self, owner: str, client: str | None = None) -> list[Running]:
        """What `owner` asked for, the oldest first; of `client` only, if that is given."""
        with self._lock:
            found = [one for one in self._running.values() if one.owner == owner and client in (None, one.client)]
        return sorted(found, key=lambda one: one.asked)

    def cancel(self, owner: str, number: str) -> None:
        """Stop what `owner` asked for; NotFoundError if it does not run, or is another's."""
        with self._lock:
            running = self._running.get(number)
        if running is None or running.owner != owner:
            raise NotFoundError("no such work is under way; GET /polycl/work lists yours")
        running.cancel()


def owner() -> str:
    """Who sent the request under way: the user who signed in, else the address; "" under MONAI Label's own start."""
    from polycl.server.connection import current

    connection = current.get()
    return connection.client if connection else ""


def person(client_id: object) -> str:
    """Name by which colleagues know who sent the request under way: the login, else what the client calls itself.

    "" for nobody by name, as OHIF is; its windows tell themselves apart by ids that mean nothing to people.
    """
    from polycl.server.connection import identity

    if (user := identity()) is not None:
        return user.name
    name = client_id if isinstance(client_id, str) else ""
    return "" if name.startswith(WINDOW) else name[:MAX_NAME]
