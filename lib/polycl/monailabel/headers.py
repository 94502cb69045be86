"""HTTP headers that a task adds to the reply of the request it works for, which it never sees."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

MODEL = "X-PolyCL-Model"
"""`NAME@VERSION` of the model that made a reply; the name is percent-encoded."""
WEIGHTS = "X-PolyCL-Weights"
"""sha256 of its file."""
NOTES = "X-PolyCL-Notes"
"""What there is to tell the person, percent-encoded: for clients that take only the mask of a reply."""
TIMING = "Server-Timing"
"""Milliseconds by stage, as browsers show them among their developer tools."""

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


def timing(seconds: Mapping[str, object]) -> str:
    """The value of `TIMING` for seconds by stage."""
    return ", ".join(f"{stage};dur={1000 * value:.0f}" for stage, value in seconds.items() if isinstance(value, float))
