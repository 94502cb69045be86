"""The request under way: who sent it, and how to learn that the client is gone. Endpoints never see this themselves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive

from polycl.accounts import Role


@dataclass(frozen=True)
class Identity:
    """Who signed in."""

    name: str
    role: Role


@dataclass(frozen=True)
class Connection:
    """One request. `address`: the client's; `identity`: None where nobody has to sign in; `noted`: for the trail."""

    request_id: str
    address: str
    receive: Receive
    identity: Identity | None = None
    noted: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def client(self) -> str:
        """Who takes turns with others: the user, or the address."""
        return self.identity.name if self.identity else self.address

    @asynccontextmanager
    async def watched(self, gone: Callable[[], None]) -> AsyncIterator[None]:
        """Calls `gone` if the client goes away meanwhile. The body must have been read."""
        watcher = asyncio.ensure_future(self._watch(gone))
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, gone: Callable[[], None]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        gone()


def new_request_id() -> str:
    """An id for the log and the answer."""
    return uuid.uuid4().hex[:12]


current: ContextVar[Connection | None] = ContextVar("polycl_connection", default=None)
"""None in MONAI Label's own server."""


def identity() -> Identity | None:
    """Who sent the request under way; None where nobody has to sign in."""
    connection = current.get()
    return connection.identity if connection else None
