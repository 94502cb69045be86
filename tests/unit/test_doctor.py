"""`polycl doctor`: each check on something that is well and on something that is not."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from polycl import doctor
from polycl.accounts import Accounts, Role
from polycl.settings import Settings

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


def levels(found: Iterator[doctor.Finding]) -> list[str]:
    every = list(found)
    assert all(one.message and "\n" not in one.message for one in every)
    assert all(one.advice for one in every if one.level == "warn")
    return [one.level for one in every]


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A web server that answers everything with the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("numpy==0.0.1\n    # via\npydantic==0.0.1\nno-such-package==1\n")
    (found,) = doctor.packages(lock)
    assert (found.level, "numpy" in found.message, "locked: 0.0.1" in found.message) == ("warn", True, True)
    assert levels(doctor.packages(tmp_path / "nothing")) == ["warn"]


def test_missing_and_altered_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(doctor.__file__).parents[2] / "model", model)
    monkeypatch.setattr("polycl.catalogue.SHIPPED", model)
    settings = Settings(state=tmp_path / "state")
    assert "fail" not in levels(doctor.weights(settings))
    file = next(model.glob("polycl-liver*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert any("sha256" in one.message for one in doctor.weights(settings) if one.level == "fail")
    file.unlink()
    assert any("missing" in one.message for one in doctor.weights(settings) if one.level == "fail")


def test_state_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(doctor.state_folder(Settings(state=tmp_path / "new" / "state")))[0] == "ok"
    assert not (tmp_path / "new").exists()
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((1 << 20, "fail"), (5 << 30, "warn"), (50 << 30, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert levels(doctor.state_folder(Settings(state=tmp_path))) == ["ok", level]
    monkeypatch.setattr(doctor, "why_unwritable", lambda _: "Read-only file system")
    assert levels(doctor.state_folder(Settings(state=tmp_path))) == ["fail"]


def test_stores(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state")
    studies = tmp_path / "studies"
    found = list(doctor.examine(doctor.Asked(settings, str(studies))))
    assert any(one.check == "store" and one.level == "fail" for one in found)
    studies.mkdir()
    (studies / "ct.nii.gz").touch()
    assert levels(doctor.stores(settings, str(studies)))[0] == "ok"
    (studies / "datastore_v2.json").write_text('{"objects":')
    assert levels(doctor.stores(settings, str(studies)))[-1] == "warn"
    (settings.store / "sample").mkdir(parents=True)
    (settings.store / "sample" / "datastore_v2.json").write_text("[]")
    assert levels(doctor.stores(settings, None)) == ["warn"]


def test_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert levels(doctor.port("127.0.0.1", 0)) == ["ok"]
    with answering(200, b'{"status": "ok"}') as address:
        assert levels(doctor.port("127.0.0.1", int(address.rpartition(":")[2]))) == ["warn"]
    with answering(200, b"something else") as address:
        assert levels(doctor.port("127.0.0.1", int(address.rpartition(":")[2]))) == ["fail"]


def test_sign_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    settings = Settings(state=tmp_path)
    assert levels(doctor.sign_in(settings, "127.0.0.1")) == ["ok"]
    found = [one for one in doctor.examine(doctor.Asked(settings, host="0.0.0.0", port=0)) if one.check == "sign-in"]
    assert [one.level for one in found] == ["fail"]
    Accounts(settings.users).add("jane", Role.READER, "correct horse")
    assert levels(doctor.sign_in(settings, "0.0.0.0")) == ["warn"]
    Accounts(settings.users).add("kim", Role.ADMIN, "correct horse")
    assert levels(doctor.sign_in(settings, "0.0.0.0")) == ["ok"]


def test_pacs() -> None:
    with answering(200, b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]') as address:
        assert levels(doctor.pacs(address)) == ["ok"]
    for status, body, said in ((401, b"", "ACCOUNT"), (404, b"", "address"), (200, b"<html>", "address")):
        with answering(status, body) as address:
            (found,) = doctor.pacs(address)
        assert (found.level, said.lower() in (found.message + found.advice).lower()) == ("fail", True), found
    (found,) = doctor.pacs(address)
    assert (found.level, "reached" in found.message) == ("fail", True)


def test_command(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--port", 0, "--json")
    told = json.loads(out)
    failed = [one for one in told["findings"] if one["level"] == "fail"]
    assert (code, told["ok"], failed) == (0, True, [])
    assert {one["check"] for one in told["findings"]} >= {"python", "torch", "weights", "state", "device", "port"}
    code, out, err = run("doctor", "--port", 0, "--studies", tmp_path / "nowhere")
    assert (code, err) == (1, "")
    assert [line for line in out.splitlines() if line.startswith("fail store")]
