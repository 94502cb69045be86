"""Training runs on disk: what was asked for, what happened so far, who works on it.

    RUN/request.json    what to train, fixed when the run began
    RUN/events.jsonl    one event a line, added to while it runs; the progress page and the clients are told from it
    RUN/cancel          its presence asks the worker to give up
    RUN/…               what the worker needs to go on after it was killed; gone once the run has ended

One lock for all runs is held by the process that trains, for as long as it lives: the system lets go of it for a
process that was killed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError

from polycl.checkpoints import Header, Typed
from polycl.errors import InputError, NotFoundError
from polycl.files import write_atomically
from polycl.learning.examples import Example
from polycl.learning.gate import Rule

State = Literal["submitted", "preparing", "training", "scoring", "done", "failed", "cancelled", "interrupted"]
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})
KEPT = 20
"""Runs whose request and events stay."""
RECORDS = frozenset({"request.json", "events.jsonl", "worker.log"})
"""What stays of a run that has ended."""

Publish = Literal["better", "force", "never"]


class Request(Typed):
    """What to train and how. Written once; a run that goes on after a kill reads it again.

    Attributes:
        model: name in the catalogue; `parent` is the version to start from, in the file `weights`.
        examples, validation: labels to learn from and to score by, no patient in both.
        publish: `better` asks the gate, `force` publishes whatever it says, `never` keeps a candidate.
        versions, keep: the folder of versions, and how many stay in it.
        cache: where slices are kept in the form that training reads.
    """

    format: Literal[1] = 1
    model: str
    parent: int
    weights: Path
    sha256: str
    examples: tuple[Example, ...]
    validation: tuple[Example, ...]
    publish: Publish = "better"
    steps: int = Field(default=150, ge=1, le=100_000)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    seed: int = 0
    rule: Rule = Rule()
    versions: Path
    keep: int
    cache: Path
    device: str = "auto"
    precision: str = "auto"
    threads: int = Field(ge=1)
    nice: int = Field(default=15, ge=0, le=19)


class Pretraining(Typed):
    """What to pre-train an encoder on, and how. Written once, like `Request`.

    Attributes:
        store: the folder of images; no label is looked at.
        header: network and preprocessing of the encoder to be.
        models: the folder where it becomes a model called `name`.
    """

    format: Literal[1] = 1
    kind: Literal["pretraining"]
    store: Path
    header: Header
    models: Path
    name: str
    steps: int = Field(default=300, ge=1, le=100_000)
    batch: int = Field(default=8, ge=2)
    seed: int = 0
    cache: Path
    device: str = "auto"
    precision: str = "auto"
    threads: int = Field(ge=1)
    nice: int = Field(default=15, ge=0, le=19)


Task = Request | Pretraining
_TASK: TypeAdapter[Task] = TypeAdapter(Request | Pretraining)


class Event(Typed):
    """What a run tells. What is None did not change, or is not known.

    Attributes:
        loss: of the last training step; `dice`: mean over validation patients, where it was just taken.
        step, steps: of training. eta: seconds left until the run ends, estimated.
        done, total: of what the state is busy with besides training steps, such as studies read.
        version: the version that the run made; `published` whether it was made the live one.
        message: for a person; it names no patient, image or folder.
    """

    at: datetime
    state: State
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    dice: float | None = None
    done: int | None = None
    total: int | None = None
    eta: float | None = None
    version: int | None = None
    published: bool | None = None
    message: str = ""


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    def request(self) -> Request:
        """What was asked for; InputError if this version cannot read it, or if it trains no segmenter."""
        task = self.task()
        if not isinstance(task, Request):
            raise InputError(f"run {self.id} trains no segmenter")
        return task

    def task(self) -> Task:
        """What was asked for, of either kind; InputError if it cannot be read."""
        try:
            return _TASK.validate_json((self.folder / "request.json").read_bytes())
        except (OSError, ValidationError):
            raise InputError(f"the request of run {self.id} cannot be read by this version") from None

    def add(self, event: Event) -> None:
        """Append an event. A line that a killed process left unfinished is closed first."""
        with (self.folder / "events.jsonl").open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(event.model_dump_json(exclude_none=True).encode() + b"\n")

    def events(self) -> list[Event]:
        """All events so far, oldest first; lines that cannot be read are left out."""
        try:
            lines = (self.folder / "events.jsonl").read_bytes().splitlines()
        except OSError:
            return []
        return [event for line in lines if (event := _parsed(line)) is not None]

    def size(self) -> int:
        """Bytes of events so far: changes with each."""
        try:
            return (self.folder / "events.jsonl").stat().st_size
        except OSError:
            return 0

    def state(self) -> State:
        """The last event's state."""
        events = self.events()
        return events[-1].state if events else "submitted"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state() in ENDED

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for an end."""
        return (self.folder / "cancel").exists()

    def cancel(self) -> None:
        """Ask for an end; the worker must still be told to look."""
        (self.folder / "cancel").touch()

    def tidy(self) -> None:
        """Remove what only a run that goes on needs."""
        for file in self.folder.iterdir():
            if file.name not in RECORDS:
                file.unlink(missing_ok=True)


class Runs:
    """All runs, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock_file = folder / "worker.lock"

    def create(self, request: Task) -> Run:
        """A new run with its request and first event. The oldest that have ended make room."""
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        folder = self.folder / f".{name}"
        folder.mkdir(parents=True)
        write_atomically(folder / "request.json", request.model_dump_json(indent=1).encode())
        folder = folder.rename(self.folder / name)
        run = Run(folder)
        run.add(Event(at=datetime.now(UTC), state="submitted"))
        for old in [one for one in self.all()[:-KEPT] if one.ended]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return run

    def all(self) -> list[Run]:
        """Oldest first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        return [Run(one) for one in sorted(folders) if one.is_dir() and not one.name.startswith(".")]

    def get(self, name: str) -> Run:
        """The run of this id; NotFoundError if there is none."""
        for run in self.all():
            if run.id == name:
                return run
        raise NotFoundError(f"no training run {name!r}")

    def pending(self) -> Run | None:
        """The newest run that has not ended."""
        newest = self.all()[-1:]
        return newest[0] if newest and not newest[0].ended else None

    def lock(self, seconds: float = 0) -> FileLock:
        """The lock of the process that trains; Timeout if another has it for so many seconds from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._lock_file, timeout=seconds)

    def worker(self) -> int | None:
        """The process that trains now; None if there is none."""
        try:
            with self.lock():
                return None
        except Timeout:
            try:
                return int((self.folder / "worker.pid").read_text())
            except (OSError, ValueError):
                return 0  # it has just begun

    def note_worker(self) -> None:
        """Say who holds the lock. Called by who does."""
        write_atomically(self.folder / "worker.pid", str(os.getpid()).encode())


def _parsed(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        return None


def follow(events: list[Event]) -> Iterator[Event]:
    """Each event with the last known value of what it left out: the state of the run at that time."""
    known: dict[str, object] = {}
    for event in events:
        known |= {name: value for name, value in event if value is not None}
        yield Event.model_validate(known)
