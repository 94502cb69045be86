"""What a run tells while it works, with an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from polycl.learning.runs import Event, Run, State

SELDOM_SECONDS = 1.0
"""Progress within a stage is told at most so often."""


class Teller:
    """Appends events to a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last = 0.0

    def __call__(self, state: State, **what: Any) -> None:
        self._last = time.monotonic()
        self._run.add(Event(at=datetime.now(UTC), state=state, **what))

    def progress(self, state: State) -> Callable[[int, int], None]:
        """A function of (done, total) for a stage that is no training."""

        def report(done: int, total: int) -> None:
            if done == total or time.monotonic() - self._last > SELDOM_SECONDS:
                self(state, done=done, total=total)

        return report
