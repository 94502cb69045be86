"""Who works on a whole volume lets those pass who answer a click.

Both share the processor, and a click that must share it takes many times as long. So volumes pause between two batches
of slices while a click is being answered, but not for long, lest many who click stop them altogether.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 1.0
"""A volume waits at most so long between two batches: a click on a slice that must be encoded first takes less."""


class Courtesy:
    """Counts the clicks under way. Calls may come from any thread."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._clicks = 0
        self._none = threading.Condition()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Inside, volumes wait."""
        with self._none:
            self._clicks += 1
        try:
            yield
        finally:
            with self._none:
                self._clicks -= 1
                if not self._clicks:
                    self._none.notify_all()

    def let_pass(self) -> None:
        """For whoever works on a volume: return when no click is under way, or patience has run out."""
        with self._none:
            self._none.wait_for(lambda: not self._clicks, self._patience)
