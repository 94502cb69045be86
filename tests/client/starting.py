"""Servers in processes of their own: the images they serve, and waiting until they answer."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recording import AXIAL

SECONDS_TO_START = 180


def oblique() -> np.ndarray:
    """A tilted and turned affine with unequal spacing."""
    a, b = np.deg2rad((18.0, -25.0))
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ turn @ np.diag([-4.0, -4.0, 5.0])
    affine[:3, 3] = (80.0, 60.0, -200.0)
    return affine


AFFINES = {"axial": AXIAL, "oblique": oblique()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, path: str = "/info/") -> None:
    """Return once the server answers at `path`; fail with its output if it ends first."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}{path}", timeout=SECONDS_TO_START).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@contextmanager
def running(
    command: list[str], folder: Path, port: int, environment: dict[str, str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server that `command` starts at `port`, and its process, killed at the end at the latest."""
    address, log = f"http://127.0.0.1:{port}", folder / "output.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(address, process, log)
        yield address, process
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(folder: Path, weights: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`polycl serve` over `folder`/studies with its state in `folder`/state, with these environment variables; killed
    at the end at the latest."""
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    ours = {
        "POLYCL_STATE": str(folder / "state"),
        "POLYCL_WEIGHTS": str(weights),
        "POLYCL_PRECISION": "fp32",
        "POLYCL_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "polycl.cli", "serve", "--studies", str(folder / "studies"), "--port", str(port)]
    with running(command, folder, port, clean | ours | variables) as server:
        yield server
