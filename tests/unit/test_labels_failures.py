"""The labels of a folder under full disks, killed processes, what those leave behind, and locks that are kept."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sent_labels import AFFINE, KNOWN, current, send, voxels

from polycl.errors import StorageError
from polycl.labels import library as library_module
from polycl.labels.library import Library
from polycl.labels.saving import Sent, save
from polycl.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.unit


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The disk is full at the n-th write or rename below; n is in the list, which counts down."""
    left = [10**9]
    real_replace, real_rename, real_mkdir = Path.replace, Path.rename, Path.mkdir

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def guarded(real: Any) -> Any:
        def method(self: Path, *args: Any, **kwargs: Any) -> Any:
            count()
            return real(self, *args, **kwargs)

        return method

    real_open = Path.open

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            count()
            return int(self.stream.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real_open(self, mode, *args, **kwargs)
        return Full(stream) if set(mode) & set("wxa") else stream

    monkeypatch.setattr(Path, "replace", guarded(real_replace))
    monkeypatch.setattr(Path, "rename", guarded(real_rename))
    monkeypatch.setattr(Path, "mkdir", guarded(real_mkdir))
    monkeypatch.setattr(Path, "open", open_)
    yield left
    left[0] = 10**9


def test_a_disk_that_fills_up_at_any_step(store: Path, failing: list[int]) -> None:
    send(store, voxels(1))
    path = store.parent / "sent.nii.gz"
    write_volume(Volume(voxels(3), AFFINE), path)
    sent = Sent.read(path, {"label_info": [{"name": "liver"}]}, annotator="bea")
    grid = read_volume(store / "a.nii.gz")
    failed = 0
    for step in range(100):
        before = current(store)
        failing[0] = step
        try:
            saved = save(Library(store, 3, KNOWN), "a", "final", sent, grid)
        except StorageError as error:
            failing[0] = 10**9
            failed += 1
            said = str(error)
            assert np.array_equal(current(store), before)
            assert Library(store).record("a").version == 1
            assert [record.version for record in Library(store).versions("a")] == [1]
            assert not list(store.rglob(".new-*"))
            assert ("full" in said, "/" in said) == (True, False)
            continue
        failing[0] = 10**9
        assert np.array_equal(current(store), voxels(3))
        assert saved.record.version == 2
        if step >= failed + 6:
            break
        send(store, voxels(4))  # which also makes up for a version that could not be kept
        assert [record.annotator for record in Library(store).versions("a")] == ["ann", "bea", "ann"]
        Library(store).remove("a", "final")
        shutil.rmtree(store / "label_versions")
        send(store, voxels(1))
    assert failed >= 6


def killed(work: Callable[[], object], step: int) -> bool:
    """Run `work` in a process of its own that is killed before its n-th call of what changes files. Whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [step]

    def guard(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stop(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, stop)

    for name in ("mkdir", "replace", "rename", "unlink"):
        guard(Path, name)
    for owner, name in ((os, "fsync"), (shutil, "rmtree"), (shutil, "copyfileobj"), (shutil, "copyfile")):
        guard(owner, name)
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_step(store: Path) -> None:
    """Whatever is killed: the old label or the new one, whole, with its own record; and the next save works."""
    send(store, voxels(1), keep=99)
    path = store.parent / "sent.nii.gz"
    write_volume(Volume(voxels(3), AFFINE), path)
    sent = Sent.read(path, {"label_info": [{"name": "liver"}]}, annotator="bea")
    grid = read_volume(store / "a.nii.gz")
    seen = set()
    for step in range(60):
        was_killed = killed(lambda: save(Library(store, 99, KNOWN), "a", "final", sent, grid), step)
        library = Library(store, 99)
        now, record = current(store), library.record("a")
        assert record is not None
        assert record.annotator == ("bea" if now[2, 2, 3] else "ann")
        assert np.array_equal(now, voxels(3) if now[2, 2, 3] else voxels(1))
        library.heal()
        assert record in library.versions("a")
        if not was_killed:
            assert now[2, 2, 3]
            break
        seen.add(record.annotator)
        library.restore("a", 1)  # back to the start, under a new number
    else:
        pytest.fail("never came to the end")
    assert seen == {"ann", "bea"}
    assert step > 12


@pytest.mark.parametrize("change", ["remove", "restore", "mark"])
def test_other_changes_killed_at_any_step(store: Path, change: str) -> None:
    send(store, voxels(1), keep=99)
    send(store, voxels(2), keep=99)
    changes: dict[str, Callable[[Library], object]] = {
        "remove": lambda library: library.remove("a", "final"),
        "restore": lambda library: library.restore("a", 1),
        "mark": lambda library: library.mark_complete("a", "final", ("liver",)),
    }
    for step in range(60):
        was_killed = killed(lambda: changes[change](Library(store, 99)), step)
        library = Library(store, 99)
        library.heal()
        found = library.current("a")
        if found is not None:
            assert np.array_equal(current(store), voxels(1 if found.record.source == "restored" else 2))
            assert found.record in library.versions("a")
        else:
            assert change == "remove"
        assert {1, 2} <= {record.version for record in library.versions("a")}
        if not was_killed:
            break
        send(store, voxels(2), keep=99)
    else:
        pytest.fail("never came to the end")


def test_leftovers_of_killed_processes_go(store: Path) -> None:
    send(store, voxels(1))
    staged = store / "label_versions" / "final" / "a" / ".new-0011"
    staged.mkdir()
    (staged / "label.nii.gz").write_bytes(b"half")
    half = store / "labels" / "final" / ".a.nii.gz.00112233"
    half.write_bytes(b"half")
    Library(store).heal()
    assert staged.is_dir()  # another process may be at work on it
    old = time.time() - 7200
    os.utime(staged, (old, old))
    os.utime(half, (old, old))
    Library(store).heal()
    assert not staged.exists()
    assert not half.exists()
    assert np.array_equal(current(store), voxels(1))


def test_a_lock_that_is_not_given_back(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "LOCK_SECONDS", 0.1)
    with Library(store).lock, pytest.raises(StorageError, match="another program"):
        send(store, voxels(1))
