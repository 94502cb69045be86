"""A running server in a process of its own, started in both ways, over two tiny images."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plugin import CLIENT, load, plugin_folder
from recording import SHAPE
from starting import AFFINES, free_port, wait_for

from polycl.volume import Volume, write_volume

ROOT = Path(__file__).resolve().parents[2]
FAKE_SAM = """
import fake_sam, fake_sam2
fake_sam.install()
fake_sam2.install()
"""
SERVE = f"""{FAKE_SAM}
import sys
from polycl.server import run_server
run_server(sys.argv[1], port=int(sys.argv[2]), on_ready=lambda address: print("ready", address, flush=True))
"""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that no server writes to."""
    from polycl.phantom import make_phantom

    folder = tmp_path_factory.mktemp("images")
    voxels = make_phantom(0, shape=SHAPE, spacing=(6.0, 6.0, 20.0)).image.voxels
    for name, affine in AFFINES.items():
        write_volume(Volume(voxels, affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="session", params=["polycl serve", "monailabel start_server"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_checkpoint: Path
) -> Iterator[str]:
    """The address of a server over a copy of `images`."""
    folder = tmp_path_factory.mktemp("server")
    studies, app, port = folder / "studies", folder / "app", free_port()
    shutil.copytree(images, studies)
    shutil.copytree(ROOT / "apps" / "polycl", app, ignore=shutil.ignore_patterns("model", "lib", "logs", "bin"))
    (app / "main.py").write_text(FAKE_SAM + (app / "main.py").read_text())
    command = [sys.executable, "-c", SERVE, str(studies), str(port)]
    if request.param != "polycl serve":
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies"]
        command += [str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "sam2", "false"]
    ours = {
        "POLYCL_STATE": str(folder / "state"),
        "POLYCL_WEIGHTS": str(tiny_checkpoint.parent),
        "POLYCL_SERVE_MODELS": "polycl-liver,tiny",
        "POLYCL_PRECISION": "fp32",
        "POLYCL_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=clean | ours, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address
        if request.param == "polycl serve":
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
            assert f"ready {address}" in log.read_text()
    finally:
        process.kill()
        process.wait()


def slicer_client() -> ModuleType:
    """The plugin's own module."""
    return load(plugin_folder() / CLIENT, "slicer_monailabel_client")


def monailabel_client() -> ModuleType:
    return importlib.import_module("monailabel.client.client")


@pytest.fixture
def slicer() -> ModuleType:
    """The module of the Slicer plugin that talks to a server."""
    return slicer_client()


@pytest.fixture(params=[monailabel_client, slicer_client], ids=["monailabel", "slicer"])
def client(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Any:
    return request.param().MONAILabelClient(server, str(tmp_path), "user-xyz")
