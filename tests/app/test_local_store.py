"""The store of a folder and its index, under threads, processes, kills and full disks."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_images import AFFINES, ct
from tiny_labels import LIVER_SPLEEN, painted, stored

from polycl.monailabel.store import IMAGE_PATTERNS, LocalStore
from polycl.volume import Volume, write_volume
from waiting import until

pytestmark = pytest.mark.app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_volume(Volume(ct(0), AFFINES["lps"]), tmp_path / f"{name}.nii.gz")
    return tmp_path


def local(folder: Path) -> LocalStore:
    return LocalStore(str(folder), extensions=IMAGE_PATTERNS)


def test_the_folder_is_watched_on_after_a_change_that_could_not_be_taken_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(str(folder), extensions=IMAGE_PATTERNS, auto_reload=True)
    failed = threading.Event()

    def full() -> None:
        failed.set()
        raise OSError(errno.ENOSPC, "no space left", "patient name")

    with monkeypatch.context() as fault:
        fault.setattr(store, "refresh", full)
        write_volume(Volume(ct(1), AFFINES["lps"]), folder / "c.nii.gz")
        assert failed.wait(10)
    until(lambda: "not taken in: OSError" in caplog.text, seconds=10)
    assert "patient name" not in caplog.text
    write_volume(Volume(ct(2), AFFINES["lps"]), folder / "d.nii.gz")
    until(lambda: {"c", "d"} <= set(store.list_images()), seconds=10)


def keep(store: LocalStore, label: np.ndarray, image: str = "a", who: str = "ann") -> None:
    path = store.folder.parent / f"{who}-{image}.nii.gz"
    write_volume(Volume(label, AFFINES["lps"]), path)
    store.keep_label(image, "final", store.sent(path, {"label_info": LIVER_SPLEEN}, annotator=who))


def noted(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "datastore_v2.json").read_bytes())["objects"])


def test_what_another_process_noted_is_kept(folder: Path) -> None:
    one, two = local(folder), local(folder)
    keep(one, painted(1), "a")
    keep(two, painted(2), "b")
    one.update_image_info("b", {"seen": 1})
    two.update_image_info("a", {"seen": 2})
    objects = noted(folder)
    assert [objects[name]["image"]["info"]["seen"] for name in "ab"] == [2, 1]
    assert [objects[name]["labels"]["final"]["info"]["version"] for name in "ab"] == [1, 1]
    assert one.get_labels_by_image_id("b") == {"final": "b"}
    one.add_image("c", str(folder / "a.nii.gz"), {})
    two.add_image("d", str(folder / "a.nii.gz"), {})
    assert set(noted(folder)) == {"a", "b", "c", "d"}
    one.update_label_info("b", "final", {"seen": 3})
    two.remove_label("a", "final")
    objects = noted(folder)
    assert objects["a"]["labels"] == {}
    assert objects["b"]["labels"]["final"]["info"]["seen"] == 3


def child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; the process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_many_processes_and_threads(folder: Path) -> None:
    local(folder)

    def work(number: int) -> None:
        store = local(folder)
        for turn in range(6):
            store.update_image_info("a", {f"{number}-{turn}": turn})

    children = [child(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    info = noted(folder)["a"]["image"]["info"]
    assert {f"{number}-{turn}" for number in range(6) for turn in range(6)} <= set(info)


def test_killed_while_the_index_is_written(folder: Path) -> None:
    store = local(folder)
    for turn in range(12):
        keep(store, painted(turn % 7), "a")

        def work() -> None:
            mine = local(folder)
            for number in range(10_000):
                mine.update_image_info("b", {"number": number})

        pid = child(work)
        time.sleep(0.01 + 0.013 * turn)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert set(noted(folder)) == {"a", "b"}
        assert local(folder).get_label_info("a", "final")["record"]["version"] == turn + 1
    assert not list(folder.glob("*.damaged-*"))


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_a_truncated_index_is_made_anew_with_what_is_known_of_labels(folder: Path, size: int) -> None:
    keep(local(folder), painted(1), "a", who="bea")
    index = folder / "datastore_v2.json"
    index.write_bytes(index.read_bytes()[:size])
    store = local(folder)
    assert sorted(store.list_images()) == ["a", "b"]
    info = store.get_label_info("a", "final")
    assert [entry["name"] for entry in info["label_info"]] == ["liver", "spleen"]
    assert (info["client_id"], info["version"], info["record"]["annotator"]) == ("bea", 1, "bea")


def test_an_index_that_is_behind_the_labels(folder: Path) -> None:
    store = local(folder)
    keep(store, painted(1), "a")
    index = (folder / "datastore_v2.json").read_bytes()
    keep(store, painted(2), "a", who="bea")
    (folder / "datastore_v2.json").write_bytes(index)  # as after a kill between label and index
    assert local(folder).get_label_info("a", "final")["client_id"] == "bea"


def test_a_full_disk_and_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polycl.errors import StorageError
    from polycl.monailabel import store as module

    store = local(folder)
    store.update_image_info("a", {"seen": 1})

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "replacing", full)
        with pytest.raises(StorageError, match="full"):
            store.update_image_info("a", {"seen": 2})
        keep(store, painted(1), "a")  # the label itself found room
        assert store.get_labels_by_image_id("a") == {"final": "a"}
    assert noted(folder)["a"]["image"]["info"]["seen"] == 1
    store.update_image_info("b", {"seen": 3})
    assert noted(folder)["a"]["labels"]["final"]["info"]["version"] == 1
    assert noted(folder)["b"]["image"]["info"]["seen"] == 3


def test_the_values_of_a_reply_stay_those_of_its_names(folder: Path) -> None:
    from polycl.monailabel.store import LabelRules

    store = LocalStore(str(folder), rules=LabelRules(known={"liver": 1, "spleen": 2}))
    path = folder.parent / "reply.nii.gz"
    write_volume(Volume(painted(2), AFFINES["lps"]), path)
    store.save_label("a", str(path), "original", {"params": {"label_names": {"spleen": 1}}})
    info = store.get_label_info("a", "original")
    assert info["record"]["labels"] == {"spleen": 1}
    assert info["label_info"] == [{"name": "spleen", "idx": 1}]
    assert np.array_equal(stored(folder, "a", "original"), painted(2))
