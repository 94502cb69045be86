"""Versions of a model: what is served, what was served, and what was trained and not let through the gate.

    NAME/0003.json              what version 3 is; written after its weights, never changed
    NAME/<sha256>.safetensors   weights
    NAME/live.json              which version is served; switched by replacement

Version 0 is the model as it came, which is not kept here. Readers need no lock: what the pointer names is whole, and
stays while it is live or the parent of what is. Writers take turns, also those of several processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from polycl.checkpoints import Typed
from polycl.errors import InputError, ModelError, NotFoundError, PolyclError
from polycl.files import write_atomically

POINTER = "live.json"
HISTORY = 100
RECORD = re.compile(r"\d{4,}\.json")


class Superseded(PolyclError):
    """Another version became the live one meanwhile."""

    status = 409


class Trained(Typed):
    """A label that a version was trained on or scored by: image, content of the label, role."""

    image: str
    sha256: str
    role: Literal["train", "validate"]


class Figures(Typed):
    """Mean Dice before and after, as the gate compared them, and of each structure of each validation image."""

    before: float | None = None
    after: float | None = None
    cells: dict[str, dict[str, tuple[float | None, float | None]]] = Field(default_factory=dict)


class Version(Typed):
    """What is known of a version when it is made. `publish` is what the gate said, and `reason` why."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    sha256: str
    parent: int = Field(ge=0)
    parent_sha256: str
    run: str = Field(description="the training run that made it")
    created: datetime
    seconds: float = Field(description="that training took")
    blend: float = Field(description="share of the trained weights; the rest is the parent's")
    data: tuple[Trained, ...] = ()
    figures: Figures = Figures()
    publish: bool
    reason: str


class Switch(Typed):
    """A version that became the live one: when, and why."""

    version: int
    at: datetime
    why: str


class Pointer(Typed):
    """Which version is live, and how that came about, the newest last."""

    format: Literal[1] = 1
    live: int = 0
    history: tuple[Switch, ...] = ()


class Versions:
    """The versions of each model, by its name in the catalogue, in a folder."""

    def __init__(self, folder: Path, keep: int = 10) -> None:
        self._folder, self._keep = folder, keep

    def live(self, name: str) -> int:
        """The number of the version that is served; 0 is the model as it came. ModelError for a damaged pointer."""
        return self.pointer(name).live

    def pointer(self, name: str) -> Pointer:
        """Which version is live, and the switches so far. ModelError if that cannot be read."""
        file = self._of(name) / POINTER
        try:
            return Pointer.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return Pointer()
        except (OSError, ValidationError):
            raise ModelError(
                f"it cannot be read which version of {name} is live; `polycl models rollback {name} --to N` sets it",
                hint=f"the file is {file}",
            ) from None

    def kept(self, name: str) -> list[Version]:
        """The versions that are kept, oldest first; those whose record cannot be read are left out."""
        return [one for number in self._numbers(name) if (one := self._read(name, number)) is not None]

    def get(self, name: str, number: int) -> Version:
        """One version, not 0; NotFoundError names those there are."""
        version = self._read(name, number)
        if version is None:
            known = ", ".join(map(str, [0, *self._numbers(name)]))
            raise NotFoundError(f"{name} has no version {number}; there are: {known}")
        return version

    def weights(self, name: str, version: Version) -> Path:
        """Where the weights of a version are."""
        return self._of(name) / f"{version.sha256}.safetensors"

    def add(self, name: str, weights: Path, version: Version) -> Version:
        """Keep a version under the next free number, its weights moved here; a second time for a run changes nothing.

        The oldest that are neither live nor the live one's parent go when there are too many. InputError if the disk
        is full.
        """
        with self._writing(name) as folder:
            kept = self.kept(name)
            for one in kept:
                if one.run == version.run:
                    return one
            used = [*self._numbers(name), *(switch.version for switch in self.pointer(name).history), 0]
            added = version.model_copy(update={"number": max(used) + 1})
            try:
                weights.replace(self.weights(name, added))
            except OSError as error:
                raise InputError(f"cannot keep a version of {name}: {error.strerror}") from None
            write_atomically(folder / _record(added.number), added.model_dump_json(indent=1).encode())
            self._prune(name, [*kept, added])
            return added

    def publish(self, name: str, number: int, why: str, *, instead_of: int | None = None) -> Pointer:
        """Make a version the live one; 0 is the model as it came.

        Superseded unless `instead_of`, where given, is live until now; NotFoundError for a version that is not kept.
        """
        with self._writing(name) as folder:
            if number:
                self._check(name, self.get(name, number))
            try:
                now = self.pointer(name)
                if now.live == number:
                    return now
            except ModelError:  # this mends it
                now = Pointer()
            if instead_of is not None and now.live != instead_of:
                raise Superseded(f"version {now.live} of {name} was published meanwhile")
            switch = Switch(version=number, at=datetime.now(UTC), why=why)
            changed = Pointer(live=number, history=(*now.history, switch)[-HISTORY:])
            write_atomically(folder / POINTER, changed.model_dump_json(indent=1).encode())
            return changed

    def rollback(self, name: str, to: int | None = None) -> int:
        """Serve the parent of the live version again, or version `to`; returns its number.

        InputError if the live version is the first, NotFoundError if the one wanted is not kept.
        """
        if to is None:
            live = self.live(name)
            if live == 0:
                raise InputError(f"{name} is at version 0, as it came; there is nothing to roll back to")
            to = self.get(name, live).parent
        self.publish(name, to, "rolled back")
        return to

    def newest_candidate(self, name: str) -> int:
        """The newest version that was never live; NotFoundError if there is none."""
        pointer = self.pointer(name)
        served = {switch.version for switch in pointer.history} | {pointer.live}
        for number in reversed(self._numbers(name)):
            if number not in served:
                return number
        raise NotFoundError(f"{name} has no version that waits to be published")

    def _check(self, name: str, version: Version) -> None:
        from polycl.checkpoints import load

        header, _ = load(self.weights(name, version), sha256=version.sha256)
        if header.kind != "segmenter":
            raise ModelError(f"version {version.number} of {name} is no segmenter")

    def _prune(self, name: str, versions: list[Version]) -> None:
        live = self.live(name)
        parents = {one.number: one.parent for one in versions}
        safe = {live, parents.get(live, 0), versions[-1].number}
        extra = len(versions) - self._keep
        for one in [old for old in versions if old.number not in safe][: max(0, extra)]:
            (self._of(name) / _record(one.number)).unlink(missing_ok=True)
        used = {version.sha256 for version in self.kept(name)}
        legible = len(self.kept(name)) == len(self._numbers(name))
        for file in self._of(name).glob("*.safetensors"):
            if legible and file.stem not in used:
                file.unlink(missing_ok=True)
        for left in self._of(name).glob(".*.json.*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        folder = self._of(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write versions of {name}: {error.strerror}") from None
        with FileLock(folder / ".lock"):
            yield folder

    def _numbers(self, name: str) -> list[int]:
        folder = self._of(name)
        files = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(file.stem) for file in files if RECORD.fullmatch(file.name))

    def _read(self, name: str, number: int) -> Version | None:
        try:
            return Version.model_validate_json((self._of(name) / _record(number)).read_bytes())
        except (OSError, ValidationError):
            return None

    def _of(self, name: str) -> Path:
        if not name or "/" in name or "\0" in name or name.startswith("."):
            raise NotFoundError(f"no model is called {name!r}")
        return self._folder / name


def _record(number: int) -> str:
    return f"{number:04d}.json"
