"""The queue of labels for a PACS: nothing is lost, nothing is sent twice by two, and failures are not insisted on."""

import itertools
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import requests

import waiting
from polycl.errors import InputError
from polycl.monailabel import outbox
from polycl.monailabel.outbox import Entry, Outbox

eventually = partial(waiting.until, seconds=10)

pytestmark = [pytest.mark.app, pytest.mark.timeout(30)]


def entry(version: int = 1, image: str = "1.2") -> Entry:
    return Entry(image=image, tag="final", version=version)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.2)


def test_what_is_put_is_sent_and_forgotten(tmp_path: Path) -> None:
    sent: list[Entry] = []
    box = Outbox(tmp_path, sent.append)
    for version in (1, 2, 3):
        box.put(entry(version))
        assert box.wait(entry(version), 10) == ""
    assert sent == [entry(1), entry(2), entry(3)]
    assert box.waiting() == []
    assert not list(tmp_path.glob("*.json"))


def test_a_failure_is_told_and_tried_again_less_and_less_often(tmp_path: Path) -> None:
    times: list[float] = []

    def fail(_: Entry) -> None:
        times.append(time.monotonic())
        if len(times) < 5:
            raise requests.ConnectionError("http://of.patient.x")

    box = Outbox(tmp_path, fail)
    box.put(entry())
    assert box.wait(entry(), 10) == "the PACS cannot be reached"
    assert box.waiting() == [entry()]
    eventually(lambda: not box.waiting())
    pauses = [second - first for first, second in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.2), strict=True))


@pytest.mark.parametrize(
    ("error", "words"),
    [(requests.Timeout(), "in time"), (InputError("no grid"), "no grid"), (KeyError("x"), "nonsense")],
)
def test_reasons(tmp_path: Path, error: Exception, words: str) -> None:
    def fail(_: Entry) -> None:
        raise error

    box = Outbox(tmp_path, fail)
    box.put(entry())
    assert words in box.wait(entry(), 10)
    box.stop()


def test_one_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    sent: list[Entry] = []

    def send(one: Entry) -> None:
        if one.image == "1.1":
            raise InputError("never")
        sent.append(one)

    box = Outbox(tmp_path, send)
    box.put(entry(image="1.1"))
    box.put(entry(image="1.2"))
    eventually(lambda: sent)
    assert box.waiting() == [entry(image="1.1")]
    box.stop()


def test_what_waits_outlives_the_process(tmp_path: Path) -> None:
    def down(_: Entry) -> None:
        raise requests.ConnectionError

    first = Outbox(tmp_path, down)
    first.put(entry(1))
    first.put(entry(2))
    first.wait(entry(2), 10)
    first.stop()
    (tmp_path / "damaged.json").write_text("{")
    sent: list[Entry] = []
    second = Outbox(tmp_path, sent.append)
    eventually(lambda: not second.waiting())
    assert sorted(one.version for one in sent) == [1, 2]


def test_somebody_slow_is_not_waited_for(tmp_path: Path) -> None:
    go_on = threading.Event()
    box = Outbox(tmp_path, lambda _: go_on.wait(10) and None)
    box.put(entry())
    assert box.wait(entry(), 0.1) == "the PACS is slow"
    go_on.set()
    assert box.wait(entry(), 10) == ""


def test_two_processes_send_each_once(tmp_path: Path) -> None:
    sent: list[int] = []

    def send(one: Entry) -> None:
        time.sleep(0.02)
        sent.append(one.version)

    boxes = [Outbox(tmp_path, send) for _ in range(2)]
    for version in range(1, 9):
        boxes[version % 2].put(entry(version))
    eventually(lambda: not boxes[0].waiting())
    assert sorted(sent) == list(range(1, 9))


def test_a_put_while_the_queue_runs_empty_is_not_forgotten(tmp_path: Path) -> None:
    sent: list[Entry] = []
    box = Outbox(tmp_path, sent.append)
    for version in range(1, 60):
        box.put(entry(version))
        time.sleep(0.001 * (version % 3))
    eventually(lambda: len(sent) == 59)
