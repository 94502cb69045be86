"""`polycl backup` and `polycl restore`: the same bytes again, or nothing changed."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polycl.accounts import Accounts, Role
from polycl.backup import back_up, restore
from polycl.errors import InputError, StorageError
from polycl.labels.library import Library
from polycl.serving import alone, serving
from polycl.settings import Settings
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


def save_label(studies: Path, z: int) -> None:
    voxels = np.zeros((4, 4, 3), np.uint8)
    voxels[1, 1, z] = 1
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    write_volume(Volume(voxels, np.eye(4)), studies / "labels" / "final" / "ct.nii.gz")
    Library(studies, known={"liver": 1}).current("ct")


def fill(studies: Path) -> None:
    """A store with an image, and a label of two versions."""
    studies.mkdir(parents=True)
    write_volume(Volume(np.zeros((4, 4, 3), np.int16), np.eye(4)), studies / "ct.nii.gz")
    save_label(studies, 0)
    save_label(studies, 2)
    (studies / "datastore_v2.json").write_text('{"objects": {}}')


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    settings = Settings(state=tmp_path / "state")
    settings.prepare()
    fill(settings.store / "dicom-0123")
    Accounts(settings.users).add("jane", Role.ANNOTATOR, "correct horse")
    for name in ("live.json", "0001.json", "abc.safetensors"):
        (settings.versions / "liver").mkdir(parents=True, exist_ok=True)
        (settings.versions / "liver" / name).write_bytes(os.urandom(64))
    for name in ("acquisition/scores/one.json", "learning/patients.json", "audit/audit.jsonl"):
        (settings.state / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.state / name).write_bytes(os.urandom(64))
    (settings.cache / "replies").mkdir()
    (settings.cache / "replies" / "x").write_text("can be made again")
    return settings


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept(settings: Settings) -> dict[str, bytes]:
    return {name: data for name, data in contents(settings.state).items() if not name.startswith(("cache", "logs"))}


def test_wiped_and_restored_byte_for_byte(settings: Settings, tmp_path: Path) -> None:
    studies, archive = tmp_path / "studies", tmp_path / "all.tar"
    fill(studies)
    state, labels = kept(settings), contents(studies)
    assert len(state) > 10
    back_up(settings, archive, studies)
    assert archive.stat().st_mode & 0o077 == 0
    shutil.rmtree(settings.state)
    shutil.rmtree(studies)
    restore(settings, archive, studies)
    assert contents(settings.state) == state
    assert contents(studies) == labels
    assert settings.users.stat().st_mode & 0o077 == 0
    assert [one.version for one in Library(studies).versions("ct")] == [1, 2]


def test_nothing_is_overwritten_unless_told(settings: Settings, tmp_path: Path) -> None:
    archive = tmp_path / "all.tar"
    back_up(settings, archive)
    before = kept(settings)
    (settings.versions / "liver" / "live.json").write_text("newer")
    newer = kept(settings)
    with pytest.raises(InputError, match="--replace"):
        restore(settings, archive)
    assert kept(settings) == newer
    report = restore(settings, archive, replace=True)
    aside = {name: data for name, data in kept(settings).items() if not name.startswith(".replaced")}
    assert aside == before
    assert any((folder / "models/versions/liver/live.json").read_text() == "newer" for folder in report.aside)


def test_without_images(settings: Settings, tmp_path: Path) -> None:
    archive, studies = tmp_path / "all.tar", tmp_path / "studies"
    fill(studies)
    back_up(settings, archive, studies, images=False)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert not [name for name in names if name.endswith("ct.nii.gz") and "/labels/" not in name]
    assert [name for name in names if name.startswith("studies/label_versions/")]
    restore(settings, archive, studies, replace=True)  # beside the images that are there
    assert (studies / "ct.nii.gz").is_file()


def test_labels_of_one_moment_while_others_save(settings: Settings, tmp_path: Path) -> None:
    """Whatever moment an archive is of: each record in it is of the label beside it."""
    studies, stop = tmp_path / "studies", threading.Event()
    fill(studies)

    def saves() -> None:
        library = Library(studies, keep=3)
        while not stop.is_set():
            library.restore("ct", library.versions("ct")[0].version)

    saver = threading.Thread(target=saves)
    saver.start()
    try:
        for number in range(5):
            archive, copy = tmp_path / f"{number}.tar", tmp_path / f"copy-{number}"
            back_up(settings, archive, studies)
            restore(Settings(state=tmp_path / f"state-{number}"), archive, copy)
            records = [copy / "labels/final/ct.record.json", *copy.glob("label_versions/final/ct/*/record.json")]
            assert len(records) >= 3
            for path in records:
                record = json.loads(path.read_text())
                label = path.with_name("ct.nii.gz" if path == records[0] else "label.nii.gz")
                assert hashlib.sha256(label.read_bytes()).hexdigest() == record["sha256"]
            assert json.loads(records[0].read_text())["version"] in {
                json.loads(path.read_text())["version"] for path in records[1:]
            }
    finally:
        stop.set()
        saver.join()


def test_not_under_a_server_that_works(settings: Settings, tmp_path: Path) -> None:
    archive, fresh = tmp_path / "all.tar", Settings(state=tmp_path / "fresh")
    back_up(settings, archive)
    fresh.state.mkdir()
    with serving(fresh.state), serving(fresh.state), pytest.raises(InputError, match="stop it first"):
        restore(fresh, archive)
    assert contents(fresh.state) == {}
    with alone(fresh.state), pytest.raises(InputError, match="being restored"):
        serving(fresh.state)
    restore(fresh, archive)
    assert kept(fresh) == kept(settings)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "foreign", "absent", "outside"])
def test_a_damaged_archive_changes_nothing(settings: Settings, tmp_path: Path, damage: str) -> None:
    archive, fresh = tmp_path / "all.tar", Settings(state=tmp_path / "fresh")
    back_up(settings, archive)
    data = archive.read_bytes()
    if damage == "cut":
        archive.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        archive.write_bytes(data.replace(b'"objects"', b'"objectz"'))
    elif damage == "empty":
        archive.write_bytes(b"")
    elif damage == "absent":
        archive.unlink()
    else:
        with tarfile.open(archive, "w") as tar:
            name = "other/file" if damage == "foreign" else "state/../../outside"
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
    with pytest.raises(InputError):
        restore(fresh, archive)
    assert contents(fresh.state) == {}
    assert not (tmp_path / "outside").exists()


def test_a_failure_half_way_puts_everything_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "all.tar"
    back_up(settings, archive)
    before, rename = kept(settings), Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == "store" and ".restore-" in str(path):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match="nothing was restored: No space"):
        restore(settings, archive, replace=True)
    assert kept(settings) == before


def test_commands(run: Run, tmp_path: Path) -> None:
    studies, archive = tmp_path / "studies", tmp_path / "all.tar"
    fill(studies)
    labels = contents(studies)
    code, out, _ = run("backup", archive, "--studies", studies, "--json")
    assert (code, json.loads(out)["files"]) == (0, len(labels))
    shutil.rmtree(studies)
    code, _, err = run("restore", archive)
    assert (code, "--studies" in err, len(err.splitlines())) == (1, True, 1)
    code, out, _ = run("restore", archive, "--studies", studies)
    assert (code, contents(studies)) == (0, labels)
    assert str(len(labels)) in out
    assert run("backup", archive, "--studies", tmp_path / "nowhere")[0] == 1
