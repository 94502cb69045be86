"""The labels of a folder of images: the current ones where MONAI Label has them, and every version beside.

    labels/TAG/IMAGE.nii.gz             the current label; any image suffix
    labels/TAG/IMAGE.record.json        its record
    label_versions/TAG/IMAGE/000003/    a version, never changed: label.nii.gz, record.json, maybe sent.seg.nrrd

A save is staged in a hidden folder among the versions, then put in place by renaming: the label, its record, and last
the folder, which becomes the version. Whatever is killed or fails on the way leaves the label of before or the new one,
whole; `heal` finishes or removes the rest. Changes are made under one lock for all threads and processes, the one that
MONAI Label's index has too. A label that a person put or changed there by hand has no record of its voxels: it gets one
before it is replaced or removed, and when it is listed.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from polycl.dataset import SUFFIXES
from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.files import replacing, sha256_of, write_atomically
from polycl.labels.adopting import facts_of_file, facts_of_nothing, noted_names
from polycl.labels.facts import marked
from polycl.labels.record import Facts, LabelRecord, SavedLabel, read_record
from polycl.labels.storage import is_abandoned, is_temporary, storing

logger = logging.getLogger(__name__)

VERSIONS, RECORD, RECORD_SUFFIX, STAGED = "label_versions", "record.json", ".record.json", ".new-"
LOCK = ".lock"
LOCK_SECONDS = 60.0
"""Nothing slow is done under the lock; who waits longer waits for a process that hangs."""
FINAL = "final"
KEEP = 20


class Library:
    """The labels under `folder`. `keep` versions are kept of each, and the last one of every annotator.

    `known` is the models' table of name to value, by which the values of labels that came without names are read.
    """

    def __init__(self, folder: Path, keep: int = KEEP, known: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.known: Mapping[str, int] = known or {}
        self._unsettled: set[Path] = set()
        self.lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS, poll_interval=0.01)

    @contextmanager
    def staged(self, image: str, tag: str, suffix: str) -> Iterator[Path]:
        """The path for a new label file on its way to `publish`; whatever is left of it is removed afterwards."""
        with storing():
            folder = self._versions(image, tag) / f"{STAGED}{secrets.token_hex(6)}"
            folder.mkdir(parents=True)
            try:
                yield folder / f"label{suffix}"
            finally:
                if folder in self._unsettled:
                    self._unsettled.discard(folder)
                else:
                    shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, image: str, tag: str, facts: Facts) -> LabelRecord:
        """Make the staged label file the current one, and a version. Returns its record.

        StorageError where it cannot be written; the label of before is then the current one still.
        """
        with storing(), self.lock:
            before = self._preserved(image, tag)
            path = self._labels(tag) / f"{image}{staged.name.removeprefix('label')}"
            record = LabelRecord(
                **dict(facts),
                image=image,
                tag=tag,
                version=self._next(image, tag),
                parent=before.version if before else None,
                file=path.name,
                sha256=sha256_of(staged),
                saved=datetime.now(UTC),
            )
            text = _text(record)
            write_atomically(staged.with_name(RECORD), text)
            path.parent.mkdir(parents=True, exist_ok=True)
            placed = False
            try:
                with replacing(self._record(image, tag)) as beside:
                    beside.write(text)
                    _copy(staged, path)
                    placed = True
            except OSError:
                if not placed:
                    raise
            self._settle(staged.parent, record)
        return record

    def current(self, image: str, tag: str = FINAL) -> SavedLabel | None:
        """The label of an image, with the record of just these voxels; None if there is no label, or no image.

        One without a record gets it now. InputError if such a label cannot be read, or is not on the image's grid.
        """
        path, source = self.file(image, tag), self.image(image)
        if path is None or source is None:
            return None
        record = self._beside(image, tag)
        if record is None or record.sha256 != sha256_of(path):
            with storing(), self.lock:  # nobody is between two steps now
                path = self.file(image, tag)
                if path is None:
                    return None
                record = self._recorded(path, image, tag, facts_of_file)
        version = self._version(record) / _label_name(record)
        return SavedLabel(image, source, version if version.is_file() else path, record)

    def file(self, image: str, tag: str = FINAL) -> Path | None:
        """The current label file, if there is one."""
        beside = self._beside(image, tag)
        names = [beside.file] if beside else []
        names += [f"{image}{suffix}" for suffix in SUFFIXES]
        return next((path for name in names if (path := self._labels(tag) / name).is_file()), None)

    def record(self, image: str, tag: str = FINAL) -> LabelRecord | None:
        """The record beside the current label, if there are both; the label is not looked at."""
        return self._beside(image, tag) if self.file(image, tag) else None

    def image(self, image: str) -> Path | None:
        """The file of an image, if it is in the folder."""
        return next((path for s in SUFFIXES if (path := self.folder / f"{image}{s}").is_file()), None)

    def images(self, tag: str = FINAL) -> list[str]:
        """Ids of what has a label under the tag, by the names of the files."""
        folder = self._labels(tag)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        names = (next((f.name.removesuffix(s) for s in SUFFIXES if f.name.endswith(s)), "") for f in files)
        return list(dict.fromkeys(name for name in names if name))

    def versions(self, image: str, tag: str = FINAL) -> list[LabelRecord]:
        """The records of all versions that are kept, oldest first."""
        records = []
        for folder in self._numbered(image, tag):
            with suppress(OSError, InputError):
                records.append(read_record(folder / RECORD))
        return records

    def version(self, image: str, number: int, tag: str = FINAL) -> SavedLabel | None:
        """One version of a label; None if it is not kept, or there is no image."""
        source, folder = self.image(image), self._versions(image, tag) / f"{number:06d}"
        with suppress(OSError, InputError):
            record = read_record(folder / RECORD)
            if source is not None and (label := folder / _label_name(record)).is_file():
                return SavedLabel(image, source, label, record)
        return None

    def remove(self, image: str, tag: str) -> None:
        """Remove the current label; its last version stays, and `restore` brings it back."""
        with storing(), self.lock:
            self._preserved(image, tag)
            for suffix in SUFFIXES:
                (self._labels(tag) / f"{image}{suffix}").unlink(missing_ok=True)
            self._record(image, tag).unlink(missing_ok=True)

    def restore(self, image: str, version: int, tag: str = FINAL) -> LabelRecord:
        """Make an older version the current label again, as a new version. NotFoundError if there is none."""
        return self._again(image, tag, version, lambda facts: facts.model_copy(update={"source": "restored"}))

    def mark_complete(self, image: str, tag: str, names: tuple[str, ...], annotator: str = "") -> LabelRecord:
        """Mark just these names of the current label complete, as a new version.

        NotFoundError if there is no label, or none of these names.
        """
        with storing(), self.lock:
            record = self._preserved(image, tag)
            if record is None:
                raise NotFoundError("no such label in this store")
            if missing := [name for name in names if name not in record.labels]:
                there = ", ".join(record.labels) or "none"
                raise NotFoundError(f"this label has no {', '.join(map(repr, missing))}; it has {there}")
            who = {"annotator": annotator or record.annotator, "source": "client"}
            return self._again(image, tag, record.version, lambda facts: marked(facts, names).model_copy(update=who))

    def heal(self) -> None:
        """Finish what a killed process left nearly done, and remove what it left unfinished long ago."""
        with storing(), self.lock:
            for folder in list((self.folder / VERSIONS).glob(f"*/*/{STAGED}*")):
                if not self._finish(folder) and is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            for file in [*self.folder.glob(".*"), *(self.folder / "labels").glob("*/.*")]:
                if is_temporary(file) and is_abandoned(file):
                    file.unlink(missing_ok=True)

    def _again(self, image: str, tag: str, version: int, change: Callable[[Facts], Facts]) -> LabelRecord:
        folder = self._versions(image, tag) / f"{version:06d}"
        with storing(), self.lock:
            if not (folder / RECORD).is_file():
                there = ", ".join(str(record.version) for record in self.versions(image, tag)) or "none"
                raise NotFoundError(f"there is no version {version} of this label; there are: {there}")
            record = read_record(folder / RECORD)
            facts = Facts(**{name: getattr(record, name) for name in Facts.model_fields})
            source = folder / _label_name(record)
            with self.staged(image, tag, source.name.removeprefix("label")) as path:
                shutil.copyfile(source, path)
                return self.publish(path, image, tag, change(facts))

    def _preserved(self, image: str, tag: str) -> LabelRecord | None:
        """The record of the current label, which is a version from now on if it was none; None without a label."""
        path = self.file(image, tag)
        if path is None:
            return None

        def whatever_it_is(label: Path, source: Path, names: Mapping[str, int]) -> Facts:
            try:
                return facts_of_file(label, source, names)
            except PolyclError:
                return facts_of_nothing()

        return self._recorded(path, image, tag, whatever_it_is)

    def _recorded(
        self, path: Path, image: str, tag: str, read: Callable[[Path, Path, Mapping[str, int]], Facts]
    ) -> LabelRecord:
        """The record of the voxels in `path`, which are a version from now on if they were none."""
        for folder in self._versions(image, tag).glob(f"{STAGED}*"):  # of a process that was killed
            self._finish(folder)
        beside, sha256 = self._beside(image, tag), sha256_of(path)
        known = [beside] if beside else []
        for record in [*known, *reversed(self.versions(image, tag))]:
            if record.sha256 == sha256:
                break
        else:
            names = (beside.labels if beside else {}) or noted_names(self.folder, image, tag) or self.known
            record = LabelRecord(
                **dict(read(path, self.image(image) or path, names)),
                image=image,
                tag=tag,
                version=self._next(image, tag),
                parent=beside.version if beside else None,
                file=path.name,
                sha256=sha256,
                saved=datetime.fromtimestamp(path.stat().st_mtime, UTC),
            )
        if not (self._version(record) / RECORD).is_file():
            with self.staged(image, tag, path.name.removeprefix(image)) as staged:
                shutil.copyfile(path, staged)
                write_atomically(staged.with_name(RECORD), _text(record))
                staged.parent.rename(self._version(record))
        if record != beside:
            write_atomically(self._record(image, tag), _text(record))
        return record

    def _settle(self, folder: Path, record: LabelRecord) -> None:
        """The rest of a save that is done: if this fails or is killed, the next look at the label makes up for it."""
        try:
            folder.rename(self._version(record))
            if self._beside(record.image, record.tag) != record:
                write_atomically(self._record(record.image, record.tag), _text(record))
            for suffix in SUFFIXES:
                if (other := self._labels(record.tag) / f"{record.image}{suffix}").name != record.file:
                    other.unlink(missing_ok=True)
            self._prune(record.image, record.tag)
        except (OSError, InputError) as error:
            self._unsettled.add(folder)
            logger.warning("a label was saved, but its version is not kept yet: %s", type(error).__name__)

    def _prune(self, image: str, tag: str) -> None:
        folders = self._numbered(image, tag)
        if len(folders) <= self.keep:
            return
        newest = {record.annotator: record.version for record in self.versions(image, tag)}
        for folder in folders[: -self.keep]:
            if int(folder.name) not in newest.values():
                shutil.rmtree(folder, ignore_errors=True)

    def _finish(self, folder: Path) -> bool:
        """Whether the staged `folder` was published; then it becomes a version, now or, if that fails, later."""
        with suppress(OSError, InputError):
            record = read_record(folder / RECORD)
            path = self._labels(record.tag) / record.file
            if path.is_file() and sha256_of(path) == record.sha256 and not self._version(record).exists():
                self._settle(folder, record)
                return True
        return False

    def _next(self, image: str, tag: str) -> int:
        beside = self._beside(image, tag)
        numbers = [int(folder.name) for folder in self._numbered(image, tag)]
        return max([0, *numbers, *([beside.version] if beside else [])]) + 1

    def _beside(self, image: str, tag: str) -> LabelRecord | None:
        with suppress(OSError, InputError):
            return read_record(self._record(image, tag))
        return None

    def _labels(self, tag: str) -> Path:
        return self.folder / "labels" / tag

    def _record(self, image: str, tag: str) -> Path:
        return self._labels(tag) / f"{image}{RECORD_SUFFIX}"

    def _versions(self, image: str, tag: str) -> Path:
        return self.folder / VERSIONS / tag / image

    def _version(self, record: LabelRecord) -> Path:
        return self._versions(record.image, record.tag) / f"{record.version:06d}"

    def _numbered(self, image: str, tag: str) -> list[Path]:
        folder = self._versions(image, tag)
        return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def final_labels(store: Path, vocabulary: Mapping[str, int] | None = None) -> list[SavedLabel]:
    """Every final label of the folder `store` that a person has seen, in the order of image ids.

    Left out, with a line in the log: labels that cannot be read or have another grid than their image. `vocabulary` is
    the models' table of name to value, for labels that were put there by hand.
    """
    library = Library(store, known=vocabulary)
    found = []
    for image in library.images():
        try:
            label = library.current(image)
        except PolyclError as error:
            logger.warning("a final label is left out: %s", error)
            continue
        if label is not None and label.record.source != "model":
            found.append(label)
    return found


def _label_name(record: LabelRecord) -> str:
    return f"label{record.file.removeprefix(record.image)}"


def _text(record: LabelRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy)
