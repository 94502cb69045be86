"""Versions of a model: what is kept, what is live, and what a killed or second process leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from polycl import checkpoints
from polycl.catalogue import Catalogue
from polycl.checkpoints import Header
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.learning.versions import Superseded, Version, Versions
from polycl.segmenter.network import SegmentationNetwork
from polycl.settings import Settings

pytestmark = pytest.mark.unit

NAME = "tiny"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions", keep=3)


def add(versions: Versions, tmp_path: Path, header: Header, run: str, parent: int = 0) -> Version:
    """A version of random weights."""
    torch.manual_seed(sum(run.encode()))
    path = tmp_path / f"{run}.safetensors"
    sha256 = checkpoints.save(path, SegmentationNetwork(header.network).state_dict(), header)
    return versions.add(
        NAME,
        path,
        Version(
            number=1,
            sha256=sha256,
            parent=parent,
            parent_sha256="",
            run=run,
            created=datetime.now(UTC),
            seconds=1.0,
            blend=1.0,
            publish=True,
            reason="better",
        ),
    )


def test_the_first_is_live_until_another_is_published(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    assert versions.live(NAME) == 0
    first = add(versions, tmp_path, tiny_header, "a")
    assert (first.number, versions.live(NAME)) == (1, 0)
    versions.publish(NAME, 1, "better")
    assert versions.live(NAME) == 1
    assert versions.weights(NAME, first).name == f"{first.sha256}.safetensors"
    assert [switch.why for switch in versions.pointer(NAME).history] == ["better"]


def test_rolling_back_goes_to_the_parent_or_to_any_that_is_kept(
    versions: Versions, tmp_path: Path, tiny_header: Header
) -> None:
    with pytest.raises(InputError, match="nothing to roll back"):
        versions.rollback(NAME)
    for run, parent in (("a", 0), ("b", 1)):
        versions.publish(NAME, add(versions, tmp_path, tiny_header, run, parent).number, "better")
    assert versions.rollback(NAME) == 1
    assert versions.rollback(NAME, 2) == 2
    assert versions.rollback(NAME, 0) == versions.live(NAME) == 0
    with pytest.raises(NotFoundError, match="there are: 0, 1, 2"):
        versions.rollback(NAME, 7)


def test_the_same_run_adds_one_version(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    assert add(versions, tmp_path, tiny_header, "a") == add(versions, tmp_path, tiny_header, "a")
    assert len(versions.kept(NAME)) == 1


def test_only_the_version_that_was_compared_with_is_replaced(
    versions: Versions, tmp_path: Path, tiny_header: Header
) -> None:
    for run in ("a", "b"):
        add(versions, tmp_path, tiny_header, run)
    versions.publish(NAME, 1, "better", instead_of=0)
    with pytest.raises(Superseded):
        versions.publish(NAME, 2, "better", instead_of=0)
    versions.publish(NAME, 1, "again", instead_of=0)
    assert len(versions.pointer(NAME).history) == 1


def test_few_are_kept_and_never_the_live_one_or_its_parent_dropped(
    versions: Versions, tmp_path: Path, tiny_header: Header
) -> None:
    add(versions, tmp_path, tiny_header, "a")
    add(versions, tmp_path, tiny_header, "b", parent=1)
    versions.publish(NAME, 2, "better")
    for run in ("c", "d", "e"):
        add(versions, tmp_path, tiny_header, run, parent=2)
    assert [one.number for one in versions.kept(NAME)] == [1, 2, 5]
    files = {file.stem for file in (tmp_path / "versions" / NAME).glob("*.safetensors")}
    assert files == {one.sha256 for one in versions.kept(NAME)}
    assert add(versions, tmp_path, tiny_header, "f", parent=2).number == 6
    assert versions.newest_candidate(NAME) == 6


def test_altered_weights_are_not_published(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    file = versions.weights(NAME, add(versions, tmp_path, tiny_header, "a"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="sha256"):
        versions.publish(NAME, 1, "better")
    assert versions.live(NAME) == 0


def test_what_a_killed_process_leaves_does_no_harm(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    add(versions, tmp_path, tiny_header, "a")
    folder = tmp_path / "versions" / NAME
    (folder / "weights-without-a-record.safetensors").write_bytes(b"half")
    (folder / ".live.json.1234").write_bytes(b"{")
    add(versions, tmp_path, tiny_header, "b")
    assert versions.live(NAME) == 0
    assert not list(folder.glob("weights*")) + list(folder.glob(".live*"))


def test_a_damaged_pointer_is_named_and_mended_by_rolling_back(
    versions: Versions, tmp_path: Path, tiny_header: Header
) -> None:
    add(versions, tmp_path, tiny_header, "a")
    (tmp_path / "versions" / NAME / "live.json").write_bytes(b"{")
    with pytest.raises(ModelError, match="rollback tiny --to N"):
        versions.live(NAME)
    assert versions.rollback(NAME, 0) == versions.live(NAME) == 0


def test_an_unreadable_record_keeps_its_weights(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    first = add(versions, tmp_path, tiny_header, "a")
    (tmp_path / "versions" / NAME / "0001.json").write_bytes(b"{")
    assert add(versions, tmp_path, tiny_header, "b").number == 2
    assert versions.weights(NAME, first).is_file()
    assert [one.number for one in versions.kept(NAME)] == [2]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\0b"])
def test_a_name_is_no_path(versions: Versions, name: str) -> None:
    with pytest.raises(NotFoundError):
        versions.publish(name, 0, "x")


def test_writers_take_turns(versions: Versions, tmp_path: Path, tiny_header: Header) -> None:
    threads = [
        threading.Thread(target=add, args=(Versions(tmp_path / "versions", 9), tmp_path, tiny_header, f"r{index}"))
        for index in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in versions.kept(NAME)] == [1, 2, 3, 4, 5]


def test_the_catalogue_names_the_live_version(tmp_path: Path, tiny_checkpoint: Path, tiny_header: Header) -> None:
    settings = Settings(state=tmp_path / "state", weights=tiny_checkpoint.parent)
    versions = Versions(settings.versions)
    added = add(versions, tmp_path, tiny_header, "a")
    catalogue = Catalogue.default(settings)
    assert catalogue.entry(NAME).path == tiny_checkpoint
    versions.publish(NAME, 1, "better")
    entry = catalogue.entry(NAME)
    assert (entry.version, entry.sha256, entry.verify()) == (1, added.sha256, added.sha256)
    assert catalogue.entry(f"{NAME}@0").path == tiny_checkpoint
    assert catalogue.entry(f"{NAME}@1") == entry
    with pytest.raises(NotFoundError, match="no version 2"):
        catalogue.entry(f"{NAME}@2")
    assert catalogue.names("segmenter").count(NAME) == 1


def test_the_command_line_lists_publishes_and_rolls_back(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, tiny_header: Header
) -> None:
    versions = Versions(tmp_path / "state" / "models" / "versions")
    assert "as it came" not in run("models", "list")[1]
    code, _, err = run("models", "publish", NAME)
    assert (code, "waits to be published" in err) == (1, True)
    add(versions, tmp_path, tiny_header, "a")
    assert run("models", "publish", NAME) == (0, "tiny: version 1 is live (better)\n", "")
    listed = run("models", "list")[1].splitlines()
    tiny = next(index for index, line in enumerate(listed) if line.startswith(NAME))
    assert "as it came" in listed[tiny + 1]
    assert listed[tiny + 2].split()[:2] == ["live", "1"]
    (row,) = [one for one in json.loads(run("models", "list", "--json")[1])["models"] if one["name"] == NAME]
    assert (row["live"], [one["number"] for one in row["versions"]]) == (1, [1])
    assert run("models", "verify", NAME)[0] == 0
    assert run("models", "rollback", NAME)[1] == "tiny: version 0 is live\n"
    assert run("models", "rollback", NAME)[0] == 1
    assert run("models", "rollback", NAME, "--to", 1)[1] == "tiny: version 1 is live\n"
    assert "no version 5" in run("models", "publish", NAME, 5)[2]
    assert "nothing" in run("models", "rollback", "nothing")[2]
