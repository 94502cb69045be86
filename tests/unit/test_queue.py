"""The order in which requests work: fair, bounded, clicks first; for any sequence of comings and goings."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.errors import Cancelled, PolyclError
from polycl.monailabel.jobs import Job, check, working
from polycl.server.queue import STREAK, FairQueue, Full, Ticket

pytestmark = pytest.mark.unit


def run(scene: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: a browser that another test keeps open has an event loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, scene).result()


def works(tickets: list[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if ticket.started is not None]


def next_of(queue: FairQueue, tickets: list[Ticket], working_now: Ticket) -> Ticket:
    """The one ticket that starts when `working_now` ends."""
    before = works(tickets)
    queue.leave(working_now)
    (started,) = [ticket for ticket in works(tickets) if ticket not in before]
    return started


def order(queue: FairQueue, first: Ticket, tickets: list[Ticket]) -> list[Ticket]:
    """The order in which `tickets` work on one slot, after `first`."""
    done = [first]
    for _ in tickets:
        done.append(next_of(queue, tickets, done[-1]))
    return done[1:]


def test_clients_take_turns() -> None:
    queue = FairQueue(1, 100)
    first = queue.join("z")
    tickets = [queue.join(client) for client in "aaaaabbc"]
    assert "".join(ticket.client for ticket in order(queue, first, tickets)) == "abcabaaa"


def test_a_click_overtakes_volumes() -> None:
    queue = FairQueue(1, 100)
    first = queue.join("z")
    tickets = [queue.join("a"), queue.join("b"), queue.join("c", urgent=True)]
    assert [ticket.client for ticket in order(queue, first, tickets)] == ["c", "a", "b"]


def test_a_slot_is_kept_for_clicks() -> None:
    queue = FairQueue(2, 100, bulk=1)
    assert len(works([queue.join("a"), queue.join("b")])) == 1
    assert not queue.clicking()
    assert queue.join("c", urgent=True).started is not None
    assert queue.clicking()


def test_a_volume_is_not_kept_waiting_for_ever() -> None:
    queue = FairQueue(1, 200)
    first = queue.join("z")
    volume = queue.join("v")
    clicks = [queue.join(f"c{number}", urgent=True) for number in range(3 * STREAK)]
    assert order(queue, first, [volume, *clicks]).index(volume) <= STREAK


def test_who_comes_above_the_capacity_is_told_when_to_come_again() -> None:
    now = [0.0]
    queue = FairQueue(1, 4, clock=lambda: now[0])
    tickets = [queue.join(client) for client in "zabcd"]
    with pytest.raises(Full) as raised:
        queue.join("e")
    first = raised.value.retry_after
    assert first >= 1
    for ticket in tickets:
        now[0] += 1000.0
        queue.leave(ticket)
    tickets = [queue.join(client) for client in "zabcd"]
    with pytest.raises(Full) as raised:
        queue.join("e")
    assert raised.value.retry_after > first


def test_one_client_cannot_fill_the_queue() -> None:
    queue = FairQueue(1, 8)
    for _ in range(5):
        queue.join("a")
    with pytest.raises(Full, match="your requests"):
        queue.join("a")
    queue.join("b")


def test_who_leaves_frees_the_place() -> None:
    queue = FairQueue(1, 2)
    first, gone, last = queue.join("a"), queue.join("b"), queue.join("c")
    with pytest.raises(Full):
        queue.join("d")
    queue.drop(gone)
    assert isinstance(gone.refused, Cancelled)
    queue.leave(gone)
    queue.join("d")
    assert next_of(queue, [last], first) is last


def test_a_client_that_is_gone_holds_its_slot_until_the_work_ends() -> None:
    queue = FairQueue(1, 2)
    first, second = queue.join("a"), queue.join("b")
    queue.drop(first)
    assert (first.refused, second.started) == (None, None)
    queue.leave(first)
    assert second.started is not None


def test_a_closed_queue_tells_those_who_wait() -> None:
    async def scene() -> None:
        queue = FairQueue(1, 9)
        working_now = queue.join("a")
        waiting = asyncio.ensure_future(queue.turn(queue.join("b")))
        queue.close(PolyclError("going down"))
        with pytest.raises(PolyclError, match="going down"):
            await waiting
        with pytest.raises(PolyclError, match="going down"):
            queue.join("c")
        assert working_now.refused is None
        queue.leave(working_now)
        assert (queue.running, queue.waiting) == (0, 0)

    run(scene())


def test_who_is_cancelled_while_waiting_leaves() -> None:
    async def scene() -> None:
        queue = FairQueue(1, 9)

        async def work() -> None:
            async with queue.place("b"):
                pass

        async with queue.place("a"):
            waiting = asyncio.ensure_future(work())
            await asyncio.sleep(0)
            assert queue.waiting == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert (queue.running, queue.waiting) == (1, 0)
        assert queue.running == 0

    run(scene())


MOVES = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "drop"]), st.sampled_from("abcd"), st.booleans(), st.integers(0, 99)),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(MOVES, st.integers(1, 4), st.integers(1, 12), st.data())
def test_the_rules_hold_whatever_comes(
    moves: list[tuple[str, str, bool, int]], slots: int, capacity: int, data: st.DataObject
) -> None:
    bulk = data.draw(st.integers(1, slots))
    queue, inside = FairQueue(slots, capacity, bulk=bulk), list[Ticket]()
    for move, client, urgent, which in moves:
        if move == "join":
            try:
                inside.append(queue.join(client, urgent=urgent))
            except Full:
                waits = Counter(ticket.client for ticket in inside if ticket.started is None)
                assert waits.total() >= capacity or waits[client] >= max(1, capacity // 2)
        elif inside:
            ticket = inside.pop(which % len(inside))
            if move == "drop":
                queue.drop(ticket)
            queue.leave(ticket)
        started = works(inside)
        volumes = [ticket for ticket in started if not ticket.urgent]
        waiting = [ticket for ticket in inside if ticket.started is None]
        assert (queue.running, queue.waiting) == (len(started), len(waiting))
        assert len(started) <= slots
        assert len(volumes) <= bulk
        assert len(waiting) <= capacity
        free = len(started) < slots
        assert not (free and any(ticket.urgent for ticket in waiting))
        assert not (free and len(volumes) < bulk and waiting)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_nobody_waits_longer_than_a_round(clients: list[str]) -> None:
    queue = FairQueue(1, 1000)
    first = queue.join("z")
    tickets = [queue.join(client) for client in clients]
    served = order(queue, first, tickets)
    for client in set(clients):
        mine = [index for index, ticket in enumerate(served) if ticket.client == client]
        assert [served[index] for index in mine] == [ticket for ticket in tickets if ticket.client == client]
        assert all(later - earlier <= len(set(clients)) for earlier, later in zip([-1, *mine], mine, strict=False))


def test_a_job_ends_between_slices_once_nobody_waits() -> None:
    job = Job()
    check()
    with working(job):
        check()
        job.cancel()
        with pytest.raises(Cancelled):
            check()
    check()


def test_a_job_steps_back_while_someone_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def clicking() -> bool:
        asked.append(1)
        return len(asked) < 4

    with working(Job(clicking)):
        check()
    assert len(asked) == 4
    monkeypatch.setattr("polycl.monailabel.jobs.PATIENCE_S", 0.02)
    with working(Job(lambda: True)):
        check()
