"""A server that is told to stop while it segments: it answers first if it can, and says when to come again if not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from recording import SHAPE
from starting import AFFINES, free_port, running

from polycl.volume import Volume, write_volume

pytestmark = [pytest.mark.client, pytest.mark.slow]

SECONDS = 120
SERVE = """
import sys, time
from pathlib import Path
import numpy as np
from polycl.segmenter import Segmenter
from polycl.server import leave_server, run, run_server

folder = Path(sys.argv[1])

def segment(self, image, labels=None, progress=None):
    (folder / "working").touch()
    while not (folder / "go").exists():
        progress(0, 1)
        time.sleep(0.01)
    return image.with_voxels(np.ones(image.shape, np.uint8))

Segmenter.segment = segment
run.SECONDS_TO_FINISH = float(sys.argv[3])
run_server(str(folder / "studies"), port=int(sys.argv[2]))
leave_server()
"""


@contextmanager
def serving(folder: Path, weights: Path, seconds: float) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server whose segmenter works until there is a file `folder`/go."""
    (folder / "studies").mkdir()
    voxels = np.random.default_rng(0).normal(-300, 400, SHAPE).clip(-1000, 1000).astype(np.int16)
    write_volume(Volume(voxels, AFFINES["axial"]), folder / "studies" / "a.nii.gz")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    clean |= {"POLYCL_STATE": str(folder / "state"), "POLYCL_WEIGHTS": str(weights), "POLYCL_SCORE_AHEAD": "false"}
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(folder), str(port), str(seconds)]
    with running(command, folder, port, clean) as server:
        yield server


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], answers: list[httpx.Response]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        assert not answers, answers[0].text
        assert process.poll() is None
        time.sleep(0.05)


def refuses(address: str) -> bool:
    try:
        httpx.get(f"{address}/healthz", timeout=SECONDS)
    except httpx.ConnectError:
        return True
    return False


@pytest.mark.parametrize("enough", [True, False])
def test_what_runs_is_answered_before_the_server_ends(tmp_path: Path, tiny_checkpoint: Path, enough: bool) -> None:
    answers: list[httpx.Response] = []
    with serving(tmp_path, tiny_checkpoint.parent, SECONDS if enough else 0.5) as (address, process):

        def ask() -> None:
            answers.append(httpx.post(f"{address}/infer/tiny?image=a", timeout=SECONDS))

        asking = threading.Thread(target=ask)
        asking.start()
        until((tmp_path / "working").exists, process, answers)
        process.send_signal(signal.SIGTERM)
        if enough:
            until(lambda: refuses(address), process, answers)
            (tmp_path / "go").touch()
        asking.join(SECONDS)
        assert process.wait(SECONDS) == 0
    assert answers[0].status_code == (200 if enough else 503)
    assert enough or answers[0].headers["retry-after"] == "10"
