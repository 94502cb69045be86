"""Puts the guard before MONAI Label's application, and answers what is ours: signing in, health."""

from pathlib import Path
from typing import cast

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from polycl.audit import Audit
from polycl.errors import InputError
from polycl.room import Room
from polycl.server.authority import authority_of
from polycl.server.exposure import known_hosts
from polycl.server.guard import Guard, Rules
from polycl.server.origins import allowed_origins, restrict_origins
from polycl.server.signin import SignIn
from polycl.settings import Settings, why_unwritable


def protect_site(app: FastAPI, settings: Settings, host: str, port: int) -> None:
    """Put the guard around `app`, in place of an earlier one. InputError for settings that cannot be used."""
    refuse_their_login()
    authority = authority_of(settings)
    sign_in = SignIn(authority, settings.sign_in_hours * 3600, settings.oidc_client) if authority else None
    rules = Rules(
        allowed_origins(host, port),
        None if sign_in else known_hosts(host, settings),
        sign_in,
        int(settings.max_upload),
        Audit(settings.audit),
        _room(settings),
    )
    app.middleware_stack = None  # built anew at the next request
    app.user_middleware = [one for one in app.user_middleware if cast(object, one.cls) not in (Guard, Ours)]
    app.add_middleware(Ours, sign_in=sign_in)
    app.add_middleware(Guard, rules=rules)
    restrict_origins(app, host, port)  # outermost: a browser asks before it sends a token or cookie


def _room(settings: Settings) -> Room:
    """Of the state folder, and of a folder of studies elsewhere."""
    from monailabel.config import settings as server_settings

    studies = server_settings.MONAI_LABEL_STUDIES
    local = () if studies.startswith(("http://", "https://")) or not studies else (Path(studies),)
    return Room((settings.state, *local), int(settings.disk_reserve))


def refuse_their_login() -> None:
    """InputError if MONAI Label's own login is switched on: it would refuse every token, by a mistake of its own."""
    from monailabel.config import settings

    if settings.MONAI_LABEL_AUTH_ENABLE:
        raise InputError("MONAI_LABEL_AUTH_ENABLE accepts no token; use `polycl users add`, or POLYCL_OIDC_ISSUER")


class Ours:
    """ASGI middleware: answers our own paths, and lets the rest pass."""

    def __init__(self, app: ASGIApp, sign_in: SignIn | None) -> None:
        self.app = app
        routes = [Route("/healthz", _health), Route("/readyz", _ready), Route("/metrics", _metrics)]
        if sign_in is None:
            routes.append(Route("/auth/", _nobody_signs_in))
        else:
            routes += [
                Route("/auth/", sign_in.about),
                Route("/auth/token", sign_in.token, methods=["POST"]),
                Route("/auth/token/valid", sign_in.valid),
                Route("/login", sign_in.login, methods=["GET", "POST"]),
                Route("/logout", sign_in.logout, methods=["POST"]),
            ]
        router = Router(routes, redirect_slashes=False, default=app)
        self._ours = ExceptionMiddleware(router, handlers={HTTPException: _refused})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let it pass."""
        await (self._ours if scope["type"] == "http" else self.app)(scope, receive, send)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HTTPException)
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


async def _nobody_signs_in(request: Request) -> Response:
    return JSONResponse({"enabled": False, "client_id": "", "realm": ""})


async def _health(request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


async def _metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    from polycl.server.metrics import metrics

    return await metrics(request)


async def _ready(request: Request) -> Response:
    """Whether requests for work are taken: not while the server goes down, nor where it cannot write."""
    from monailabel.interfaces.utils.app import app_instance

    runtime = app_instance().runtime
    reason = "the server is shutting down" if runtime.stopping.is_set() else None
    if reason is None and (why := await run_sync(why_unwritable, runtime.settings.state)) is not None:
        reason = f"the state folder cannot be written: {why}"
    return JSONResponse({"ready": not reason} | ({"reason": reason} if reason else {}), 503 if reason else 200)
