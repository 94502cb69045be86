"""Who is signed in, by a random token, and how often somebody may guess. In memory: a restart signs everybody out."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from polycl.errors import PolyclError

MOST = 10_000
"""Tokens, or names that were tried, that are remembered; the oldest go first."""
TRIES = 5
WINDOW_S = 300.0

Kept = TypeVar("Kept")


class TooManyTries(PolyclError):
    """A wrong password was given too often."""

    status = 429
    retry_after = int(WINDOW_S)


class Tokens(Generic[Kept]):
    """What each token stands for, for `seconds`. Only hashes of tokens are kept. Safe for several threads.

    Each call does one operation on the dictionary that matters, which the interpreter does whole.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, Kept]] = OrderedDict()

    def new(self, value: Kept, seconds: float | None = None) -> str:
        """A token that stands for `value`, for no more than `seconds`."""
        token = secrets.token_urlsafe(32)
        lifetime = self.seconds if seconds is None else min(seconds, self.seconds)
        self._kept[_digest(token)] = self._clock() + lifetime, value
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> Kept | None:
        """What the token stands for; None if it is none of ours, or too old."""
        expires, value = self._kept.get(_digest(token), (0.0, None))
        if value is not None and expires > self._clock():
            return value
        self.drop(token)
        return None

    def drop(self, token: str) -> None:
        """The token stands for nothing from now on."""
        self._kept.pop(_digest(token), None)


class Tries:
    """Wrong passwords by whoever tried them: `TRIES` within `WINDOW_S` seconds, then none for as long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def check(self, name: str, address: str) -> None:
        """TooManyTries if this one has to wait."""
        count, last = self._failed.get((name, address), (0, 0.0))
        if count >= TRIES and self._clock() - last < WINDOW_S:
            raise TooManyTries("too many wrong passwords: wait some minutes")

    def failed(self, name: str, address: str) -> None:
        """A wrong password."""
        count, last = self._failed.pop((name, address), (0, 0.0))
        recent = self._clock() - last < WINDOW_S
        self._failed[name, address] = (count + 1 if recent else 1), self._clock()
        while len(self._failed) > MOST:
            self._failed.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """The right one."""
        self._failed.pop((name, address), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
