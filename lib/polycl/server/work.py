"""`/polycl/work`: what a client's propagations do, and how to stop them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Response
from monailabel.interfaces.utils.app import app_instance

from polycl.errors import NotFoundError
from polycl.monailabel.work import owner
from polycl.server.origins import require_same_origin
from polycl.server.pages import PRIVATE, READER
from polycl.server.problems import to_http

if TYPE_CHECKING:
    from polycl.monailabel.work import Work

PATH = "/polycl/work"
api = APIRouter(prefix=PATH, tags=["PolyCL"], dependencies=READER)


@api.get("")
def under_way(response: Response, client_id: str | None = Query(None, max_length=200)) -> dict[str, Any]:
    """Propagations that the caller asked for and that are not done, the oldest first."""
    response.headers.update(PRIVATE)
    return {"work": [one.described() for one in _work().of(owner(), client_id)]}


@api.delete("/{number}", status_code=202, dependencies=[Depends(require_same_origin)])
def cancel(number: str) -> dict[str, Any]:
    """Stop one of them: the request for it is answered 499 at its next slice, and nothing of it is kept."""
    try:
        _work().cancel(owner(), number)
    except NotFoundError as error:
        raise to_http(error) from None
    return {"cancelled": number}


def install(app: FastAPI) -> None:
    """Add these routes to MONAI Label's application, once; before the page, which answers all of `/polycl/`."""
    if not getattr(app.state, "polycl_work", False):  # a router that was included does not show its paths
        app.state.polycl_work = True
        app.include_router(api)


def _work() -> Work:
    return app_instance().propagations.work  # type: ignore[no-any-return, unused-ignore]
