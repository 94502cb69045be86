"""Images that clients sent for their own use: whose they are, how long they stay, how much they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polycl.accounts import Role
from polycl.monailabel.sessions import NoRoom, OwnedSessions
from polycl.server.connection import Connection, Identity, current

pytestmark = pytest.mark.app

KILOBYTE = 1024


async def nothing() -> Any:
    raise AssertionError


@contextmanager
def signed_in(name: str) -> Iterator[None]:
    token = current.set(Connection("id", "127.0.0.1", nothing, Identity(name, Role.READER)))
    try:
        yield
    finally:
        current.reset(token)


def image(folder: Path, size: int = KILOBYTE) -> str:
    path = folder / "image.nii.gz"
    path.write_bytes(bytes(size))
    return str(path)


@pytest.fixture
def sessions(tmp_path: Path) -> OwnedSessions:
    return OwnedSessions(tmp_path / "sessions", 10, 10 * KILOBYTE)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)


def test_a_session_is_there_for_who_made_it_alone(sessions: OwnedSessions, tmp_path: Path) -> None:
    with signed_in("ann"):
        made, info = sessions.add_session(image(tmp_path))
        assert sessions.get_session(made).image == info.image
    with signed_in("bob"):
        assert sessions.get_session(made) is None
        assert OwnedSessions(tmp_path / "sessions", 10, KILOBYTE).get_session(made) is None, "nor after a restart"
    assert sessions.get_session(made) is not None, "nobody has to sign in"
    assert Path(info.image).is_file()


def test_one_that_nobody_made_is_nobodys(sessions: OwnedSessions, tmp_path: Path) -> None:
    made, _ = sessions.add_session(image(tmp_path))
    with signed_in("ann"):
        assert sessions.get_session(made) is None


def test_ids_are_random(sessions: OwnedSessions, tmp_path: Path) -> None:
    made = {sessions.add_session(image(tmp_path))[0] for _ in range(5)}
    assert len({name[:8] for name in made}) == 5
    assert all(len(name) == 32 for name in made)


def test_it_expires_after_its_last_use(
    sessions: OwnedSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, left = (sessions.add_session(image(tmp_path))[0] for _ in range(2))
    later(monkeypatch, 400)
    assert sessions.get_session(used) is not None
    later(monkeypatch, 300)
    assert sessions.get_session(left) is None
    assert sessions.remove_expired() == 1
    assert [folder.name for folder in (tmp_path / "sessions").iterdir()] == [used]


def test_one_that_is_deleted_meanwhile_does_not_stop_the_clean_up(
    sessions: OwnedSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.add_session(image(tmp_path))
    there = [*(tmp_path / "sessions").iterdir()]
    monkeypatch.setattr(sessions, "_sessions", lambda: [tmp_path / "sessions" / "gone", *there])
    later(monkeypatch, 3601)
    assert sessions.remove_expired() == 1
    assert list((tmp_path / "sessions").iterdir()) == []


def test_what_is_no_session_does_not_stop_the_clean_up(
    sessions: OwnedSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = sessions.add_session(image(tmp_path))
    for name, text in {"a": None, "b": "{", "c": "[1]"}.items():
        (tmp_path / "sessions" / name).mkdir()
        if text is not None:
            (tmp_path / "sessions" / name / "meta.info").write_text(text)
    assert sessions.remove_expired() == 0, "one may just be written"
    later(monkeypatch, 3601)
    assert sessions.remove_expired() == 4
    assert list((tmp_path / "sessions").iterdir()) == []
    assert sessions.get_session(made) is None


def test_one_person_takes_half_of_the_room(sessions: OwnedSessions, tmp_path: Path) -> None:
    with signed_in("ann"):
        sessions.require_room(5 * KILOBYTE)
        sessions.add_session(image(tmp_path, 4 * KILOBYTE))
        with pytest.raises(NoRoom, match="your images on this server"):
            sessions.require_room(KILOBYTE)
    with signed_in("bob"):
        sessions.require_room(4 * KILOBYTE)
        sessions.add_session(image(tmp_path, 4 * KILOBYTE))
    with signed_in("cid"), pytest.raises(NoRoom, match="wait until some expire"):
        sessions.require_room(4 * KILOBYTE)


def test_what_has_expired_makes_room(sessions: OwnedSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.add_session(image(tmp_path, 9 * KILOBYTE))
    with pytest.raises(NoRoom):
        sessions.require_room(2 * KILOBYTE)
    later(monkeypatch, 601)
    sessions.require_room(2 * KILOBYTE)
