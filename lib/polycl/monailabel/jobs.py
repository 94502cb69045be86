"""The request that a thread works for: whether somebody still waits for the answer, and whether it should step back.

A task that takes long calls `check` between slices, as `Runtime.progress` does. It ends there once the client is gone,
and waits there, for `PATIENCE_S` at most, while someone clicks.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from polycl.errors import Cancelled

PATIENCE_S = 2.0
STEP_S = 0.005


class Job:
    """One request. `step_back` tells whether something more urgent computes now."""

    def __init__(self, step_back: Callable[[], bool] = lambda: False) -> None:
        self._gone = threading.Event()
        self._step_back = step_back

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._gone.set()

    def check(self) -> None:
        """Between two slices. Raises Cancelled once nobody waits."""
        until = time.monotonic() + PATIENCE_S
        while self._step_back() and time.monotonic() < until and not self._gone.wait(STEP_S):
            pass
        if self._gone.is_set():
            raise Cancelled("the client is gone")


_current: ContextVar[Job | None] = ContextVar("polycl_job", default=None)


@contextmanager
def working(job: Job) -> Iterator[None]:
    """What this thread, and what it awaits, does meanwhile is for `job`."""
    token = _current.set(job)
    try:
        yield
    finally:
        _current.reset(token)


def check() -> None:
    """`Job.check` of the job under way; nothing without one."""
    if (job := _current.get()) is not None:
        job.check()
