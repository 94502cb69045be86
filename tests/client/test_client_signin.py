"""The Slicer plugin's own client signs in, as `MONAILabel.py` calls it, at a server with users."""

import importlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from polycl.accounts import Accounts, Role
from polycl.server.connection import identity
from polycl.settings import Settings

pytestmark = pytest.mark.client

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a guarded application that tells at MONAI Label's `/info/` who asks."""
    settings = Settings(state=tmp_path_factory.mktemp("state"))
    Accounts(settings.users).add("jane", Role.ANNOTATOR, PASSWORD)
    app, listener = FastAPI(), socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    @app.get("/info/")
    async def info() -> dict[str, Any]:
        who = identity()
        return {"who": who and who.name}

    importlib.import_module("polycl.server.site").protect_site(app, settings, "127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def test_slicer_signs_in_and_stays_so(guarded: str, slicer: ModuleType, tmp_path: Path) -> None:
    def client() -> Any:
        return slicer.MONAILabelClient(guarded, str(tmp_path), "user-xyz")

    first = client()
    assert first.auth_enabled() is True
    assert first.auth_valid_token() is False
    with pytest.raises(slicer.MONAILabelClientException):
        first.info()
    with pytest.raises(slicer.MONAILabelClientException) as refusal:
        first.auth_token("jane", "wrong")
    assert refusal.value.status_code == 401
    token = first.auth_token("jane", PASSWORD)
    later = client()
    later.update_auth(token)
    assert later.auth_valid_token() is True
    assert later.info() == {"who": "jane"}
