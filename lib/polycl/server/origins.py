"""Which web pages may use the server: its own, and those named in MONAI Label's settings.

A page of another site must not read answers (CORS), nor make the browser of somebody who is signed in, or who works at
the server's own machine, change anything (CSRF), nor reach a server on the loopback interface by giving its own name
the address 127.0.0.1 (DNS rebinding).
"""

from typing import cast
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""


def allowed_origins(host: str, port: int) -> list[str]:
    """The server's own, on `host` and loopback, and those of `MONAI_LABEL_CORS_ORIGINS`, as another server's OHIF."""
    from monailabel.config import settings

    own = [f"http://{name}:{port}" for name in (f"[{host}]" if ":" in host else host, "127.0.0.1", "localhost")]
    # MONAI Label keeps them as addresses, which end in a slash; an origin does not.
    more = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    return list(dict.fromkeys(own + more))


def restrict_origins(app: FastAPI, host: str, port: int) -> None:
    """Replace MONAI Label's permission for every page in the world to read, with credentials, from this machine."""
    app.middleware_stack = None
    app.user_middleware = [one for one in app.user_middleware if cast(object, one.cls) is not CORSMiddleware]
    app.add_middleware(
        CORSMiddleware,
        allow_origins=allowed_origins(host, port),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID"],
    )


def is_foreign(method: str, headers: Headers, allowed: list[str], *, signed_in_by_cookie: bool = False) -> bool:
    """Whether a page of another site asks for a change. Programs that are no browsers send neither header.

    Where only a cookie says who asks, the browser has to say from where.
    """
    if method in SAFE:
        return False
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return origin not in allowed and urlsplit(origin).netloc != headers.get("host", "")
    if site is not None:
        return site not in ("same-origin", "none")
    return signed_in_by_cookie


def require_same_origin(request: Request) -> None:
    """For a route that changes something and is served under MONAI Label's own start too, which has no guard. 403."""
    if is_foreign(request.method, request.headers, []):
        raise HTTPException(403, "a page of another site asked for this")


def host_name(headers: Headers) -> str:
    """The name that the client knows this server by, without port and brackets."""
    return (urlsplit(f"//{headers.get('host', '')}").hostname or "").lower()
