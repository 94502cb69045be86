"""What every request passes before MONAI Label sees it: host, origin, sign-in, role, size, room on the disk.

Around it all, the headers.

Where nobody has to sign in, the server is for those at its own machine: a browser must know it by a name of this
machine, and everybody may do what an admin may.
"""

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polycl import telemetry
from polycl.audit import Audit
from polycl.errors import StorageError
from polycl.room import Room
from polycl.server import trail
from polycl.server.connection import Connection, Identity, current, new_request_id
from polycl.server.exposure import is_loopback
from polycl.server.hardening import harden
from polycl.server.origins import SAFE, host_name, is_foreign
from polycl.server.roles import Route, route_of
from polycl.server.signin import COOKIE, SignIn

logger = logging.getLogger(__name__)

MAX_BODY = 8 << 20
"""Bytes of a body that is no upload."""
PATIENCE_S = 60.0
"""How long the next piece of a body may take."""
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Rules:
    """Who is let in. `hosts`: names that browsers may know the server by; any if None. `sign_in`: None for nobody.

    `room`: on the disks that what is sent goes to.
    """

    origins: list[str] = field(default_factory=list)
    hosts: frozenset[str] | None = None
    sign_in: SignIn | None = None
    max_upload: int = 4 << 30
    audit: Audit | None = None
    room: Room | None = None


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let it pass."""
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        named = headers.get("x-request-id", "")
        request_id = named if REQUEST_ID.fullmatch(named) else new_request_id()
        path, status = scope["path"], 0

        async def hardened(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = request_id
                harden(path, added, self.rules.origins)
            await send(message)

        try:
            route = route_of(scope["method"], path)
            limit = self.rules.max_upload if route and route.uploads else MAX_BODY
            identity = await self._admitted(Request(scope), route)
            given = headers.get("content-length", "")
            length = int(given) if given.isdecimal() and scope["method"] not in SAFE else 0
            _check_size(length, limit)
            await self._check_room(route, length)
        except HTTPException as refusal:
            await _answer(Request(scope), refusal)(scope, receive, hardened)
            telemetry.request_took(scope["method"], route.path if route else None, refusal.status_code, 0.0)
            return
        connection = Connection(request_id, (scope.get("client") or ("", 0))[0], receive, identity)
        token, started = current.set(connection), time.monotonic()
        try:
            await self.app(scope, _limited(receive, limit), hardened)
        finally:
            seconds = time.monotonic() - started
            _note(scope["method"], route, status, identity, seconds)
            telemetry.request_took(scope["method"], route.path if route else None, status, seconds)
            current.reset(token)
            if self.rules.audit is not None:
                await trail.tell(self.rules.audit, scope, connection, status)

    async def _check_room(self, route: Route | None, length: int) -> None:
        """HTTPException for what would stay here, or is large, where a disk is nearly full; before its body is read."""
        if self.rules.room is None or route is None or not (route.writes or length > MAX_BODY):
            return
        try:
            await run_sync(self.rules.room.require, length)
        except StorageError as error:
            logger.error("%s", error.in_full())
            raise HTTPException(error.status, str(error)) from None

    async def _admitted(self, request: Request, route: Route | None) -> Identity | None:
        """Who asks. HTTPException for a request that is refused."""
        headers, rules = request.headers, self.rules
        if rules.hosts is not None and host_name(headers) not in rules.hosts:
            raise HTTPException(421, "this server is not known by that name; POLYCL_HOSTS gives it more")
        if route is not None and route.access == "closed":
            raise HTTPException(404, "there is no such thing here")
        identity = await rules.sign_in.who(request) if rules.sign_in else None
        by_cookie = rules.sign_in is not None and "authorization" not in headers and COOKIE in request.cookies
        if is_foreign(request.method, headers, rules.origins, signed_in_by_cookie=by_cookie):
            raise HTTPException(403, "a page of another site asked for this")
        if rules.sign_in is None or (route is not None and route.access == "open"):
            return identity
        if route is not None and route.access == "local" and _is_local(request):
            return identity
        if identity is None:
            raise HTTPException(401, "sign in first", {"WWW-Authenticate": "Bearer"})
        if route is None:
            raise HTTPException(404, "there is no such thing here")
        if isinstance(route.access, int) and identity.role < route.access:
            raise HTTPException(403, f"this needs the role {route.access}; you have {identity.role}")
        return identity


def _is_local(request: Request) -> bool:
    """Whether a program on this machine asks, for itself: a proxy here says for whom it does."""
    address = request.client.host if request.client else ""
    return is_loopback(address) and not any(name in request.headers for name in FORWARDED)


def _answer(request: Request, refusal: HTTPException) -> Response:
    """To a person in front of a browser who has to sign in first, the page for that."""
    if refusal.status_code == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/login?next={quote(request.url.path + query, safe='')}", 303)
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


def _note(method: str, route: Route | None, status: int, identity: Identity | None, seconds: float) -> None:
    """A request in the log: its route, never its path or query, which name studies. What only reads is left out."""
    if method in SAFE and status < 500:
        return
    where, who = route.path if route else "?", identity.name if identity else "-"
    values = {"method": method, "route": where, "status": status, "user": who, "ms": round(seconds * 1000)}
    logger.info("%s %s by %s: %d in %d ms", method, where, who, status, values["ms"], extra={"values": values})


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"the request is larger than {limit} bytes, which are allowed here")


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that refuses a body which grows above the limit, whatever its headers say, or stops to come."""
    size, whole = 0, False

    async def counted() -> Message:
        nonlocal size, whole
        if whole:  # what comes now is that the client goes away
            return await receive()
        try:
            async with asyncio.timeout(PATIENCE_S):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing more of the request came for {PATIENCE_S:g} s") from None
        whole = not message.get("more_body", False)
        size += len(message.get("body", b""))
        _check_size(size, limit)
        return message

    return counted
