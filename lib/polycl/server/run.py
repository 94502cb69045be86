"""Start the server, and stop it in order."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from polycl.errors import InputError
from polycl.server.environment import configure, log_to
from polycl.server.exposure import check_exposure
from polycl.server.imports import Progress
from polycl.server.studies import open_studies
from polycl.serving import serving
from polycl.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORT = 8000
SECONDS_TO_FINISH = 10.0
"""How long requests that run may go on when the server stops."""
SECONDS_TO_ANSWER = 5.0
"""And then, to end at their next slice, and to be answered."""
SECONDS_TO_END = 2.0
"""And then for each thread that computes ahead."""


def run_server(
    studies: str | Path | None = None,
    *,
    host: str = HOST,
    port: int = PORT,
    settings: Settings | None = None,
    on_ready: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    insecure_public: bool = False,
) -> None:
    """Serve `studies` (see `open_studies`) until SIGINT or SIGTERM.

    Args:
        port: 0 takes any free one.
        on_ready: called with the server's address once it answers.
        progress: called while a folder of DICOM is imported.
        insecure_public: listen on an address that others reach though nobody has to sign in.

    Raises InputError if the port is taken, if the studies or the state folder cannot be used, or if others could reach
    a server that lets everybody in.
    """
    settings = settings or Settings()
    settings.prepare()
    check_exposure(host, settings, insecure_public)
    with contextlib.closing(bind(host, port)) as listener, serving(settings.state):
        port = listener.getsockname()[1]
        log_to(settings.logs, settings.log)
        app = create_app(open_studies(studies, settings, progress), settings, host=host, port=port)
        _serve(app, listener, f"http://{f'[{host}]' if ':' in host else host}:{port}", on_ready)


def create_app(studies: str, settings: Settings, *, host: str = HOST, port: int = PORT) -> FastAPI:
    """MONAI Label's ASGI application over `studies`, a folder of images or a DICOMweb address, protected.

    It is one for the process, as MONAI Label has it; a second call points it at other studies.
    """
    configure(studies, settings, port)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its allowed origins
        from monailabel.app import app

    from fastapi import Request
    from fastapi.responses import JSONResponse

    from polycl.server.endpoints import protect
    from polycl.server.problems import internal
    from polycl.server.site import protect_site

    def unexpected(request: Request, error: Exception) -> JSONResponse:
        answer = internal(error)
        return JSONResponse({"detail": answer.detail}, answer.status_code)

    protect()
    protect_site(app, settings, host, port)
    app.exception_handlers[Exception] = unexpected
    return app


def bind(host: str, port: int) -> socket.socket:
    """A socket on the port, taken before anything slow begins."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"port {port} of {host} cannot be used ({reason}); choose another with --port") from None
    return listener


def _serve(app: FastAPI, listener: socket.socket, address: str, on_ready: Callable[[str], None] | None) -> None:
    import uvicorn
    from monailabel.interfaces.utils.app import app_instance

    from polycl.monailabel.infer import Stopping
    from polycl.server.lanes import lanes

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_ready is not None:
                on_ready(address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            lanes().close(Stopping("the server is shutting down"))
            served.stop()
            asyncio.get_running_loop().call_later(SECONDS_TO_FINISH, served.give_up)
            await super().shutdown(sockets)

    served = app_instance()  # an app that cannot start says why here, not in uvicorn's log
    patience = int(SECONDS_TO_FINISH + SECONDS_TO_ANSWER)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=patience)
    server = Server(config)
    with _quiet_signals():
        server.run(sockets=[listener])
    if not server.started:
        raise InputError("the server did not start; its log says why")


def leave_server() -> NoReturn:
    """End this process, in which `run_server` returned; see `leave`."""
    from monailabel.interfaces.utils.app import app_instance

    leave(app_instance().close)


def leave(close: Callable[[float], bool]) -> NoReturn:
    """End this process, whose server has stopped, in order; `close` waits so many seconds for what computes ahead.

    Without Python's own end, which waits for threads that sleep, and in which the process is aborted where torch still
    computes in one.
    """
    if not close(SECONDS_TO_END):
        logger.info("what is computed ahead is given up")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done; that would end the process with an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
