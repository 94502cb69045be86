"""Starts, watches, stops and takes up again the process that trains. One trains at a time on one state folder.

The process is its own session: it outlives a server that was killed, and the next server watches over it. One that was
killed is started again and goes on; a server that stops in order stops it too, and the next server starts it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from pydantic import Field, ValidationError

from polycl.catalogue import Catalogue
from polycl.checkpoints import Typed
from polycl.errors import InputError, PolyclError
from polycl.labels.record import SavedLabel
from polycl.learning.examples import split
from polycl.learning.gate import Rule
from polycl.learning.patients import Patients, patient_of
from polycl.learning.runs import Event, Pretraining, Publish, Request, Run, Runs, State, Task
from polycl.learning.versions import Versions
from polycl.settings import Settings

logger = logging.getLogger(__name__)

MODULE = "polycl.learning.worker"
STOP_SECONDS = 10.0
POLL_SECONDS = 0.5
MOST_DEATHS = 3
"""A worker that was killed so often in a row without a step of progress is not started again."""


class Busy(PolyclError):
    """A run is under way; there is one at a time."""

    status = 429


class Options(Typed):
    """What may be asked of a training run."""

    segmenter: str
    steps: int = Field(default=150, ge=1, le=100_000)
    publish: Publish = "better"

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Options:
        """InputError names what is wrong, and the right keys."""
        if unknown := sorted(values.keys() - cls.model_fields.keys()):
            raise InputError(f"no training option {', '.join(unknown)}; there are: {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{problem['loc'][0]} {problem['input']!r}: {problem['msg']}") from None


class Trainer:
    """Safe to use from several threads, and beside other servers of the same state folder."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, on_end: Callable[[Run], None] = lambda run: None
    ) -> None:
        """`on_end` is called when a run has ended, by the thread that watched it."""
        self._settings, self._catalogue, self._on_end = settings, catalogue, on_end
        self.runs = Runs(settings.learning / "runs")
        self.versions = Versions(settings.versions, settings.versions_kept)
        self._patients = Patients(settings.learning / "patients.json")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._watchers: dict[str, threading.Thread] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, options: Options, store: Path, saved: list[SavedLabel]) -> Run:
        """Start a run on the labels `saved` of the images in the folder `store`.

        Busy if one is under way; NotFoundError for an unknown segmenter; InputError if no label could be trained on.
        """
        return self._begin(lambda: self._request(options, store, saved))

    def pretrain(self, segmenter: str, store: Path, steps: int = 300) -> Run:
        """Start a run that teaches an encoder, of the same network as a segmenter, on all images in the folder `store`.

        Busy if a run of either kind is under way; NotFoundError for an unknown segmenter.
        """
        return self._begin(lambda: self._pretraining(segmenter, store, steps))

    def _begin(self, task: Callable[[], Task]) -> Run:
        self.runs.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self.runs.folder / "start.lock"):
            if (pending := self.runs.pending()) is not None:
                self._watch(pending)
                raise Busy(f"training is under way (run {pending.id}); cancel it first, or wait")
            run = self.runs.create(task())
            self._watch(run)
            return run

    def resume(self) -> Run | None:
        """Take up the run that an earlier server left unfinished, if there is one."""
        with self._lock:
            run = self.runs.pending()
            if run is not None:
                logger.info("training run %s goes on", run.id)
                self._watch(run)
            return run

    def cancel(self) -> Run | None:
        """End the run under way, for good; None if there is none. What it learned so far is lost."""
        run = self.runs.pending()
        if run is None:
            return None
        run.cancel()
        self._stop(run)
        _end(run, "cancelled")
        return run

    def wait(self, run: Run) -> None:
        """Return when the run has ended, or this trainer is closed."""
        while not (run.ended or self._closing.is_set()):
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Stop the process that trains; the next `resume` goes on."""
        self._closing.set()
        if self._watchers:
            self._stop()

    def new_labels(self, segmenter: str, saved: list[SavedLabel]) -> int:
        """How many labels that tell of what the segmenter has are not those of its newest run."""
        labels = self._catalogue.entry(segmenter, "segmenter").header().labels
        used: set[str] = set()
        for run in reversed(self.runs.all()):
            with contextlib.suppress(InputError):
                request = run.request()
                if request.model == segmenter:
                    used = {one.record.sha256 for one in (*request.examples, *request.validation)}
                    break
        new = [one.record for one in saved if one.record.sha256 not in used]
        return sum(any(record.known_slices(name).any() for name in labels) for record in new)

    def _request(self, options: Options, store: Path, saved: list[SavedLabel]) -> Request:
        entry = self._catalogue.entry(options.segmenter, "segmenter")
        labels, sha256 = entry.header().labels, entry.verify()
        train, validation = split(saved, labels, lambda image: patient_of(store, image), self._patients)
        if not train:
            kept = f" but those of {len(validation)} kept for validation" if validation else ""
            raise InputError(f"there is no label to train on{kept}: save some that show {' or '.join(labels)}")
        settings = self._settings
        return Request(
            model=options.segmenter,
            parent=entry.version,
            weights=entry.path,
            sha256=sha256,
            examples=tuple(train),
            validation=tuple(validation),
            publish=options.publish,
            steps=options.steps,
            rule=Rule(margin=settings.learn_margin, patients=settings.learn_patients),
            versions=settings.versions,
            keep=settings.versions_kept,
            cache=settings.cache / "slices",
            device=settings.device,
            precision=settings.precision,
            threads=settings.learn_threads or max(1, _processors() - 1),
            nice=settings.learn_nice,
        )

    def _pretraining(self, segmenter: str, store: Path, steps: int) -> Pretraining:
        header, settings = self._catalogue.entry(segmenter, "segmenter").header(), self._settings
        return Pretraining(
            kind="pretraining",
            store=store,
            header=header.for_pretraining(),
            models=settings.models,
            name=f"encoder-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            steps=steps,
            cache=settings.cache / "pretraining",
            device=settings.device,
            precision=settings.precision,
            threads=settings.learn_threads or max(1, _processors() - 1),
            nice=settings.learn_nice,
        )

    def _watch(self, run: Run) -> None:
        """See that somebody works on a run, from now until it has ended."""
        watcher = self._watchers.get(run.id)
        if watcher is None or not watcher.is_alive():
            watcher = threading.Thread(target=self._see_to, args=(run,), name=f"training-{run.id}", daemon=True)
            self._watchers = {run.id: watcher}
            watcher.start()

    def _see_to(self, run: Run) -> None:
        deaths, reached = 0, 0
        while not (self._closing.is_set() or run.ended or run.cancelled):
            if self.runs.worker() is not None:  # another server's, or one that outlived its server
                time.sleep(POLL_SECONDS)
                continue
            try:
                self._process = _spawn(run)
                self._process.wait()
            except (InputError, OSError) as error:
                _end(
                    run,
                    "failed",
                    str(error) if isinstance(error, InputError) else "the process that trains cannot start",
                )
            points = len({(event.state, event.step, event.done) for event in run.events()})
            deaths, reached = (1, points) if points > reached else (deaths + 1, reached)
            if deaths == MOST_DEATHS and not self._closing.is_set():
                _end(run, "failed", "the process that trains was killed several times, as happens when memory runs out")
        if run.cancelled:
            _end(run, "cancelled")
        if not self._closing.is_set():
            self._on_end(run)

    def _stop(self, run: Run | None = None) -> None:
        """Stop the process that trains now, or only one of `run`: in order, or by force after a while."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_SECONDS
            while (process := self._worker(run)) is not None and time.monotonic() < deadline:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(how)
                time.sleep(POLL_SECONDS / 5)

    def _worker(self, run: Run | None) -> psutil.Process | None:
        """The process that trains `run` (any, if None), or is about to. Not one that has an earlier one's number."""
        mine = self._process.pid if self._process is not None and self._process.poll() is None else None
        for number in filter(None, (self.runs.worker(), mine)):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(number)
                command = process.cmdline()
                if MODULE in command and (run is None or Path(command[-1]).name == run.id):
                    return process
        return None


def _end(run: Run, state: State, message: str = "") -> None:
    """Say that nothing more will happen, unless the worker said so itself."""
    if not run.ended:
        run.add(Event(at=datetime.now(UTC), state=state, message=message))
        run.tidy()


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spawn(run: Run) -> subprocess.Popen[bytes]:
    """A process that carries out the run; what it prints goes to the run's folder."""
    threads = str(run.task().threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with (run.folder / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", MODULE, str(run.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
