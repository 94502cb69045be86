"""Processes that the tests start: an Orthanc and our servers, and what they are called by."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from polycl.phantom import Phantom

SECONDS_TO_START = 420
"""A server starts in seconds, but in minutes where other programs want every core."""
HTTP = httpx.Client(timeout=SECONDS_TO_START)
"""One for all: each reads the certificates of the machine, which takes longer than a request."""
SLICE_MM = 9.0
"""Between the slices of the patients."""
# Told by the interpreter itself, so that no library can be overlooked.
WATCH = """
import os, sys
def _watch(event, arguments, file=open(os.environ["WATCH_FILE"], "a", buffering=1)):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        file.write(f"{host}\\n")
sys.addaudithook(_watch)
with open(os.environ["WATCH_FILE"] + ".on", "w"):
    pass
"""


@dataclass(frozen=True)
class Pacs:
    """An Orthanc without authentication, on the loopback interface."""

    root: str

    @property
    def dicomweb(self) -> str:
        return f"{self.root}/dicom-web"

    def store(self, file: Path) -> None:
        """Send one DICOM file."""
        HTTP.post(f"{self.root}/instances", content=file.read_bytes()).raise_for_status()


@dataclass(frozen=True)
class Patient:
    """A phantom in the PACS: the UID and the folder of its one series, and the truth."""

    uid: str
    folder: Path
    phantom: Phantom


@dataclass(frozen=True)
class Server:
    """A server of ours over the PACS; `outside` is the file of hosts it talked to that are not this one."""

    address: str
    outside: Path


def environment(folder: Path, checkpoint: Path) -> dict[str, str]:
    """Settings of a server whose state is in `folder`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    return clean | {
        "POLYCL_STATE": str(folder / "state"),
        "POLYCL_WEIGHTS": str(checkpoint.parent),
        "POLYCL_SERVE_MODELS": "polycl-liver,tiny",
        "POLYCL_PRECISION": "fp32",
        "POLYCL_DEVICE": "cpu",
        "PYTHONPATH": str(folder / "watch"),
        "WATCH_FILE": str(folder / "outside.txt"),
        "PATH": search_path(without="itkimage2segimage"),
    }


@contextlib.contextmanager
def running(command: list[str], folder: Path, variables: dict[str, str], url: str) -> Iterator[None]:
    """A process that answers at `url`, ended afterwards."""
    with process(command, folder, variables, url) as wait_until_it_answers:
        wait_until_it_answers()
        yield


@contextlib.contextmanager
def process(command: list[str], folder: Path, variables: dict[str, str], url: str) -> Iterator[Callable[[], None]]:
    """A process, ended afterwards; yields a function that returns once `url` answers."""
    log = folder / "output.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT)

    def wait_until_it_answers() -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline and child.poll() is None:
            try:
                HTTP.get(url).raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.1)
        pytest.fail(f"{command[0]} did not start:\n{log.read_text()}")

    try:
        yield wait_until_it_answers
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def search_path(without: str = "") -> str:
    """The search path, with the folders of daemons, and without those that hold a program."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/sbin"]
    return os.pathsep.join(folder for folder in folders if not (without and Path(folder, without).exists()))
