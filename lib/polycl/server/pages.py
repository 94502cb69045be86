"""The page at `/polycl/`: what the server learns, and what to label next; and the JSON that it is made of.

It works under `polycl serve` and MONAI Label's own start. Whoever may use MONAI Label may look; only its administrators
may change anything where it has a login. What changes something is a POST from the page itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from monailabel.config import settings as server_settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.utils.app import app_instance
from pydantic import Field

from polycl.checkpoints import Typed
from polycl.errors import NotFoundError
from polycl.server import overview
from polycl.server.origins import is_foreign
from polycl.server.problems import to_http
from polycl.server.trail import note

STATIC = Path(__file__).with_name("page")
FILES = {"page.css": "text/css", "page.js": "text/javascript", "chart.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
LOOK_SECONDS, STREAM_SECONDS, BEAT_SECONDS = 0.5, 60.0, 15.0
"""An open stream would hold up a server that stops, so it ends now and then; the browser opens another."""


class _Route(APIRoute):
    """Failures are told as everywhere else on this server."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError:
                raise
            except Exception as error:
                answer = to_http(error)
                raise answer from (None if isinstance(error, HTTPException) else error)

        return told


def require_own_page(request: Request) -> None:
    """403 for what a page of another site asks for: also where MONAI Label started the server, without our guard."""
    if is_foreign(request.method, request.headers, []):
        raise HTTPException(403, "a page of another site asked for this")


READER = [Depends(RBAC(server_settings.MONAI_LABEL_AUTH_ROLE_USER))]
ADMIN = [Depends(RBAC(server_settings.MONAI_LABEL_AUTH_ROLE_ADMIN)), Depends(require_own_page)]
pages = APIRouter(prefix="/polycl", include_in_schema=False, route_class=_Route)
api = APIRouter(prefix="/polycl/api", tags=["PolyCL"], route_class=_Route, dependencies=READER)


class Pretrain(Typed):
    """What to pre-train: an encoder like the segmenter's."""

    segmenter: str = ""
    steps: int = Field(default=300, ge=1, le=100_000)


class Publish(Typed):
    """The version of a model to serve."""

    model: str
    version: int = Field(ge=0)


class Rollback(Typed):
    """The model whose live version's parent is to be served."""

    model: str


def install(app: FastAPI) -> None:
    """Add the page to MONAI Label's application, once."""
    if not getattr(app.state, "polycl_page", False):
        app.state.polycl_page = True
        app.include_router(pages)
        app.include_router(api)


@pages.get("")
def page_address() -> Response:
    """The page's files are beside its address, which therefore ends in a slash."""
    return RedirectResponse("polycl/", 308)


@pages.get("/")
def page() -> Response:
    """The page."""
    return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8", headers=HEADERS)


@pages.get("/{name}")
def page_file(name: str) -> Response:
    """What the page is made of."""
    if name not in FILES:
        raise NotFoundError(f"the page has no file {name!r}")
    return FileResponse(STATIC / name, media_type=f"{FILES[name]}; charset=utf-8", headers=HEADERS)


@api.get("/runs")
def runs() -> dict[str, Any]:
    """Training and pre-training runs, the newest first."""
    return overview.runs()


@api.get("/models")
def models() -> dict[str, Any]:
    """Models and their versions."""
    return overview.models()


@api.get("/labels")
def labels() -> dict[str, Any]:
    """Labels by day and annotator."""
    return overview.labels()


@api.get("/queue")
def queue(strategy: str = "polycl-mixed", count: Annotated[int, Query(ge=1, le=50)] = overview.QUEUE) -> dict[str, Any]:
    """What to label next."""
    return overview.queue(strategy, count)


@api.get("/slice")
def slice_to_begin_with(image: str) -> dict[str, Any]:
    """The slice of an image to label first."""
    return overview.suggested(image)


@api.get("/cache")
def cache() -> dict[str, Any]:
    """Counters of the cache of embeddings."""
    return overview.cache()


@api.get("/thumbnail", response_class=Response)
def thumbnail(image: str, slice: Annotated[int, Query(ge=0)]) -> Response:
    """A slice of an image, small."""
    return Response(overview.picture(image, slice), media_type="image/png", headers=PRIVATE)


@api.get("/events", response_class=StreamingResponse)
def events() -> StreamingResponse:
    """Server-sent events `change`, whose data tell of each part of the page a stamp that changes when it does."""
    return StreamingResponse(_changes(), media_type="text/event-stream", headers=PRIVATE | {"X-Accel-Buffering": "no"})


@api.post("/training/start", dependencies=ADMIN)
def start_training(options: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Train on the saved labels; options as in `POST /train/polycl`."""
    return overview.described(overview.trainer().begin(options, app_instance().datastore()))


@api.post("/training/cancel", dependencies=ADMIN)
def cancel_training() -> dict[str, Any]:
    """End the run under way, of either kind."""
    run = overview.trainer().trainer.cancel()
    if run is None:
        raise NotFoundError("nothing is being trained")
    return overview.described(run)


@api.post("/pretraining/start", dependencies=ADMIN)
def start_pretraining(options: Pretrain) -> dict[str, Any]:
    """Pre-train an encoder on the images of the store, without their labels."""
    task = overview.trainer()
    segmenter = options.segmenter or task.segmenters[0]
    return overview.described(task.trainer.pretrain(segmenter, app_instance().datastore().folder, options.steps))


@api.post("/models/publish", dependencies=ADMIN)
def publish(wanted: Publish) -> dict[str, Any]:
    """Serve a version of a model."""
    _served(wanted.model).publish(wanted.model, wanted.version, "as requested")
    note(model=wanted.model, version=wanted.version)
    return _switched()


@api.post("/models/rollback", dependencies=ADMIN)
def rollback(wanted: Rollback) -> dict[str, Any]:
    """Serve the live version's parent again."""
    version = _served(wanted.model).rollback(wanted.model)
    note(model=wanted.model, version=version)
    return _switched()


def _served(name: str) -> Any:
    task = overview.trainer()
    if name not in task.segmenters:
        raise NotFoundError(f"no segmenter {name!r}; there are: {', '.join(task.segmenters)}")
    return task.trainer.versions


def _switched() -> dict[str, Any]:
    app_instance().scores.wake()
    return overview.models()


async def _changes() -> AsyncIterator[str]:
    """Stamps at once and whenever they change; a comment now and then, for proxies that close what is silent."""
    stopping = app_instance().runtime.stopping
    yield "retry: 1000\n\n"
    last: dict[str, str] = {}
    silent = waited = 0.0
    while waited < STREAM_SECONDS and not stopping.is_set():
        known = await run_sync(overview.stamps)
        if known != last:
            yield f"event: change\ndata: {json.dumps(known)}\n\n"
            last, silent = known, 0.0
        elif silent >= BEAT_SECONDS:
            yield ": still here\n\n"
            silent = 0.0
        await asyncio.sleep(LOOK_SECONDS)
        waited, silent = waited + LOOK_SECONDS, silent + LOOK_SECONDS
