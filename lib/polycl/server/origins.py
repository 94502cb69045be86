"""Which web pages may read the server's answers: its own, and those named in MONAI Label's settings."""

from typing import cast

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware


def restrict_origins(app: FastAPI, host: str, port: int) -> None:
    """Replace MONAI Label's permission for every page in the world to read, with credentials, from this machine.

    `MONAI_LABEL_CORS_ORIGINS` admits more, as an OHIF that another server brings.
    """
    from monailabel.config import settings

    own = [f"http://{name}:{port}" for name in (f"[{host}]" if ":" in host else host, "127.0.0.1", "localhost")]
    # MONAI Label keeps them as addresses, which end in a slash; an origin does not.
    more = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    app.middleware_stack = None  # built anew at the next request
    app.user_middleware = [one for one in app.user_middleware if cast(object, one.cls) is not CORSMiddleware]
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(dict.fromkeys(own + more)),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
