"""MONAI Label's endpoints, moved off the event loop.

Each is an `async def` over blocking code, so one inference would stop the whole server. `protect` replaces it by one
that checks its arguments, runs the original in a worker thread, and answers failures with a reason. What FastAPI does
before (authorisation, parsing) and after (sending, background tasks) stays as it is.

Inference has few threads of its own: a network computes one image at a time, another image may be read meanwhile, and
the rest wait without holding up anything else. MONAI Label's own data is safe under threads because the store
(`polycl.monailabel.store`) and the models (`polycl.monailabel.infer`) take one call at a time where they must.
"""

import asyncio
import functools
import importlib
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from fastapi import BackgroundTasks, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from polycl.monailabel.headers import noting
from polycl.server.checks import check_arguments
from polycl.server.labels import save_label
from polycl.server.problems import to_http

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
INFER_THREADS = 2
OTHER_THREADS = 16
FRAMES = re.compile(r"series/([0-9.]+)/instances/[0-9.]+/frames")
OURS: dict[str, Callable[[dict[str, Any]], Any]] = {"api_save_label": save_label}
"""Endpoints whose work is done here instead."""
_MARK = "_polycl_protected"
_LIMITERS: RunVar[tuple[CapacityLimiter, CapacityLimiter]] = RunVar("polycl_limiters")


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
    inference = "infer" in name

    @functools.wraps(endpoint)
    async def protected(**arguments: Any) -> Any:
        request = arguments.get("request")
        if isinstance(request, Request):
            await request.body()  # kept by the request: the thread's own event loop could not receive it
        try:
            return await run_sync(_call, endpoint, name, arguments, limiter=_limiter(inference))
        except Exception as error:
            if isinstance(tasks := arguments.get("background_tasks"), BackgroundTasks):
                await tasks()  # they delete what was sent; FastAPI drops them with the request
            answer = to_http(error)
            raise answer from (None if answer is error else error)

    setattr(protected, _MARK, True)
    return protected


def _call(endpoint: Endpoint, name: str, arguments: dict[str, Any]) -> Any:
    check_arguments(name, arguments)
    with noting() as headers:
        result = OURS[name](arguments) if name in OURS else asyncio.run(_await(endpoint, arguments))
    if (image := _shown(name, arguments)) is not None:
        from monailabel.interfaces.utils.app import app_instance

        app_instance().opened(image)
    return _with_headers(result, headers)


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


def _limiter(inference: bool) -> CapacityLimiter:
    """A limiter belongs to one event loop."""
    try:
        limiters = _LIMITERS.get()
    except LookupError:
        limiters = (CapacityLimiter(OTHER_THREADS), CapacityLimiter(INFER_THREADS))
        _LIMITERS.set(limiters)
    return limiters[inference]
