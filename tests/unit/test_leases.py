"""Leases: one holder at a time, they expire, they survive a restart."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.errors import InputError
from polycl.leases import FRESH, Leases, notices

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, minutes: float) -> None:
        self.time += timedelta(minutes=minutes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path: Path, clock: Clock) -> Leases:
    return Leases(tmp_path / "folder" / "leases.json", 30, clock)


def test_one_holder_at_a_time(leases: Leases) -> None:
    assert leases.take("a", "ann") is not None
    assert leases.take("a", "bob") is None
    assert leases.take("a", "ann") is not None
    assert list(leases.held_by_others("bob")) == ["a"]
    assert leases.held_by_others("ann") == {}


def test_it_expires_and_is_renewed(leases: Leases, clock: Clock) -> None:
    leases.take("a", "ann")
    clock.advance(20)
    leases.take("a", "ann")
    clock.advance(20)
    assert leases.take("a", "bob") is None
    clock.advance(11)
    assert leases.held() == {}
    assert leases.take("a", "bob") is not None


def test_it_survives_a_restart(leases: Leases, tmp_path: Path, clock: Clock) -> None:
    leases.take("a", "ann")
    assert list(Leases(tmp_path / "folder" / "leases.json", 30, clock).held()) == ["a"]


def test_a_label_that_is_saved_releases(leases: Leases) -> None:
    leases.take("a", "ann")
    leases.release("a")
    leases.release("never")
    assert leases.take("a", "bob") is not None


def test_a_damaged_file_is_no_obstacle(leases: Leases, tmp_path: Path) -> None:
    leases.take("a", "ann")
    (tmp_path / "folder" / "leases.json").write_bytes(b"{")
    assert leases.held() == {}
    assert leases.take("a", "bob") is not None


def test_a_full_disk_is_no_obstacle(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise InputError("cannot write: No space left on device")

    monkeypatch.setattr("polycl.leases.write_atomically", full)
    assert leases.take("a", "ann") is not None
    leases.release("a")


def test_without_minutes_there_are_none(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json", 0)
    assert not leases.enabled
    assert leases.take("a", "ann") is None
    assert leases.held() == {}


def test_of_many_who_ask_at_once_one_gets_it(leases: Leases) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: leases.take("a", f"person {number}"), range(16)))
    assert sum(lease is not None for lease in got) == 1


def test_people_at_one_image_are_told_of_each_other(leases: Leases, clock: Clock) -> None:
    leases.take("a", "ann")
    assert leases.see("a", "bob") == ["ann"]
    assert leases.see("a", "ann") == ["bob"]
    assert leases.see("a", "") == ["ann", "bob"], "who gives no name is told, and not told of"
    assert leases.see("b", "ann") == []
    assert leases.at_work() == {"a": ["ann", "bob"], "b": ["ann"]}
    clock.advance(31)
    assert leases.see("a", "cid") == []
    assert leases.at_work() == {"a": ["cid"]}


def test_a_sign_of_work_holds_nothing_but_renews_ones_lease(leases: Leases, clock: Clock) -> None:
    leases.see("a", "bob")
    assert leases.held() == {}
    assert leases.take("a", "ann") is not None
    clock.advance(20)
    assert leases.see("a", "ann") == ["bob"]
    clock.advance(20)
    assert leases.held()["a"].holder == "ann"
    assert leases.see("a", "ann") == []
    leases.release("a")
    assert leases.at_work() == {"a": ["ann"]}, "the image may be worked on after its label was saved"


def test_clicks_that_come_quickly_are_not_all_written(leases: Leases, tmp_path: Path, clock: Clock) -> None:
    leases.see("a", "ann")
    written = (tmp_path / "folder" / "leases.json").stat().st_mtime_ns
    leases.see("a", "ann")
    assert (tmp_path / "folder" / "leases.json").stat().st_mtime_ns == written
    clock.advance(31 * (1 - FRESH))
    leases.see("a", "ann")
    assert (tmp_path / "folder" / "leases.json").stat().st_mtime_ns > written


@pytest.mark.parametrize("minutes", [-24 * 60, 24 * 60])
def test_a_clock_that_jumps_frees_all(leases: Leases, clock: Clock, minutes: float) -> None:
    leases.take("a", "ann")
    leases.see("a", "bob")
    clock.advance(minutes)
    assert leases.at_work() == {}
    assert leases.take("a", "bob") is not None


def test_what_an_earlier_version_kept_is_read(leases: Leases, tmp_path: Path, clock: Clock) -> None:
    leases.take("a", "ann")
    file = tmp_path / "folder" / "leases.json"
    file.write_text(json.dumps({"format": 1, "leases": json.loads(file.read_text())["leases"]}))
    assert leases.at_work() == {"a": ["ann"]}


@pytest.mark.parametrize(
    ("others", "lines"),
    [
        ([], []),
        (["ann"], ["'ann' works on this image too"]),
        (["a", "b"], ["'a', 'b' work on this image too"]),
    ],
)
def test_a_notice(others: list[str], lines: list[str]) -> None:
    assert notices(others) == lines


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 40)), max_size=12))
@settings(deadline=None, max_examples=30)
def test_nobody_is_given_what_another_holds(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple]) -> None:
    clock = Clock()
    leases = Leases(tmp_path_factory.mktemp("leases") / "leases.json", 30, clock)
    model: dict[str, tuple[str, datetime]] = {}
    for image, person, minutes in steps:
        holder, until = model.get(image, ("", clock.time))
        free = until <= clock.time or holder == person
        assert (leases.take(image, person) is not None) == free
        if free:
            model[image] = (person, clock.time + timedelta(minutes=30))
        clock.advance(minutes)
