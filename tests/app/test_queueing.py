"""Many clients of one server: clicks overtake, who leaves frees the place, too many are told when to come again."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.testclient import TestClient

from fake_sam import FakeSam
from polycl.errors import Cancelled
from polycl.monailabel.infer import Stopping
from polycl.segmenter import Segmenter
from polycl.server.lanes import VOLUMES, lanes
from polycl.settings import Settings
from polycl.volume import Volume

pytestmark = pytest.mark.app

WAITING = 4
PATIENCE_S = 20.0


@dataclass
class Slow:
    """A segmenter that works until it is told to end, slice by slice."""

    end: threading.Event = field(default_factory=threading.Event)
    working: int = 0
    finished: int = 0
    cancelled: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def segment(self, image: Volume, progress: Callable[[int, int], None]) -> Volume:
        with self.lock:
            self.working += 1
        try:
            while not self.end.wait(0.01):
                progress(0, 1)
            self.finished += 1
        except Cancelled:
            self.cancelled += 1
            raise
        finally:
            with self.lock:
                self.working -= 1
        return image.with_voxels(np.zeros(image.shape, np.uint8))


@dataclass
class Asked:
    """A request of a client that may hang up."""

    task: "asyncio.Task[None]"
    gone: asyncio.Event
    messages: list[dict[str, Any]]

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    def hang_up(self) -> None:
        self.gone.set()


class World:
    """Clients by address, inside the event loop of the server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def ask(
        self, method: str, url: str, address: str = "10.0.0.1", reads: asyncio.Event | None = None, **params: Any
    ) -> Asked:
        path, _, query = url.partition("?")
        body = urlencode({"params": json.dumps(params)}).encode() if params else b""
        headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/x-www-form-urlencoded")]
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode()}
        scope |= {"query_string": query.encode(), "headers": headers, "client": (address, 1), "scheme": "http"}
        scope |= {"root_path": "", "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"}}
        gone, messages, sent = asyncio.Event(), list[dict[str, Any]](), [False]

        async def receive() -> dict[str, Any]:
            if not sent[0]:
                sent[0] = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)
            if reads is not None:
                await reads.wait()

        return Asked(asyncio.create_task(self.app(scope, receive, send)), gone, messages)

    def volume(self, address: str = "10.0.0.1", reads: asyncio.Event | None = None) -> Asked:
        return self.ask("POST", "/infer/tiny?image=lps&output=json", address, reads)

    def click(self, address: str = "10.0.0.2") -> Asked:
        return self.ask("POST", "/infer/polycl-click?image=lps&output=json", address, foreground=[[18, 14, 3]])


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, sam: FakeSam) -> Settings:
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", queue=WAITING, embed_ahead=False)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow()
    monkeypatch.setattr(
        Segmenter, "segment", lambda self, image, labels=None, progress=None: made.segment(image, progress)
    )
    monkeypatch.setattr("polycl.monailabel.infer.Runtime.device_lock", lambda self, device: threading.Lock())
    yield made
    made.end.set()


def play(client: TestClient, slow: Slow, scene: Callable[[World], Awaitable[None]]) -> None:
    """Runs `scene` in the server's own event loop, and ends what still works afterwards."""

    async def whole() -> None:
        others = asyncio.all_tasks()
        try:
            await asyncio.wait_for(scene(World(client.app)), 3 * PATIENCE_S)
        finally:
            slow.end.set()
            left = asyncio.all_tasks() - others
            await asyncio.gather(*left - {asyncio.current_task()}, return_exceptions=True)  # type: ignore[operator]

    assert client.portal is not None
    client.portal.call(whole)


