"""Who works next: a bounded queue, fair between clients, in which clicks overtake whole volumes.

Concurrency rules:

1. A queue belongs to the event loop of its server, and is touched by nothing else: there are no locks.
2. At most `slots` requests work at once, each in a thread of its own, and at most `bulk` of them on whole volumes. With
   fewer of these than slots a click never waits for a volume to end.
3. What waits goes in this order: clicks before volumes; but after `STREAK` clicks in a row, while a volume waits that
   could start, that volume, so that many readers who click do not keep it waiting for ever.
4. Within clicks, and within volumes, clients take turns; of each client, what came first goes first.
5. At most `capacity` wait, and at most half of that from one client. What comes above is `Full`: 503 with Retry-After.
6. Who leaves while waiting frees the place at once. A slot is free when its work ended, not when the client is gone.
7. A closed queue admits nobody, and those who wait are told; what works goes on.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anyio import CapacityLimiter, Event

from polycl.errors import Cancelled, PolyclError

STREAK = 8
FIRST_GUESS_S = 2.0
"""How long a request takes, before any has ended."""
MAX_RETRY_S = 120


class Full(PolyclError):
    """Too many wait already; `retry_after` seconds from now there may be room."""

    status = 503

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False)
class Ticket:
    """A request's place in a queue."""

    client: str
    urgent: bool
    turn: Event = field(default_factory=Event)
    started: float | None = None
    refused: PolyclError | None = None


class Turns:
    """Tickets of several clients, who take turns."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def of(self, client: str) -> int:
        """How many tickets of `client` wait."""
        return len(self._waiting.get(client, ()))

    def add(self, ticket: Ticket) -> None:
        """`ticket` waits behind others of its client."""
        self._waiting.setdefault(ticket.client, deque()).append(ticket)

    def take(self) -> Ticket:
        """The next ticket, which waits no more; its client is last from now on. KeyError if nothing waits."""
        client, tickets = self._waiting.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._waiting[client] = tickets
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """`ticket` waits no more, if it did."""
        tickets = self._waiting.get(ticket.client)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            if not tickets:
                del self._waiting[ticket.client]


class FairQueue:
    """See the rules of the module. `threads` is the limiter for those who have their turn."""

    def __init__(
        self, slots: int, capacity: int, *, bulk: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots, self.capacity = slots, capacity
        self.bulk = slots if bulk is None else bulk
        self.threads = CapacityLimiter(slots)
        self._clock = clock
        self._waiting = {True: Turns(), False: Turns()}
        self._running = {True: 0, False: 0}
        self._streak = 0
        self._seconds = FIRST_GUESS_S
        self._closed: PolyclError | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """How many work."""
        return sum(self._running.values())

    def clicking(self) -> bool:
        """Whether a click works now. May be asked by any thread."""
        return self._running[True] > 0

    @asynccontextmanager
    async def place(self, client: str, *, urgent: bool = False) -> AsyncIterator[Ticket]:
        """Holds a slot inside. Raises Full, or what the ticket was refused with, instead of entering."""
        ticket = self.join(client, urgent=urgent)
        try:
            await self.turn(ticket)
            yield ticket
        finally:
            self.leave(ticket)

    def join(self, client: str, *, urgent: bool = False) -> Ticket:
        """Stand in line. Full if too many do already. Whoever joins must leave."""
        if self._closed is not None:
            raise self._closed
        ticket = Ticket(client, urgent)
        idle = not self.waiting and self._may_start(urgent)
        if not idle and self.waiting >= self.capacity:
            raise Full(f"the server is busy: {self.waiting} requests wait already", self.retry_after())
        if not idle and self._share(client) >= max(1, self.capacity // 2):
            raise Full(f"{self._share(client)} of your requests wait already", self.retry_after())
        self._waiting[urgent].add(ticket)
        self._admit()
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Wait for the ticket's turn. Raises what it was refused with meanwhile."""
        await ticket.turn.wait()
        if ticket.refused is not None:
            raise ticket.refused

    def drop(self, ticket: Ticket) -> None:
        """The client is gone: a ticket that waits is refused with Cancelled; one that works goes on."""
        if ticket.started is None:
            self._refuse(ticket, Cancelled("the client is gone"))

    def leave(self, ticket: Ticket) -> None:
        """The work has ended, or will not begin."""
        if ticket.started is None:
            self._waiting[ticket.urgent].remove(ticket)
        else:
            self._running[ticket.urgent] -= 1
            self._seconds += 0.2 * (self._clock() - ticket.started - self._seconds)
            ticket.started = None
        self._admit()

    def close(self, reason: PolyclError) -> None:
        """Refuse with `reason` whoever waits or comes."""
        self._closed = reason
        for turns in self._waiting.values():
            while len(turns):
                self._refuse(turns.take(), reason)

    def retry_after(self) -> int:
        """Whole seconds in which those who wait may have had their turn, by how long requests took of late."""
        return min(MAX_RETRY_S, max(1, math.ceil(self._seconds * (self.waiting + 1) / self.slots)))

    def _share(self, client: str) -> int:
        return sum(turns.of(client) for turns in self._waiting.values())

    def _may_start(self, urgent: bool) -> bool:
        return self.running < self.slots and (urgent or self._running[False] < self.bulk)

    def _admit(self) -> None:
        while (urgent := self._next()) is not None:
            ticket = self._waiting[urgent].take()
            self._streak = self._streak + 1 if urgent and self._waiting[False] else 0
            self._running[urgent] += 1
            ticket.started = self._clock()
            ticket.turn.set()

    def _next(self) -> bool | None:
        """Whether a click or a volume starts now; None if nothing may."""
        volume = bool(self._waiting[False]) and self._may_start(False)
        if self._waiting[True] and self._may_start(True) and not (volume and self._streak >= STREAK):
            return True
        return False if volume else None

    def _refuse(self, ticket: Ticket, reason: PolyclError) -> None:
        self._waiting[ticket.urgent].remove(ticket)
        ticket.refused = reason
        ticket.turn.set()
