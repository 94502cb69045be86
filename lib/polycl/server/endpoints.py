"""MONAI Label's endpoints, moved off the event loop.

Each is an `async def` over blocking code, so one inference would stop the whole server. `protect` replaces it by one
that checks its arguments, runs the original in a worker thread, and answers failures with a reason. What FastAPI does
before (authorisation, parsing) and after (sending, background tasks) stays as it is.

Who works when is decided in `polycl.server.lanes` and `polycl.server.queue`. A client that goes away frees its place,
and a task that takes long ends at its next slice. MONAI Label's own data is safe under threads because the store
(`polycl.monailabel.store`) and the models (`polycl.monailabel.infer`) take one call at a time where they must.
"""

import asyncio
import functools
import importlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from typing import Any

from anyio.to_thread import run_sync
from fastapi import BackgroundTasks, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.endpoints.user.auth import User

from polycl.monailabel.headers import noting
from polycl.monailabel.jobs import Job, working
from polycl.server import proxy
from polycl.server.checks import check_arguments, said
from polycl.server.connection import current, identity
from polycl.server.labels import save_label
from polycl.server.lanes import lane_of
from polycl.server.problems import to_http
from polycl.server.segs import reply_as_seg
from polycl.server.trail import note
from polycl.server.viewer import viewer_file
from polycl.telemetry import Kind, waited

Endpoint = Callable[..., Awaitable[Any]]

MODULES = (
    "activelearning",
    "batch_infer",
    "datastore",
    "infer",
    "info",
    "login",
    "logs",
    "model",
    "ohif",
    "proxy",
    "scoring",
    "session",
    "train",
    "wsi_infer",
)
FRAMES = re.compile(r"series/([0-9.]+)/instances/[0-9.]+/frames")
OURS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "api_save_label": save_label,
    "api_get_ohif": viewer_file,
    **proxy.ENDPOINTS,
}
"""Endpoints whose work is done here instead."""
_MARK = "_polycl_protected"


def protect() -> None:
    """Protect every endpoint of MONAI Label, once; before its first request."""
    for route in _routes():
        if not hasattr(route.endpoint, _MARK):
            route.endpoint = in_thread(route.endpoint)
            route.dependant.call = route.endpoint


def _routes() -> Iterator[APIRoute]:
    for name in MODULES:
        router = importlib.import_module(f"monailabel.endpoints.{name}").router
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def in_thread(endpoint: Endpoint) -> Endpoint:
    """`endpoint` with the same signature, that checks its arguments and runs off the event loop."""
    name = endpoint.__name__

    @functools.wraps(endpoint)
    async def protected(**arguments: Any) -> Any:
        request = arguments.get("request")
        if isinstance(request, Request):
            await request.body()  # kept by the request: the thread's own event loop could not receive it
        try:
            return await _in_turn(endpoint, name, arguments)
        except Exception as error:
            if isinstance(tasks := arguments.get("background_tasks"), BackgroundTasks):
                await tasks()  # they delete what was sent; FastAPI drops them with the request
            answer = to_http(error)
            raise answer from (None if answer is error else error)

    setattr(protected, _MARK, True)
    return protected


async def _in_turn(endpoint: Endpoint, name: str, arguments: dict[str, Any]) -> Any:
    """What the endpoint gives, when its turn has come. Full if too many wait, Cancelled if the client is gone."""
    connection = current.get()
    queue, urgent = lane_of(name, arguments)
    job = Job(lambda: not urgent and queue.clicking())
    ticket = queue.join(connection.client if connection else "", urgent=urgent)

    def gone() -> None:
        job.cancel()
        queue.drop(ticket)

    try:
        async with connection.watched(gone) if connection else nullcontext():
            joined = time.monotonic()
            try:
                await queue.turn(ticket)
            finally:
                kind: Kind = "click" if urgent else "volume" if "infer" in name else "other"
                waited(kind, time.monotonic() - joined)
            with working(job):
                return await run_sync(_call, endpoint, name, arguments, limiter=queue.threads)
    finally:
        queue.leave(ticket)


def _call(endpoint: Endpoint, name: str, arguments: dict[str, Any]) -> Any:
    check_arguments(name, _signed(arguments))
    with noting() as headers:
        ours = reply_as_seg if arguments.get("output") == "dicom_seg" else OURS.get(name)
        result = ours(arguments) if ours else asyncio.run(_await(endpoint, arguments))
    if "infer" in name and said(arguments).get("save_label"):
        note(action="label.save", image=arguments.get("image"), model=arguments.get("model"))
    if (image := _shown(name, arguments)) is not None:
        from monailabel.interfaces.utils.app import app_instance

        app_instance().opened(image)
    return _with_headers(result, headers)


def _signed(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`, in which the user is the one who signed in, whatever the client calls itself."""
    who = identity()
    if who is not None and isinstance(arguments.get("user"), User):
        arguments["user"] = User(username=who.name, name=who.name, roles=[str(who.role)])
        if isinstance(params := arguments.get("params"), dict):
            arguments["params"] = {**params, "client_id": who.name}
    return arguments


def _with_headers(result: Any, headers: dict[str, str]) -> Any:
    if headers and not isinstance(result, Response):
        return JSONResponse(jsonable_encoder(result), headers=headers)
    if headers:
        result.headers.update(headers)
    return result


def _shown(name: str, arguments: dict[str, Any]) -> str | None:
    """The image that a client gets to show it: as a file, or the pixels of a series as OHIF asks for them."""
    if name == "api_download_image":
        return str(arguments["image"])
    pixels = FRAMES.search(str(arguments["path"])) if name == "proxy_wado" else None
    return pixels[1] if pixels else None


async def _await(endpoint: Endpoint, arguments: dict[str, Any]) -> Any:
    return await endpoint(**arguments)
