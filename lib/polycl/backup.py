"""One archive of what cannot be made again: labels with their versions, models, scores, users, the audit trail.

    state/models/…  state/store/…  state/users.json     parts of the state folder
    studies/labels/…                                    of a folder of studies elsewhere
    manifest.json                                       sha256 of every file; last, so that half an archive has none

Made while a server works: what belongs together is put aside under the lock of its writers, by hard links where the
file system has them, and packed after the lock is given back. Every writer here replaces files or appends to them, so
what was put aside stays as it was.

Restored whole or not at all, part by part by renaming; what was there is kept beside.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

import polycl
from polycl.dataset import SUFFIXES
from polycl.errors import InputError, StorageError
from polycl.files import replacing, sha256_of
from polycl.labels.library import LOCK, STAGED, VERSIONS
from polycl.labels.storage import TEMPORARY, is_abandoned
from polycl.learning.runs import Runs
from polycl.serving import alone
from polycl.settings import Settings

MANIFEST = "manifest.json"
STATE, STUDIES = "state", "studies"
PARTS = ("models", "store", "learning", "acquisition", "audit", "users.json")
"""Of the state folder. The rest is the log, what clients sent, and what can be made again."""
INDEX = "datastore_v2.json"
KEPT = ("labels", VERSIONS, INDEX, ".patients.json", "outbox", "segmentations")
"""Of a folder of images, beside the images."""
PASSING = frozenset({LOCK, ".sending", "worker.pid"})
"""Names of files that mean something to a running process alone; so do `*.lock`."""


class Manifest(BaseModel):
    """What an archive holds: names in it, and the sha256 of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    polycl: str
    made: datetime
    files: dict[str, str]


@dataclass(frozen=True)
class Report:
    """How many files an archive holds, and their bytes. `aside`: where what was there before a restore is kept."""

    files: int
    bytes: int
    aside: tuple[Path, ...] = ()


def back_up(settings: Settings, target: Path, studies: Path | None = None, *, images: bool = True) -> Report:
    """Write the archive `target`, readable by its owner alone, in place of an earlier one.

    `studies` is a folder of images with labels that is not in the state folder. Without `images`, those are left out:
    they come again from the PACS, or from where they were imported. StorageError where something cannot be read or
    written; an earlier archive is then as it was.
    """
    if studies is not None and not studies.is_dir():
        raise InputError(f"there is no folder {studies}")
    with _reporting("the back-up was not made"), ExitStack() as held:
        settings.cache.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(settings.cache / "backup.lock"))
        for left in settings.cache.glob("backup-*"):  # by one that was killed
            shutil.rmtree(left)
        staging = Path(held.enter_context(tempfile.TemporaryDirectory(dir=settings.cache, prefix="backup-")))
        members = list(_staged(settings, studies, staging, images))
        stream = held.enter_context(replacing(target))
        os.fchmod(stream.fileno(), 0o600)
        return _pack(stream, members, staging)


def restore(settings: Settings, archive: Path, studies: Path | None = None, *, replace: bool = False) -> Report:
    """Put everything in `archive` where it was, in a stopped server's state folder.

    InputError for an archive that is damaged, or not whole, where a server works in the folder, and where something
    would be overwritten, unless `replace`: that is then put aside, in a folder `.replaced-…`. Whatever fails, the
    folders are as they were.
    """
    if Runs(settings.learning / "runs").worker() is not None:
        raise InputError("a model is being trained in this state folder: stop the server first")
    settings.state.mkdir(parents=True, exist_ok=True)
    roots = {STATE: settings.state} | ({STUDIES: studies} if studies else {})
    with _reporting("nothing was restored"), ExitStack() as held:
        held.enter_context(alone(settings.state))
        staged: dict[str, Path] = {}
        for name, folder in roots.items():
            folder.mkdir(parents=True, exist_ok=True)
            for left in filter(is_abandoned, folder.glob(".restore-*")):  # by one that was killed
                shutil.rmtree(left)
            staged[name] = Path(held.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".restore-")))
        report = _unpack(archive, staged)
        moves = [
            move
            for name, folder in roots.items()
            if (staged[name] / name).is_dir()
            for move in _moves(staged[name] / name, folder)
        ]
        occupied = [target for _, target in moves if target.exists()]
        if occupied and not replace:
            names = ", ".join(sorted({path.name for path in occupied})[:5])
            raise InputError(
                f"there is {names} already; say --replace to put that aside", hint=f"it is in {occupied[0].parent}"
            )
        return Report(report.files, report.bytes, _place(moves))


