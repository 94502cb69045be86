"""Who works on which image: a lease that expires, so that two people are not given the same one.

A lease says only that an image was handed to somebody. Nothing is locked by it: who saves a label of an image that
another holds loses nothing, as every save is a version. Leases lie in one small file, read and replaced whole under a
lock that other processes respect; they survive a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock
from pydantic import Field, ValidationError

from polycl.checkpoints import Typed
from polycl.errors import InputError
from polycl.files import write_atomically

logger = logging.getLogger(__name__)

MOST = 10_000
"""Leases that are kept; the oldest go first."""


class Lease(Typed):
    """An image that somebody was given, until when. `holder` is empty for a client that says nothing of itself."""

    holder: str
    until: datetime


class _Kept(Typed):
    format: int = 1
    leases: dict[str, Lease] = Field(default_factory=dict)


def _now() -> datetime:
    return datetime.now(UTC)


class Leases:
    """The leases on the images of one store, in `file`. Each lasts `minutes`; 0 gives none.

    Safe for several threads and processes. A damaged file counts as empty: leases are a courtesy.
    """

    def __init__(self, file: Path, minutes: float, now: Callable[[], datetime] = _now) -> None:
        self._file, self._time, self._now = file, timedelta(minutes=minutes), now

    @property
    def enabled(self) -> bool:
        """Whether leases are given at all."""
        return bool(self._time)

    def held(self) -> dict[str, Lease]:
        """The leases that have not expired, by image."""
        return self._alive(self._read())

    def held_by_others(self, holder: str) -> dict[str, Lease]:
        """Those of everybody else. All that are nobody's by name count as one person's."""
        return {image: lease for image, lease in self.held().items() if lease.holder != holder}

    def take(self, image: str, holder: str) -> Lease | None:
        """The image for `holder` from now on; None if another holds it, or there are no leases here."""
        if not self._time:
            return None
        with self._changing() as leases:
            there = leases.get(image)
            if there is not None and there.holder != holder:
                return None
            leases.pop(image, None)
            leases[image] = Lease(holder=holder, until=self._now() + self._time)
            return leases[image]

    def release(self, image: str) -> None:
        """Nobody holds the image any more, as when its label was saved."""
        if image in self._read():
            with self._changing() as leases:
                leases.pop(image, None)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Lease]]:
        """The leases as they are on disk, to be changed and written at the end."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_suffix(".lock")):
            leases = self._alive(self._read())
            yield leases
            self._write(leases)

    def _alive(self, leases: dict[str, Lease]) -> dict[str, Lease]:
        now = self._now()
        return {image: lease for image, lease in leases.items() if lease.until > now}

    def _read(self) -> dict[str, Lease]:
        try:
            return dict(_Kept.model_validate_json(self._file.read_bytes()).leases)
        except (OSError, ValidationError):
            return {}

    def _write(self, leases: dict[str, Lease]) -> None:
        kept = dict(list(leases.items())[-MOST:])
        try:
            write_atomically(self._file, _Kept(leases=kept).model_dump_json().encode())
        except InputError:  # a full disk: people can work without
            logger.warning("leases cannot be written")
