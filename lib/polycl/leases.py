"""Who works on which image: a lease that expires, so that two people are not given the same one, and signs of work.

A lease says only that an image was handed to somebody. Nothing is locked by it: who saves a label of an image that
another holds loses nothing, as every save is a version. Whoever asks for a mask of an image, or saves one, was seen at
it: those who are at one image are told of each other. That alone keeps the image from nobody.

All lies in one small file, read and replaced whole under a lock that other processes respect; it survives a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
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
"""Images of which something is kept; the oldest go first."""
CLOCKS_DIFFER = timedelta(minutes=1)
FRESH = 0.9
"""Share of its time that a sign of work has left while another one is not written down, as clicks come quickly."""


class Lease(Typed):
    """An image that somebody was given, until when. `holder` is empty for a client that says nothing of itself."""

    holder: str
    until: datetime


class _Kept(Typed):
    """By image: the lease, and until when each person counts as being at work on it."""

    format: int = 1
    leases: dict[str, Lease] = Field(default_factory=dict)
    seen: dict[str, dict[str, datetime]] = Field(default_factory=dict)


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
        return self._alive().leases

    def held_by_others(self, holder: str) -> dict[str, Lease]:
        """Those of everybody else. All that are nobody's by name count as one person's."""
        return {image: lease for image, lease in self.held().items() if lease.holder != holder}

    def at_work(self) -> dict[str, list[str]]:
        """By image, the names of those who hold it or were seen at it of late. Who gives no name is not told of."""
        return _people(self._alive())

    def take(self, image: str, holder: str) -> Lease | None:
        """The image for `holder` from now on; None if another holds it, or there are no leases here."""
        if not self._time:
            return None
        with self._changing() as kept:
            there = kept.leases.get(image)
            if there is not None and there.holder != holder:
                return None
            kept.leases.pop(image, None)
            kept.leases[image] = Lease(holder=holder, until=self._now() + self._time)
            return kept.leases[image]

    def see(self, image: str, person: str) -> list[str]:
        """`person` works on the image now: the names of the others who do. A lease of this person's begins anew."""
        if not self._time:
            return []
        kept = self._alive()
        if person and not self._is_fresh(kept, image, person):
            with self._changing() as kept:
                until = self._now() + self._time
                kept.seen[image] = {**kept.seen.pop(image, {}), person: until}
                if (lease := kept.leases.get(image)) is not None and lease.holder == person:
                    kept.leases[image] = lease.model_copy(update={"until": until})
        return [name for name in _people(kept).get(image, ()) if name != person]

    def release(self, image: str) -> None:
        """Nobody holds the image any more, as when its label was saved; who was seen at it may go on."""
        if image in self._read().leases:
            with self._changing() as kept:
                kept.leases.pop(image, None)

    def _is_fresh(self, kept: _Kept, image: str, person: str) -> bool:
        times = [kept.seen.get(image, {}).get(person)]
        if (lease := kept.leases.get(image)) is not None and lease.holder == person:
            times.append(lease.until)
        return all(time is not None and time - self._now() > FRESH * self._time for time in times)

    @contextmanager
    def _changing(self) -> Iterator[_Kept]:
        """What is on disk, to be changed and written at the end."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_suffix(".lock"), poll_interval=0.01):
            kept = self._alive()
            yield kept
            self._write(kept)

    def _alive(self) -> _Kept:
        """What is on disk and has not expired; after the clock was set back, what would last too long has."""
        kept = self._read()
        seen = {
            image: {who: until for who, until in people.items() if self._lasts(until)}
            for image, people in kept.seen.items()
        }
        return _Kept(
            leases={image: lease for image, lease in kept.leases.items() if self._lasts(lease.until)},
            seen={image: people for image, people in seen.items() if people},
        )

    def _lasts(self, until: datetime) -> bool:
        return timedelta(0) < until - self._now() <= self._time + CLOCKS_DIFFER

    def _read(self) -> _Kept:
        try:
            return _Kept.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return _Kept()

    def _write(self, kept: _Kept) -> None:
        last = _Kept(leases=dict(list(kept.leases.items())[-MOST:]), seen=dict(list(kept.seen.items())[-MOST:]))
        try:
            write_atomically(self._file, last.model_dump_json().encode())
        except InputError:  # a full disk: people can work without
            logger.warning("leases cannot be written")


def _people(kept: _Kept) -> dict[str, list[str]]:
    """By image, the names of those who hold it or were seen at it."""
    people = {image: set(seen) for image, seen in kept.seen.items()}
    for image, lease in kept.leases.items():
        people.setdefault(image, set()).add(lease.holder)
    named = {image: sorted(names - {""}) for image, names in people.items()}
    return {image: names for image, names in sorted(named.items()) if names}


def notices(others: Collection[str]) -> list[str]:
    """What somebody is told of the `others` at work on the same image: a line, or none."""
    if not others:
        return []
    names = ", ".join(map(repr, others))
    return [f"{names} works on this image too" if len(others) == 1 else f"{names} work on this image too"]
