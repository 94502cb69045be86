"""A throw-away Orthanc as PACS, with two phantom series, and both servers over it."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import WATCH, Pacs, Server, environment, free_port, process, running, search_path

from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import list_series

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc/plugins")


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A running Orthanc with nothing in it."""
    program = next(
        (found for name in ("Orthanc", "orthanc") if (found := shutil.which(name, path=search_path()))), None
    )
    plugin = next((file for folder in PLUGIN_FOLDERS if (file := Path(folder, PLUGIN)).is_file()), None)
    if program is None or plugin is None:
        pytest.skip(f"needs Orthanc and its plugin {PLUGIN} (Debian: orthanc, orthanc-dicomweb)")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    configuration = {
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    started = Pacs(f"http://127.0.0.1:{port}")
    with running([program, "orthanc.json"], folder, dict(os.environ), f"{started.dicomweb}/studies"):
        yield started


@pytest.fixture(scope="session")
def series(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """UID and files of a series whose slices are numbered upwards, and of one downwards; the PACS has both."""
    made = {}
    for seed, name in enumerate(("increasing", "decreasing")):
        folder = tmp_path_factory.mktemp("dicom") / name
        image = make_phantom(seed, shape=(64, 52, 9), spacing=(6.0, 6.0, 20.0)).image
        for file in write_dicom_series(image, folder, seed=seed, decreasing=name == "decreasing"):
            pacs.store(file)
        made[name] = (list_series(folder)[0].uid, folder)
    return made


@pytest.fixture(scope="session")
def servers(
    pacs: Pacs, series: object, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Both ways of starting, over the PACS, at once; neither finds the program that writes DICOM SEG."""
    commands: dict[str, Callable[[Path, int], list[str]]] = {
        "polycl serve": lambda folder, port: ["polycl.cli", "serve", "--port", str(port)],
        "monailabel start_server": lambda folder, port: [
            *("monailabel.main", "start_server", "--app", str(folder / "app"), "--host", "127.0.0.1"),
            *("--port", str(port), "--conf", "sam2", "false"),
        ],
    }
    started = {}
    with contextlib.ExitStack() as stack:
        waits = []
        for name, command in commands.items():
            folder, port = tmp_path_factory.mktemp("server"), free_port()
            ignored = shutil.ignore_patterns("model", "lib", "logs", "bin", "__pycache__")
            shutil.copytree(ROOT / "apps" / "polycl", folder / "app", ignore=ignored)
            (folder / "watch").mkdir()
            (folder / "watch" / "sitecustomize.py").write_text(WATCH)
            arguments = [sys.executable, "-m", *command(folder, port), "--studies", pacs.dicomweb]
            started[name] = Server(f"http://127.0.0.1:{port}", folder / "outside.txt")
            wait = process(arguments, folder, environment(folder, tiny_checkpoint), f"{started[name].address}/info/")
            waits.append(stack.enter_context(wait))
        for wait_until_it_answers in waits:
            wait_until_it_answers()
        yield started
