"""Volumes wait for clicks, but not for ever."""

import threading
import time

import pytest

from polycl.monailabel.courtesy import Courtesy

pytestmark = pytest.mark.unit


def test_a_volume_waits_until_every_click_is_answered() -> None:
    courtesy, passed = Courtesy(patience=60), threading.Event()

    def volume() -> None:
        courtesy.let_pass()
        passed.set()

    with courtesy.first():
        with courtesy.first():
            thread = threading.Thread(target=volume)
            thread.start()
        assert not passed.is_set()
    thread.join(60)
    assert passed.is_set()


def test_nobody_waits_without_a_click() -> None:
    courtesy = Courtesy(patience=60)
    with courtesy.first():
        pass
    courtesy.let_pass()  # it would hang


def test_a_click_that_fails_holds_nobody_up() -> None:
    courtesy = Courtesy(patience=60)
    with pytest.raises(ValueError, match="no such slice"), courtesy.first():
        raise ValueError("no such slice")
    courtesy.let_pass()


def test_patience_ends() -> None:
    courtesy = Courtesy(patience=0.01)
    began = time.monotonic()
    with courtesy.first():
        courtesy.let_pass()
        assert time.monotonic() - began >= 0.01
