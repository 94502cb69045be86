"""From pressing Run in OHIF to the organ on the screen: a study of 300 slices of 512 x 512 in an Orthanc, twice.

Orthanc, `polycl serve` and Chromium run here as they do in the end-to-end tests. The server's stages are what it tells
in the reply's `Server-Timing`; the rest is by the browser's clock, from the click: the reply is there, the viewer has
taken it for a label map, it is on the screen, seen in a picture of the window. The second time is in a new window. What
comes before the click is told, and does not count: the viewer loads the study, and the server meanwhile too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from polycl.phantom import make_phantom, write_dicom_series
from polycl.settings import Settings
from polycl.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
MODEL, TITLE, PATIENT = "polycl-liver", "Segmentation", "PHANTOM"
SHAPE, SPACING, ENLARGED = (128, 128, 75), (3.2, 3.2, 5.6), 4
GOALS = {"first": 45.0, "second": 10.0}
PATIENCE_S = 600
PAINTED = 0.005
"""Share of the window that changes when the organ is painted."""
WATCH = """title => {
    window.clock = {};
    performance.clearResourceTimings();  // the images of a study fill what a browser keeps of them
    const button = document.querySelector(`button[title='Run ${title}']`);
    button.addEventListener('click', () => { clock.pressed = performance.now(); }, { capture: true, once: true });
    const event = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.eventTarget.addEventListener(event, () => { clock.held ??= clock.pressed && performance.now(); });
}"""
REPLY = "performance.getEntriesByType('resource').filter(one => one.name.includes('/infer/')).at(-1)?.responseEnd"


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a line for each time and return the figures; none where a program is missing."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "e2e")]
    import throwaway_pacs
    from viewer import CHROMIUM

    found = throwaway_pacs.installed()
    if found is None or not Path(CHROMIUM).exists():
        print(f"ohif: not measured, it {throwaway_pacs.MISSING} and Chromium at {CHROMIUM}")  # noqa: T201
        return {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        address = _served(Path(name), found, settings, stack)
        rows = _driven(address, stack)
    for row, figures in rows.items():
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in figures["server"].items())
        print(  # noqa: T201
            f"ohif, the {row} time: {figures['shown']:.1f} s from Run to the screen (goal {GOALS[row]:.0f} s)\n"
            f"  the reply after {figures['reply']:.1f} s (server: {stages}), held by the viewer after "
            f"{figures['held']:.1f} s; {figures['opened']:.1f} s to open the study; load {os.getloadavg()[0]:.1f}"
        )
    return rows


def _served(folder: Path, found: tuple[str, Path], settings: Settings, stack: ExitStack) -> str:
    """Address of a server over an Orthanc that holds the study."""
    import throwaway_pacs
    from processes import Pacs, free_port, running

    program, plugin = found
    port, served = free_port(), free_port()
    (folder / "orthanc.json").write_text(json.dumps(throwaway_pacs.configuration(folder, port, plugin)))
    pacs = Pacs(f"http://127.0.0.1:{port}")
    stack.enter_context(running([program, "orthanc.json"], folder, dict(os.environ), f"{pacs.dicomweb}/studies"))
    for file in write_dicom_series(_study(), folder / "ct", seed=0):
        pacs.store(file)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    variables = clean | {"POLYCL_STATE": str(folder / "state"), "POLYCL_DEVICE": settings.device}
    command = [sys.executable, "-m", "polycl.cli", "serve", "--port", str(served), "--studies", pacs.dicomweb]
    stack.enter_context(running(command, folder, variables, f"http://127.0.0.1:{served}/info/"))
    return f"http://127.0.0.1:{served}"


def _study() -> Volume:
    """A phantom, enlarged: 512 x 512 x 300 voxels with some noise, so that they pack no better than real ones."""
    small = make_phantom(0, shape=SHAPE, spacing=SPACING).image
    voxels = small.voxels
    for axis in range(3):
        voxels = voxels.repeat(ENLARGED, axis)
    voxels += np.random.default_rng(0).integers(-10, 10, voxels.shape, dtype=np.int16)
    affine = small.affine.copy()
    affine[:3, :3] /= ENLARGED
    return Volume(np.asfortranarray(voxels), affine)


def _driven(address: str, stack: ExitStack) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright
    from viewer import launched, opened

    browser = launched(stack.enter_context(sync_playwright()))
    stack.callback(browser.close)
    windows = browser.new_context(viewport={"width": 1400, "height": 900})
    rows = {}
    for row in GOALS:
        with opened(windows, address) as viewer:
            viewer.patience_ms = 1000 * PATIENCE_S
            rows[row] = _once(viewer)
    return rows


def _once(viewer: Any) -> dict[str, Any]:
    """Open the study, press Run, and wait for the organ: seconds."""
    start = time.perf_counter()
    viewer.open_study(PATIENT)
    viewer.connect()
    opened = time.perf_counter() - start
    viewer.choose(TITLE, MODEL)
    viewer.page.evaluate(WATCH, TITLE)
    before = viewer.pixels()
    infer = viewer.page.expect_response(lambda reply: "/infer/" in reply.url, timeout=1000 * PATIENCE_S)
    with infer as answer:
        viewer.page.locator(f"button[title='Run {TITLE}']").click()
    viewer.page.wait_for_function("clock.held", timeout=1000 * PATIENCE_S)
    until = time.monotonic() + PATIENCE_S
    while (np.abs(viewer.pixels() - before).max(axis=2) > 20).mean() < PAINTED:
        if time.monotonic() > until:
            raise TimeoutError("the organ does not appear on the screen")
    now, clock, reply = viewer.page.evaluate(f"[performance.now(), clock, {REPLY}]")
    since = {"reply": reply, "held": clock["held"], "shown": now}
    server = [stage.split(";dur=") for stage in answer.value.headers["server-timing"].split(", ")]
    return {
        "opened": opened,
        "server": {stage: float(milliseconds) / 1000 for stage, milliseconds in server},
        **{what: (at - clock["pressed"]) / 1000 for what, at in since.items()},
    }
