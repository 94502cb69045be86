"""What the server lets others see: no folders of its machine, and nothing to pages of other sites."""

import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

from polycl.catalogue import Entry
from polycl.errors import InputError, ModelError
from polycl.server.origins import restrict_origins
from polycl.server.problems import to_http

pytestmark = pytest.mark.app

PREFLIGHT = {"Access-Control-Request-Method": "PUT"}


def entry(path: Path, sha256: str | None = None) -> Entry:
    return Entry("liver", "segmenter", path, sha256, None, "")


def test_a_missing_model_names_its_folder_only_here(tmp_path: Path) -> None:
    for ask in (entry(tmp_path / "liver.safetensors").verify, entry(tmp_path / "liver.safetensors").header):
        with pytest.raises(ModelError) as raised:
            ask()
        assert str(tmp_path) in raised.value.in_full()
        answer = to_http(raised.value)
        assert answer.status_code == 424
        assert "liver.safetensors" in answer.detail
        assert str(tmp_path) not in answer.detail


def test_an_altered_model_names_its_folder_only_here(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError) as raised:
        entry(tiny_checkpoint, "0" * 64).verify()
    assert str(tiny_checkpoint.parent) in raised.value.in_full()
    assert str(tiny_checkpoint.parent) not in to_http(raised.value).detail


def test_the_command_line_shows_the_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polycl import cli

    def fail() -> None:
        raise InputError("it is wrong", hint="do it so")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["polycl"])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 1
    assert capsys.readouterr().err == "polycl: it is wrong; do it so\n"


@pytest.mark.parametrize("origin", ["https://example.org", "http://127.0.0.1:3000", "http://localhost", "null"])
def test_other_pages_cannot_read(client: TestClient, origin: str) -> None:
    answer = client.get("/info/", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers
    preflight = client.options("/datastore/label", headers={"Origin": origin, **PREFLIGHT})
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:8000"])
def test_our_own_pages_can(client: TestClient, origin: str) -> None:
    assert client.get("/info/", headers={"Origin": origin}).headers["access-control-allow-origin"] == origin
    preflight = client.options("/datastore/label", headers={"Origin": origin, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin


def test_origins_of_the_settings_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import AnyHttpUrl

    monkeypatch.setattr(
        "monailabel.config.settings.MONAI_LABEL_CORS_ORIGINS", [AnyHttpUrl("https://viewer.example.org")]
    )
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)
    restrict_origins(app, "::1", 8123)
    allowed = []
    client = TestClient(app)
    for origin in ("https://viewer.example.org", "http://[::1]:8123", "http://localhost:8123", "https://example.org"):
        if "access-control-allow-origin" in client.get("/", headers={"Origin": origin}).headers:
            allowed.append(origin)
    assert allowed == ["https://viewer.example.org", "http://[::1]:8123", "http://localhost:8123"]
