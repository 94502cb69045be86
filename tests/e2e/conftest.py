"""A throw-away Orthanc as PACS, with two phantom series, and both servers over it."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import throwaway_pacs
from playwright.sync_api import Browser, BrowserContext, sync_playwright
from processes import SLICE_MM, WATCH, Pacs, Patient, Server, environment, free_port, process, running
from viewer import CHROMIUM, Viewer, launched, opened

from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import list_series

ROOT = Path(__file__).resolve().parents[2]
READERS_SERVER = """
import fake_sam
fake_sam.install()
from polycl.cli import main
main()
"""


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A running Orthanc with nothing in it."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as started:
        yield started


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Pacs]:
    """A running Orthanc that keeps what it gets in `folder`; the test is skipped where it is not installed."""
    if (found := throwaway_pacs.installed()) is None:
        pytest.skip(throwaway_pacs.MISSING)
    program, plugin = found
    port = free_port()
    configuration = throwaway_pacs.configuration(folder, port, plugin)
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
    """Both ways of starting, over the PACS, at once; neither finds dcmqi, which MONAI Label would use."""
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


@pytest.fixture(scope="session")
def readers_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """Another Orthanc: readers save to it, and one reader's work must not change what others are offered."""
    with orthanc(tmp_path_factory.mktemp("readers_orthanc")) as started:
        yield started


@pytest.fixture(scope="session")
def patients(readers_pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Patient]:
    """Three patients, by the name that the list of studies shows, in both orders of slices."""
    found = {}
    for seed, decreasing in ((40, False), (41, True), (42, False)):
        folder = tmp_path_factory.mktemp("patient")
        phantom = make_phantom(seed, shape=(96, 80, 40), spacing=(4.2, 4.2, SLICE_MM))
        for file in write_dicom_series(phantom.image, folder, seed=seed, decreasing=decreasing):
            readers_pacs.store(file)
        found[f"PHANTOM, SEED{seed}"] = Patient(list_series(folder)[0].uid, folder, phantom)
    return found


@pytest.fixture(scope="session")
def readers_server(
    readers_pacs: Pacs, patients: object, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """`polycl serve` with the liver model, the tiny one, and clicks by a fake SAM."""
    folder, port = tmp_path_factory.mktemp("readers_server"), free_port()
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    variables = environment(folder, tiny_checkpoint)
    paths = [variables["PYTHONPATH"], str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-c", READERS_SERVER, "serve", "--port", str(port), "--studies", readers_pacs.dicomweb]
    started = Server(f"http://127.0.0.1:{port}", folder / "outside.txt")
    with running(command, folder, variables, f"{started.address}/info/"):
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A running Chromium; the test is skipped where there is none."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs Chromium at {CHROMIUM} (Debian: chromium)")
    with sync_playwright() as playwright:
        started = launched(playwright)
        yield started
        started.close()


@pytest.fixture(scope="session")
def windows(browser: Browser) -> Iterator[BrowserContext]:
    """Where windows of the viewer are opened: they share a cache, as those of a reader do."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield context
    context.close()


@pytest.fixture
def viewer(windows: BrowserContext, readers_server: Server) -> Iterator[Viewer]:
    """A new window; when it closes, nothing may have been asked of another host, and nothing may have failed in it."""
    with opened(windows, readers_server.address) as one:
        yield one
        assert one.outside == []
        assert one.errors == []
    assert readers_server.outside.read_text() == ""