def _staged(settings: Settings, studies: Path | None, staging: Path, images: bool) -> Iterator[tuple[str, Path]]:
    """Name in the archive and file of all that is to be packed. What may change meanwhile is put aside first."""
    for part in PARTS:
        source, aside = settings.state / part, staging / STATE / part
        if part == "store":
            found = {index.parent for index in source.rglob(INDEX)} if source.is_dir() else set()
            for folder in sorted(found):
                _put_store_aside(folder, aside / folder.relative_to(source))
            if images:
                yield from _members(source, f"{STATE}/{part}", without=KEPT)
        elif part == "models":
            for folder in [one for one in settings.versions.glob("*") if one.is_dir()]:
                with FileLock(folder / LOCK):
                    _put_aside(folder, aside / folder.relative_to(settings.models))
            _put_aside(source, aside)
        else:
            _put_aside(source, aside)
    if studies is not None:
        _put_store_aside(studies, staging / STUDIES)
        if images:
            files = [file for file in sorted(studies.iterdir()) if file.name.lower().endswith(SUFFIXES)]
            yield from ((f"{STUDIES}/{file.name}", file) for file in files if file.is_file())
    yield from _members(staging, "")


def _put_store_aside(folder: Path, aside: Path) -> None:
    """Labels, versions and index of a folder of images, as they were at one moment.

    Versions never change, so most are taken before the lock, which those who save wait for.
    """
    _put_aside(folder / VERSIONS, aside / VERSIONS)
    with FileLock(folder / LOCK):
        for name in KEPT:
            _put_aside(folder / name, aside / name)
        for version in list((aside / VERSIONS).glob("*/*/*")):  # those that made room meanwhile
            if not (folder / version.relative_to(aside)).is_dir():
                shutil.rmtree(version)


def _put_aside(source: Path, target: Path) -> None:
    """Link, or copy, a file or what is in a folder; what is at `target` already stays, what vanishes is left out."""
    for name, file in [("", source)] if source.is_file() else list(_members(source, "")):
        to = target / name if name else target
        if to.exists():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            to.hardlink_to(file)
        except FileNotFoundError:
            continue
        except OSError:  # another file system, or one without links
            with suppress(FileNotFoundError):
                shutil.copy2(file, to)


def _members(folder: Path, prefix: str, without: Iterable[str] = ()) -> Iterator[tuple[str, Path]]:
    """Name and path of each file below `folder`, but links, what is half written, and names in `without`."""
    left_out = frozenset(without)
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if one not in left_out and not one.startswith(STAGED))
        for name in sorted(files):
            path = Path(root, name)
            passing = name in PASSING or name.endswith(".lock") or TEMPORARY.fullmatch(name) is not None
            if not (passing or name in left_out or path.is_symlink()) and path.is_file():
                yield "/".join(filter(None, (prefix, path.relative_to(folder).as_posix()))), path


