"""The cache of embeddings: each computed once, bounded, filled ahead without standing in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from polycl.errors import InputError
from polycl.sam import Embedding, EmbeddingCache, EmbeddingKey
from polycl.window import Window

pytestmark = [pytest.mark.unit, pytest.mark.timeout(30)]

BYTES = 4 * 16
PATIENCE = 10.0


def key(index: int, *, weights: str = "w", level: float = 40) -> EmbeddingKey:
    return EmbeddingKey("image", index, Window(level=level, width=400), "mobile-sam", weights, 1024)


def embedding(value: float = 0) -> Embedding:
    return Embedding(np.full((1, 1, 4, 4), value, np.float32), (8, 6), (4, 3))


def never() -> Embedding:
    pytest.fail("computed though it was there")


@pytest.fixture
def cache() -> Iterator[EmbeddingCache]:
    made = EmbeddingCache(3 * BYTES)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "embeddings"


def test_a_key_is_computed_once_and_counted(cache: EmbeddingCache) -> None:
    first = cache.get(key(0), embedding)
    assert cache.get(key(0), never) is first
    assert key(0) in cache
    held = cache.statistics()
    assert (held["hits"], held["misses"], held["entries"], held["bytes"]) == (1, 1, 1, BYTES)


def test_every_part_of_the_key_counts() -> None:
    keys = [key(0), key(1), key(0, weights="other"), key(0, level=41)]
    assert len({one.name for one in keys}) == len(set(keys)) == 4
    assert key(0).name == key(0).name


def test_the_least_recently_used_goes_first(cache: EmbeddingCache) -> None:
    for index in range(3):
        cache.get(key(index), embedding)
    cache.get(key(0), never)
    cache.get(key(3), embedding)
    assert [key(index) in cache for index in range(4)] == [True, False, True, True]
    held = cache.statistics()
    assert (held["evictions"], held["bytes"]) == (1, 3 * BYTES)


def test_what_is_larger_than_the_memory_is_answered_and_not_kept() -> None:
    cache = EmbeddingCache(BYTES - 1)
    assert cache.get(key(0), embedding).nbytes == BYTES
    assert cache.statistics()["bytes"] == 0


def test_requests_at_the_same_time_compute_once(cache: EmbeddingCache) -> None:
    computing, go = threading.Event(), threading.Event()
    calls = []

    def slow() -> Embedding:
        calls.append(1)
        computing.set()
        assert go.wait(PATIENCE)
        return embedding()

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, key(0), slow)
        assert computing.wait(PATIENCE)
        others = [pool.submit(cache.get, key(0), never) for _ in range(6)]
        while cache.statistics()["shared"] < 6:
            threading.Event().wait(0.001)
        go.set()
        assert {id(one.result(PATIENCE)) for one in [first, *others]} == {id(first.result())}
    assert len(calls) == 1


def test_a_failure_reaches_all_who_wait_and_is_not_kept(cache: EmbeddingCache) -> None:
    computing, go = threading.Event(), threading.Event()

    def failing() -> Embedding:
        computing.set()
        assert go.wait(PATIENCE)
        raise InputError("no such slice")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, key(0), failing)
        assert computing.wait(PATIENCE)
        second = pool.submit(cache.get, key(0), never)
        while not cache.statistics()["shared"]:
            threading.Event().wait(0.001)
        go.set()
        for one in (first, second):
            with pytest.raises(InputError, match="no such slice"):
                one.result(PATIENCE)
    assert cache.get(key(0), embedding).nbytes == BYTES


def test_ahead_of_requests_in_the_order_asked(cache: EmbeddingCache) -> None:
    seen: list[int] = []

    def compute(one: EmbeddingKey) -> Embedding:
        seen.append(one.index)
        return embedding()

    cache.get(key(1), embedding)
    assert cache.prefetch([key(2), key(1), key(0)], compute).wait(PATIENCE)
    assert seen == [2, 0]
    cache.get(key(0), never)
    assert cache.statistics()["prefetched"] == 2
    assert cache.prefetch([key(0)], compute).wait(PATIENCE)  # the thread ended; another takes its place


def test_nothing_starts_while_a_request_is_served_and_urgent_goes_first(cache: EmbeddingCache) -> None:
    seen: list[int] = []

    def compute(one: EmbeddingKey) -> Embedding:
        seen.append(one.index)
        return embedding()

    with cache.serving():
        study = cache.prefetch([key(0)], compute)
        around = cache.prefetch([key(1)], compute, urgent=True)
        assert not study.wait(0.05)
        assert seen == []
    assert study.wait(PATIENCE)
    assert around.wait(PATIENCE)
    assert seen == [1, 0]


def test_a_request_goes_between_two_slices_and_shares_the_one_under_way(cache: EmbeddingCache) -> None:
    under_way, go, answering, answered = (threading.Event() for _ in range(4))
    order: list[str] = []

    def compute(one: EmbeddingKey) -> Embedding:
        under_way.set()
        assert go.wait(PATIENCE)
        order.append(f"ahead {one.index}")
        return embedding(one.index)

    def request() -> Embedding:
        with cache.serving():
            answering.set()
            found = cache.get(key(0), never)
            order.append("answer")
            answered.set()
            return found

    job = cache.prefetch([key(0), key(1)], compute)
    assert under_way.wait(PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(request)
        assert answering.wait(PATIENCE)
        go.set()
        assert reply.result(PATIENCE).features[0, 0, 0, 0] == 0
    assert job.wait(PATIENCE)
    assert order == ["ahead 0", "answer", "ahead 1"]


def test_cancelled_after_the_slice_under_way(cache: EmbeddingCache) -> None:
    under_way, go = threading.Event(), threading.Event()

    def compute(one: EmbeddingKey) -> Embedding:
        under_way.set()
        assert go.wait(PATIENCE)
        return embedding()

    job = cache.prefetch([key(0), key(1)], compute)
    assert under_way.wait(PATIENCE)
    job.cancel()
    go.set()
    assert job.wait(PATIENCE)
    assert (key(0) in cache, key(1) in cache) == (True, False)


def test_it_stops_before_it_pushes_out_its_own(cache: EmbeddingCache) -> None:
    assert cache.prefetch([key(index) for index in range(9)], lambda one: embedding()).wait(PATIENCE)
    assert cache.statistics()["prefetched"] == 3
    assert key(0) in cache


def test_a_failure_ahead_ends_that_job_alone(cache: EmbeddingCache, caplog: pytest.LogCaptureFixture) -> None:
    def failing(one: EmbeddingKey) -> Embedding:
        raise ValueError("a patient's name")

    with cache.serving():
        broken = cache.prefetch([key(0), key(1)], failing)
        well = cache.prefetch([key(2)], lambda one: embedding())
    assert broken.wait(PATIENCE)
    assert well.wait(PATIENCE)
    assert key(2) in cache
    assert "ValueError" in caplog.text
    assert "patient" not in caplog.text


def on_disk(folder: Path, *, capacity: int = 10**6, compute: Callable[[], Embedding] = embedding, n: int = 1) -> None:
    cache = EmbeddingCache(10 * BYTES, folder, disk_capacity=capacity)
    for index in range(n):
        cache.get(key(index), compute)
    cache.close()


def test_the_disk_keeps_them_for_the_next_start(folder: Path) -> None:
    on_disk(folder, compute=lambda: embedding(5))
    cache = EmbeddingCache(10 * BYTES, folder)
    found = cache.get(key(0), never)
    assert (found.features == 5).all()
    assert (found.original, found.resized) == ((8, 6), (4, 3))
    assert cache.statistics()["disk_hits"] == 1
    assert all(len(file.stem) == 64 for file in folder.iterdir())
    cache.close()


def test_requests_are_answered_while_the_server_stops(folder: Path) -> None:
    cache = EmbeddingCache(10 * BYTES, folder)
    cache.close()
    assert cache.get(key(0), embedding).nbytes == BYTES


def test_the_disk_is_bounded(folder: Path) -> None:
    on_disk(folder)
    size = next(folder.iterdir()).stat().st_size
    on_disk(folder, capacity=3 * size, n=8)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_computed_again(folder: Path, damage: bytes | None) -> None:
    on_disk(folder)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    cache = EmbeddingCache(10 * BYTES, folder)
    assert (cache.get(key(0), lambda: embedding(2)).features == 2).all()
    cache.close()
    assert (EmbeddingCache(BYTES, folder).get(key(0), never).features == 2).all()


def test_a_disk_that_cannot_be_written_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    on_disk(file, n=3)
    assert caplog.text.count("not kept on disk") == 1


def test_a_slice_that_takes_long_does_not_hold_up_who_closes(folder: Path) -> None:
    cache, begun, go = EmbeddingCache(3 * BYTES, folder), threading.Event(), threading.Event()

    def slow(_: EmbeddingKey) -> Embedding:
        begun.set()
        assert go.wait(PATIENCE)
        return embedding()

    job = cache.prefetch([key(0), key(1)], slow)
    assert begun.wait(PATIENCE)
    assert not cache.close(0.01)
    go.set()
    assert cache.close(PATIENCE)
    assert job.stored == BYTES
    assert key(1) not in cache
