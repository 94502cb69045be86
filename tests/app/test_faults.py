"""Bad moments that have no page of their own: a client that stops to send, and a clock that jumps.

A disk that is full is in `test_saving.py`, `test_local_store.py` and `test_room.py`, a PACS that is gone in
`test_pacs.py` and `test_outbox.py`, processes that are killed in `test_learning_kills.py`, `test_saving_kills.py` and
`test_server_kills.py`, a client that stops to read in `test_queueing.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from polycl.monailabel.sessions import OwnedSessions
from polycl.server import guard
from polycl.server.guard import Guard, Rules
from polycl.server.tokens import Tokens

pytestmark = pytest.mark.app

Receive = Callable[[], Awaitable[dict[str, Any]]]


async def body_read(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body, and then waits for the client to go."""
    body = await Request(scope, receive).body()
    gone = await receive()
    await PlainTextResponse(f"{len(body)} {gone['type']}")(scope, receive, send)


def asked(receive: Receive) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/datastore/label", "headers": [(b"host", b"x")]}
    asyncio.run(Guard(body_read, Rules())({**scope, "query_string": b"", "client": ("10.0.0.1", 1)}, receive, send))
    return sent


def pieces(*messages: dict[str, Any]) -> Receive:
    """Those messages, and then nothing for ever."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def test_a_client_that_stops_to_send_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE_S", 0.01)
    with pytest.raises(Exception, match="nothing more of the request") as raised:
        asked(pieces({"type": "http.request", "body": b"ab", "more_body": True}))
    assert getattr(raised.value, "status_code", None) == 408


def test_a_client_that_waits_for_its_answer_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, gone = {"type": "http.request", "body": b"ab", "more_body": False}, {"type": "http.disconnect"}
    left = [whole, gone]

    async def receive() -> dict[str, Any]:
        if left[0] is gone:
            monkeypatch.setattr(guard, "PATIENCE_S", 0.0)
            await asyncio.sleep(0.01)
        return left.pop(0)

    assert asked(receive)[-1]["body"] == b"2 http.disconnect"


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_a_clock_that_jumps_keeps_no_session_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    (tmp_path / "image.nii.gz").write_bytes(b"data")
    sessions = OwnedSessions(tmp_path / "sessions", 60, 1000)
    sessions.add_session(str(tmp_path / "image.nii.gz"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)
    assert sessions.remove_expired() == 1


def test_a_clock_that_jumps_signs_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens[str](60)
    token = tokens.new("ann")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10**9)
    assert tokens.get(token) == "ann"