class _Hashing(io.RawIOBase):
    """Reads a file and hashes what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        """Of all that was read."""
        return self._digest.hexdigest()


def _pack(stream: IO[bytes], members: Iterable[tuple[str, Path]], staging: Path) -> Report:
    sums: dict[str, str] = {}
    size = 0
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in members:
            with ExitStack() as opened:
                try:
                    file = opened.enter_context(path.open("rb"))
                except FileNotFoundError:
                    if path.is_relative_to(staging):
                        raise
                    continue  # an image that was deleted meanwhile
                entry = tar.gettarinfo(fileobj=file, arcname=name)
                entry.type, entry.linkname = tarfile.REGTYPE, ""  # hard links are ours
                entry.size = os.fstat(file.fileno()).st_size
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                hashing = _Hashing(file)
                tar.addfile(entry, cast(IO[bytes], hashing))
                sums[name], size = hashing.hexdigest(), size + entry.size
        manifest = Manifest(polycl=polycl.__version__, made=datetime.now(UTC), files=sums)
        text = json.dumps(manifest.model_dump(mode="json"), indent=1).encode()
        last = tarfile.TarInfo(MANIFEST)
        last.size, last.mode = len(text), 0o600
        tar.addfile(last, io.BytesIO(text))
    return Report(len(sums), size)


def _unpack(archive: Path, staged: dict[str, Path]) -> Report:
    """Unpack into the folder of each root, and check every file. InputError for what is no whole archive of ours."""
    manifest, size = None, 0
    files: dict[str, Path] = {}
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                root = member.name.partition("/")[0]
                if member.name == MANIFEST:
                    extracted = tar.extractfile(member)
                    manifest = Manifest.model_validate_json(extracted.read() if extracted else b"")
                elif root == STUDIES and STUDIES not in staged:
                    raise InputError("the back-up holds labels of a folder of studies: say where, with --studies")
                elif root not in staged or not member.isfile():
                    raise InputError("this is no back-up made by polycl")
                else:
                    files[member.name], size = _extract(tar, member, staged[root]), size + member.size
    except FileNotFoundError:
        raise InputError(f"there is no file {archive}") from None
    except (tarfile.TarError, ValidationError, EOFError):
        raise InputError("the back-up is damaged, or was made by another program") from None
    if manifest is None:
        raise InputError("the back-up is not whole: its end is missing")
    wrong = [name for name, path in files.items() if sha256_of(path) != manifest.files.get(name)]
    if wrong or files.keys() != manifest.files.keys():
        raise InputError("the back-up is damaged: its files are not those that it was made of")
    return Report(len(files), size)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    """Write a regular file of an archive below a folder, with its time and mode; InputError if it would be elsewhere.

    The filters of `tarfile` would do, but the first releases of Python 3.11 lack them.
    """
    if ".." in PurePosixPath(member.name).parts:
        raise InputError("this is no back-up made by polycl")
    path = folder / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = cast(IO[bytes], tar.extractfile(member))
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)
    path.chmod(member.mode & 0o755 | 0o600)
    os.utime(path, (member.mtime, member.mtime))
    return path


def _moves(staged: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """From where to where each entry goes; but what is there already, file by file, with the same bytes."""
    for entry in sorted(staged.iterdir()):
        target = folder / entry.name
        if target.is_dir() and not target.is_symlink() and next(_members(target, ""), None) is None:
            shutil.rmtree(target)  # the server makes its folders when it starts
        if not (entry.is_file() and target.is_file() and sha256_of(entry) == sha256_of(target)):
            yield entry, target


def _place(moves: list[tuple[Path, Path]]) -> tuple[Path, ...]:
    """Rename each entry into place, and what was there into a folder beside; all of them or none."""
    stamp = f".replaced-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    done: list[tuple[Path, Path]] = []
    try:
        for entry, target in moves:
            if target.exists():
                (aside := target.parent / stamp).mkdir(exist_ok=True)
                target.rename(aside / target.name)
                done.append((target, aside / target.name))
            entry.rename(target)
            done.append((entry, target))
    except BaseException:
        for before, after in reversed(done):
            after.rename(before)
        raise
    return tuple(sorted({after.parent for _, after in done if after.parent.name == stamp}))


@contextmanager
def _reporting(outcome: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{outcome}: {error.strerror or type(error).__name__}", hint=str(error.filename or "")
        ) from None
