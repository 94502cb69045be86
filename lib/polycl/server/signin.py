"""Signing in: `/auth/` and `/auth/token` for 3D Slicer, a page and a cookie for browsers.

3D Slicer asks `/auth/` whether it has to, sends name and password to `/auth/token`, and the token with each request.
OHIF never sends a token, so a browser gets a cookie that scripts cannot read, and that pages of other sites cannot make
it send with anything but a link.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from polycl.errors import PolyclError
from polycl.server.authority import Authority, Granted, Unauthorized
from polycl.server.connection import Identity, identity
from polycl.server.problems import to_http
from polycl.server.tokens import Tokens, Tries
from polycl.server.trail import note

COOKIE = "polycl"
PAGE = Path(__file__).with_name("login.html")
THREADS = 4
FORM = "application/x-www-form-urlencoded"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Credentials:
    """What somebody typed."""

    name: str
    password: str
    target: str

    @classmethod
    async def read(cls, request: Request) -> "Credentials":
        """HTTPException unless the body is a form with both."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            raise HTTPException(415, f"name and password must be sent as {FORM}")
        try:
            fields = dict(parse_qsl((await request.body()).decode(errors="replace"), max_num_fields=20))
        except ValueError:
            raise HTTPException(400, "the form has too many fields") from None
        name, password = fields.get("username", ""), fields.get("password", "")
        if not name or not password:
            raise HTTPException(400, "username and password are needed")
        return cls(name, password, own_page(fields.get("next", "")))


class SignIn:
    """Signs people in at an authority, and tells who they are afterwards."""

    def __init__(self, authority: Authority, seconds: float, client_id: str = "") -> None:
        self.authority, self.client_id = authority, client_id
        self._cookies = Tokens[str](seconds)
        self._tries = Tries()
        self._threads = CapacityLimiter(THREADS)

    async def who(self, request: Request) -> Identity | None:
        """Who sent a request, by its token, else by its cookie; None if that is nobody. HTTPException."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            token = self._cookies.get(request.cookies.get(COOKIE, "")) or ""
        elif scheme.lower() != "bearer":
            return None
        return await self._asked(lambda: self.authority.identify(token.strip())) if token else None

    async def about(self, request: Request) -> Response:
        """`GET /auth/`."""
        return JSONResponse({"enabled": True, "client_id": self.client_id, "realm": self.authority.realm})

    async def token(self, request: Request) -> Response:
        """`POST /auth/token`."""
        granted = await self._granted(request, await Credentials.read(request))
        body = {"access_token": granted.token, "token_type": "bearer", "expires_in": int(granted.seconds)}
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    async def valid(self, request: Request) -> Response:
        """`GET /auth/token/valid`, for those who are."""
        user = identity()
        assert user is not None  # the guard lets nobody else come here
        return JSONResponse({"username": user.name, "name": user.name, "roles": [str(user.role)]})

    async def login(self, request: Request) -> Response:
        """`GET` and `POST /login`."""
        if request.method != "POST":
            return _page(own_page(request.query_params.get("next", "")), await self.who(request))
        credentials = await Credentials.read(request)
        try:
            granted = await self._granted(request, credentials)
        except HTTPException as refusal:
            return _page(credentials.target, None, refusal.detail, refusal.status_code)
        response = RedirectResponse(credentials.target, 303)
        response.set_cookie(
            COOKIE,
            self._cookies.new(granted.token, granted.seconds),
            max_age=int(min(granted.seconds, self._cookies.seconds)),
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    async def logout(self, request: Request) -> Response:
        """`POST /logout`."""
        self._cookies.drop(request.cookies.get(COOKIE, ""))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")
        return response

    async def _granted(self, request: Request, given: Credentials) -> Granted:
        address = request.client.host if request.client else ""
        note(user=given.name)

        def sign_in() -> Granted:
            self._tries.check(given.name, address)
            try:
                granted = self.authority.sign_in(given.name, given.password)
            except Unauthorized:
                self._tries.failed(given.name, address)
                raise
            self._tries.succeeded(given.name, address)
            return granted

        return await self._asked(sign_in)

    async def _asked(self, ask: Callable[[], Result]) -> Result:
        """What a blocking call gives. HTTPException."""
        try:
            return await run_sync(ask, limiter=self._threads)
        except PolyclError as error:
            raise to_http(error) from error


def own_page(target: str) -> str:
    """`target` if it is a path of this server, else the viewer. Browsers take `//x` and `/\\x` for other servers."""
    parts = urlsplit(target)
    ours = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return target if ours and target.isprintable() and not target.startswith("/login") else "/ohif/"


def _page(target: str, user: Identity | None, problem: str = "", status: int = 200) -> Response:
    who = f"You are signed in as {user.name} ({user.role})." if user else ""
    values: dict[str, Any] = {"target": target, "problem": problem, "who": who}
    text = PAGE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", escape(str(value)))
    return HTMLResponse(text.replace("{{hidden}}", "" if user else "hidden"), status)
