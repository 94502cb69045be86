"""HTTP headers that a task adds to the reply of the request it works for, which it never sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MODEL = "X-PolyCL-Model"
"""`NAME@VERSION` of the model that made a reply; the name is percent-encoded."""
WEIGHTS = "X-PolyCL-Weights"
"""sha256 of its file."""

_noted: ContextVar[dict[str, str] | None] = ContextVar("polycl_headers", default=None)


@contextmanager
def noting() -> Iterator[dict[str, str]]:
    """Yields what is noted meanwhile by this thread and what it awaits."""
    headers: dict[str, str] = {}
    token = _noted.set(headers)
    try:
        yield headers
    finally:
        _noted.reset(token)


def note(name: str, value: str) -> None:
    """Add a header to the reply under way; nothing without one."""
    if (headers := _noted.get()) is not None:
        headers[name] = value