def test_a_click_overtakes_volumes(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        volumes = [world.volume(f"10.0.1.{number}") for number in range(VOLUMES + 2)]
        await until(lambda: slow.working == VOLUMES)
        click = world.click()
        await asyncio.wait_for(click.task, PATIENCE_S)
        assert click.status == 200
        assert not any(volume.task.done() for volume in volumes)
        assert slow.working == VOLUMES
        slow.end.set()
        await asyncio.gather(*(volume.task for volume in volumes))
        assert [volume.status for volume in volumes] == [200] * len(volumes)

    play(client, slow, scene)


def test_pages_answer_while_all_wait(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        for number in range(VOLUMES + 2):
            world.volume(f"10.0.1.{number}")
        await until(lambda: slow.working == VOLUMES)
        pages = [world.ask("GET", url) for url in ("/info/", "/healthz", "/readyz", "/ohif/", "/datastore/")]
        await asyncio.wait_for(asyncio.gather(*(page.task for page in pages)), PATIENCE_S)
        assert [page.status for page in pages] == [200] * len(pages)

    play(client, slow, scene)


def test_too_many_are_told_when_to_come_again(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        volumes = [world.volume(f"10.0.1.{number}") for number in range(VOLUMES + WAITING)]
        await until(lambda: slow.working == VOLUMES)
        late = world.volume("10.0.2.1")
        await asyncio.wait_for(late.task, PATIENCE_S)
        assert late.status == 503
        assert int(late.headers["retry-after"]) >= 1
        assert not any(volume.task.done() for volume in volumes)

    play(client, slow, scene)


def test_one_client_does_not_fill_the_queue(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        greedy = [world.volume() for _ in range(VOLUMES + WAITING)]
        await until(lambda: slow.working == VOLUMES)
        await until(lambda: sum(one.task.done() for one in greedy) == WAITING // 2)
        assert {one.status for one in greedy if one.task.done()} == {503}
        other = world.volume("10.0.0.9")
        await asyncio.sleep(0.1)
        assert not other.task.done()

    play(client, slow, scene)


def test_a_client_that_leaves_frees_its_place(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        volumes = [world.volume(f"10.0.1.{number}") for number in range(VOLUMES + WAITING)]
        await until(lambda: slow.working == VOLUMES)
        volumes[-1].hang_up()
        await asyncio.wait_for(volumes[-1].task, PATIENCE_S)
        next_one = world.volume("10.0.2.1")
        await asyncio.sleep(0.1)
        assert not next_one.task.done()
        slow.end.set()
        await asyncio.wait_for(next_one.task, PATIENCE_S)
        assert next_one.status == 200
        assert slow.finished == VOLUMES + WAITING

    play(client, slow, scene)


def test_work_stops_when_the_client_leaves(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        volumes = [world.volume(f"10.0.1.{number}") for number in range(VOLUMES + 1)]
        await until(lambda: slow.working == VOLUMES)
        waiting = volumes[-1]
        first = next(volume for volume in volumes if volume is not waiting)
        first.hang_up()
        await until(lambda: slow.cancelled == 1)
        await until(lambda: slow.working == VOLUMES)
        slow.end.set()
        await asyncio.wait_for(waiting.task, PATIENCE_S)
        assert waiting.status == 200

    play(client, slow, scene)


def test_a_client_that_reads_slowly_holds_no_place(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        slow.end.set()
        reads = asyncio.Event()
        asleep = [world.volume(f"10.0.1.{number}", reads) for number in range(VOLUMES)]
        await until(lambda: all(one.messages for one in asleep))
        other = world.volume("10.0.2.1")
        await asyncio.wait_for(other.task, PATIENCE_S)
        assert other.status == 200
        assert not any(one.task.done() for one in asleep)
        reads.set()
        await asyncio.gather(*(one.task for one in asleep))

    play(client, slow, scene)


def test_a_server_that_stops_tells_those_who_wait(client: TestClient, slow: Slow) -> None:
    async def scene(world: World) -> None:
        volumes = [world.volume(f"10.0.1.{number}") for number in range(VOLUMES + 1)]
        await until(lambda: slow.working == VOLUMES)
        lanes().close(Stopping("the server is shutting down"))
        try:
            await asyncio.wait_for(volumes[-1].task, PATIENCE_S)
            assert (volumes[-1].status, volumes[-1].headers["retry-after"]) == (503, "10")
            slow.end.set()
            await asyncio.gather(*(volume.task for volume in volumes))
            assert [volume.status for volume in volumes[:-1]] == [200] * VOLUMES
        finally:
            for queue in (*lanes().devices.values(), lanes().long, lanes().pages):
                queue._closed = None

    play(client, slow, scene)
