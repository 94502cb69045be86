"""A disk that is nearly full: what would stay is refused before its body is read, and all else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from replies import refused
from starlette.testclient import TestClient

from polycl import room
from polycl.errors import StorageError
from polycl.room import FULL, LARGE, Room
from polycl.server.guard import Guard, Rules
from polycl.settings import Settings

pytestmark = pytest.mark.app

MEGABYTE = 1 << 20


def free(monkeypatch: pytest.MonkeyPatch, **by_name: int) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda folder: by_name[folder.name])


def test_each_disk_keeps_its_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Room((Path("/state"), Path("/store")), reserve=100)
    free(monkeypatch, state=1000, store=200)
    disks.require()
    disks.require(50)
    with pytest.raises(StorageError, match="too large") as raised:
        disks.require(51)
    assert (str(raised.value), raised.value.hint) == (LARGE, "it is the disk of /store")
    free(monkeypatch, state=99, store=1000)
    with pytest.raises(StorageError) as raised:
        disks.require()
    assert str(raised.value) == FULL


def test_a_folder_that_is_not_there_yet_has_the_disk_above(tmp_path: Path) -> None:
    assert room.free_bytes(tmp_path / "a" / "b") > 0


@pytest.fixture
def read() -> list[int]:
    """Bytes of bodies that were read."""
    return []


@pytest.fixture
def guarded(read: list[int]) -> TestClient:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            read.append(len(message.get("body", b"")))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    return TestClient(Guard(app, Rules(room=Room((Path("/disk"),), MEGABYTE))))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/datastore/label?image=x"),
        ("PUT", "/datastore/image?image=x"),
        ("PUT", "/datastore/"),
        ("PUT", "/session/"),
        ("POST", "/train/polycl"),
        ("POST", "/batch/infer/tiny"),
        ("POST", "/polycl/api/training/start"),
    ],
)
def test_what_stays_is_refused_unread(
    guarded: TestClient, read: list[int], monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    free(monkeypatch, disk=MEGABYTE - 1)
    refused(guarded.request(method, path, content=b"data"), 507, "nearly full")
    assert read == []
    free(monkeypatch, disk=2 * MEGABYTE)
    assert guarded.request(method, path, content=b"data").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info/"),
        ("GET", "/datastore/label?label=x&tag=final"),
        ("GET", "/polycl/"),
        ("POST", "/infer/tiny?image=x"),
        ("POST", "/activelearning/first"),
        ("POST", "/polycl/api/models/rollback"),
        ("DELETE", "/datastore/image?id=x"),
        ("DELETE", "/session/x"),
        ("PUT", "/datastore/label/info?label=x&tag=final"),
    ],
)
def test_all_else_goes_on(guarded: TestClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str) -> None:
    free(monkeypatch, disk=0)
    assert guarded.request(method, path).status_code == 200


def test_a_large_file_is_refused_where_it_would_fill_the_disk(
    guarded: TestClient, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, disk=20 * MEGABYTE)
    refused(guarded.post("/infer/tiny", content=bytes(10 * MEGABYTE)), 507, "too large")
    refused(guarded.put("/datastore/label?image=x", content=bytes(10 * MEGABYTE)), 507, "too large")
    assert read == []
    assert guarded.put("/datastore/label?image=x", content=bytes(MEGABYTE)).status_code == 200


@pytest.fixture
def nearly_full(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 1)


def test_the_server_under_a_nearly_full_disk(client: TestClient, settings: Settings, nearly_full: None) -> None:
    refused(client.put("/datastore/image?image=new", files={"file": ("new.nii.gz", b"data")}), 507, "nearly full")
    assert client.post("/infer/tiny?image=lps").status_code == 200
    assert client.get("/datastore/image?image=lps").status_code == 200
    assert client.get("/polycl/api/queue").status_code == 200
    assert client.get("/metrics").status_code == 200
