"""Scores of all images of a store, computed while nobody waits, kept over restarts, made anew for each model version.

Concurrency. One background thread does all the work, at the lowest priority that the system has. Before each batch of
slices it waits until no request is being served, so a request waits at most for the batch under way. It looks again
when woken, and now and then by itself. What it found is read under a lock that is never held while it computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.acquisition.scores import Place, Scores, ScoreStore, score
from polycl.acquisition.selection import Candidate, Method, Pick, choose, coverage, typical_sizes
from polycl.contrast.contents import ContentHashes, stamp_of
from polycl.errors import InputError, PolyclError
from polycl.segmenter import Segmenter
from polycl.volume import Volume

logger = logging.getLogger(__name__)

REST_SECONDS = 60.0
"""Between two looks for new images that nobody told of."""
LOWEST = 19


class Stopped(Exception):
    """The server goes down, or something changed: look again, which keeps what is done."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image of the store. `known` are the slices that its label tells of `[K]`; None for all of them."""

    id: str
    path: Path
    labelled: bool = False
    known: NDArray[np.bool_] | None = None

    def stamp(self) -> str:
        """Changes with the file and with what its label tells. NotFoundError if the file is gone."""
        known = "" if self.known is None else hashlib.sha256(self.known.tobytes()).hexdigest()
        return f"{stamp_of(self.path)} {self.labelled} {known}"


@dataclass(frozen=True, eq=False)
class Model:
    """Who scores: a segmenter and the sha256 of its weights."""

    segmenter: Segmenter
    weights: str
    title: str


@dataclass(frozen=True, eq=False)
class Found:
    """What is held in memory of an image: enough to choose by."""

    stamp: str
    candidate: Candidate | None
    place: Place
    covered: NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """How far the scoring of the store is. `skipped`: images that cannot be scored, with the reason."""

    model: str
    done: int
    total: int
    skipped: dict[str, str]


class ScoresAhead:
    """Scores the images that `images` lists by the model that `model` gives; None for neither means there is none now.

    Args:
        folder: where scores are kept.
        read: reads an image whatever its values; not through a cache, whose images people work with.
        idle: waits so many seconds until no request is served, and says whether that is so.
    """

    def __init__(
        self,
        folder: Path,
        *,
        images: Callable[[], Sequence[Image]],
        model: Callable[[], Model | None],
        read: Callable[[Path], Volume],
        idle: Callable[[float], bool] = lambda seconds: True,
    ) -> None:
        self._store, self._hashes = ScoreStore(folder), ContentHashes(folder)
        self._images, self._model, self._read, self._idle = images, model, read, idle
        self._lock = threading.Lock()
        self._weights = ""
        self._title = ""
        self._total = 0
        self._found: dict[str, Found] = {}
        self._broken: dict[str, tuple[str, str]] = {}
        self._generation = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the background."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="scores-ahead", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Something changed: images, labels, or the model."""
        self._wake.set()

    def cancel(self) -> None:
        """Compute nothing more; the batch under way is finished."""
        self._closing.set()
        self._wake.set()

    def close(self, seconds: float | None = None) -> bool:
        """Cancel, and wait for the end; for so long at most. Whether it came.

        At its priority one batch may take long beside other programs that compute.
        """
        self.cancel()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    @property
    def generation(self) -> int:
        """Counts what changed; choices are the same as long as this is."""
        return self._generation

    def progress(self) -> Progress:
        """How far the scoring is."""
        with self._lock:
            skipped = {image: reason for image, (_, reason) in self._broken.items()}
            return Progress(self._title, len(self._found), self._total, skipped)

    def place(self, image: str) -> Place | None:
        """Where the slices of an image are, if it is scored."""
        with self._lock:
            return found.place if (found := self._found.get(image)) else None

    def choose(self, method: Method, images: Collection[str], count: int) -> list[Pick]:
        """Picks among those of `images` that are scored, the best first."""
        with self._lock:
            known = [self._found[image] for image in images if image in self._found]
            every = [found.candidate for found in self._found.values() if found.candidate is not None]
            covered = [one.covered for one in self._found.values() if len(one.covered)]
        candidates = [one.candidate for one in known if one.candidate is not None]
        if not candidates:
            return []
        size = candidates[0].embeddings.shape[1]
        labelled = np.concatenate(covered) if covered else np.zeros((0, size), dtype=np.float32)
        return choose(method, candidates, labelled, count, sizes=typical_sizes(every))

    def _run(self) -> None:
        with contextlib.suppress(
            OSError, AttributeError
        ):  # of this thread alone, and of those that torch starts for it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self.look()
            except Stopped:
                continue
            except PolyclError as error:
                logger.warning("images are not scored: %s", error.in_full())
            except Exception:
                logger.exception("images are not scored")
            self._wake.wait(REST_SECONDS)

    def look(self) -> None:
        """Score what there is to score, and forget what is gone. Raises Stopped when woken meanwhile, or closed."""
        model = self._model()
        if model is None:
            return
        if model.weights != self._weights:
            self._store.sweep(model.weights)
            with self._lock:
                self._weights, self._title, self._found = model.weights, model.title, {}
                self._generation += 1
        images = self._images()
        with self._lock:
            names = {image.id for image in images}
            self._found = {name: found for name, found in self._found.items() if name in names}
            self._broken = {name: broken for name, broken in self._broken.items() if name in names}
            self._total = len(images)
        for image in sorted(images, key=lambda one: one.labelled):
            if self._wake.is_set() or self._closing.is_set():
                raise Stopped
            self._consider(image, model)
        self._hashes.save()

    def _consider(self, image: Image, model: Model) -> None:
        stamp = ""
        try:
            stamp = image.stamp()
            found, broken = self._found.get(image.id), self._broken.get(image.id)
            if stamp in (found and found.stamp, broken and broken[0]):
                return
            scores = self._scores(image.path, model)
        except Stopped:
            raise
        except Exception as error:  # a stranger's file may raise nearly anything; the others are scored all the same
            reason = str(error) if isinstance(error, PolyclError) else type(error).__name__
            logger.info("an image is left out of what to label next: %s", type(error).__name__)
            with self._lock:
                self._found.pop(image.id, None)
                self._broken[image.id] = (stamp, reason)
                self._generation += 1
            return
        candidate = None if image.labelled else Candidate.of(image.id, scores)
        covered = coverage(scores, image.known) if image.labelled else scores.embeddings[:0]
        with self._lock:
            self._broken.pop(image.id, None)
            self._found[image.id] = Found(stamp, candidate, scores.place, covered)
            self._generation += 1

    def _scores(self, path: Path, model: Model) -> Scores:
        content = self._hashes.of(path)
        kept = self._store.get(model.weights, content)
        if kept is None:
            kept = score(model.segmenter, self._read(path), self._give_way)
            try:
                self._store.put(model.weights, content, kept)
                self._hashes.save()
            except InputError as error:  # a full disk: what is known is of use until the next start
                logger.warning("scores are not kept: %s", error)
        return kept

    def _give_way(self) -> None:
        """Return when no request is served. Raises Stopped when there is nothing to go on for."""
        while not self._closing.is_set():
            if self._idle(1.0):
                return
        raise Stopped
