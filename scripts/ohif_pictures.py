"""The screenshots of docs/ohif.md, made as the guide says: OHIF in Chromium, over `make pacs` with its sample studies.

Usage: .venv/bin/python scripts/ohif_pictures.py [-o docs/images]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from throwaway_pacs import SHAPE, SPACING, configuration, fill, installed

from polycl.phantom import LABELS, make_phantom

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "e2e"))
WINDOW = {"width": 1500, "height": 1000}
"""The panel with its list of organs fits: in a lower window the page may scroll to it, and the images go with it."""
PATIENT, SEED = "PHANTOM, SEED1", 1
BRUSH_MM = 10
"""The brush's radius when the panel opens."""
JUMP = """index => {
    for (const viewport of cornerstone.getRenderingEngines()[0].getViewports())
        viewport.jumpToWorld(cornerstone.cache.getVolume(viewport.getAllVolumeIds()[0]).imageData.indexToWorld(index));
}"""
"""Faster than the wheel: Chromium draws on the processor here."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright
    from viewer import launched, opened

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        address = served(Path(name), stack)
        browser = launched(stack.enter_context(sync_playwright()))
        stack.callback(browser.close)
        for picture in (liver, point, propagated, saved):
            with opened(browser.new_context(viewport=WINDOW), address) as viewer:
                viewer.patience_ms = 600_000
                picture(viewer)
                viewer.page.wait_for_timeout(8000)  # the viewer's own message is gone
                viewer.page.screenshot(path=folder / f"ohif-{picture.__name__}.png")
                print(folder / f"ohif-{picture.__name__}.png")
    return 0


def served(folder: Path, stack: ExitStack) -> str:
    """Address of a server over a throw-away Orthanc with the sample studies."""
    from processes import free_port, running

    found = installed()
    if found is None:
        raise SystemExit("Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)")
    port, own = free_port(), free_port()
    (folder / "orthanc.json").write_text(json.dumps(configuration(folder, port, found[1])))
    root = f"http://127.0.0.1:{port}"
    stack.enter_context(running([found[0], "orthanc.json"], folder, dict(os.environ), f"{root}/dicom-web/studies"))
    fill(root, folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    command = [sys.executable, "-m", "polycl.cli", "serve", "--port", str(own), "--studies", f"{root}/dicom-web"]
    variables = clean | {"POLYCL_STATE": str(folder / "state")}
    stack.enter_context(running(command, folder, variables, f"http://127.0.0.1:{own}/info/"))
    return f"http://127.0.0.1:{own}"


@cache
def organ(*parts: str) -> np.ndarray:
    """Where the liver is, or only these parts of it, in the voxel order of an axial series (LPS)."""
    labels = make_phantom(SEED, shape=SHAPE, spacing=SPACING).labels.canonical().voxels[::-1, ::-1]
    return np.isin(labels, [LABELS[part] for part in parts or ("liver", "lesion")])


def middle(viewer: Any) -> None:
    """Show in each view the slice on which the organ is largest."""
    axes = ((1, 2), (0, 2), (0, 1))
    viewer.page.evaluate(JUMP, [int(organ().sum(axis=others).argmax()) for others in axes])
    viewer.page.wait_for_timeout(2000)


def liver(viewer: Any) -> None:
    viewer.open_study(PATIENT)
    viewer.connect()
    viewer.choose("Segmentation", "polycl-liver")
    viewer.run("Segmentation")
    middle(viewer)


def point(viewer: Any) -> None:
    viewer.open_study(PATIENT)
    viewer.connect()
    viewer.tab("Point Prompts")
    viewer.choose("PointPrompts", "polycl-click")
    viewer.page.locator(".clickable-row", has_text="liver").click()
    middle(viewer)
    canvas = viewer.canvas("axial")
    shown = canvas.shown[2]
    depth = distance_transform_edt(organ("lesion")[..., shown])
    viewer.page.mouse.click(*canvas.places(np.array([[*np.unravel_index(depth.argmax(), depth.shape), shown]]))[0])
    viewer.page.wait_for_timeout(500)
    viewer.run("PointPrompts")


def propagated(viewer: Any) -> None:
    viewer.open_study(PATIENT)
    viewer.connect()
    middle(viewer)
    viewer.page.select_option("#polycl-segment", label="liver")
    viewer.page.click("#polycl-brush")
    viewer.page.locator("#polycl-brush[aria-pressed=true]").wait_for()
    _paint(viewer)
    print(viewer.press("propagate"))
    viewer.page.click("#polycl-brush")


def _paint(viewer: Any) -> None:
    """Fill the organ on the axial slice shown, stroke beside stroke, not nearer to its edge than the brush reaches."""
    canvas = viewer.canvas("axial")
    reach = distance_transform_edt(organ()[..., canvas.shown[2]], sampling=SPACING[:2]) >= BRUSH_MM
    mouse = viewer.page.mouse
    for j in np.flatnonzero(reach.any(axis=0))[:: int(BRUSH_MM / SPACING[1])]:
        row = np.flatnonzero(reach[:, j])
        for run in np.split(row, np.flatnonzero(np.diff(row) > 1) + 1):
            ends = canvas.places(np.array([[end, j, canvas.shown[2]] for end in (run[0], run[-1])]))
            mouse.move(*ends[0])
            mouse.down()
            mouse.move(*ends[1], steps=8)
            mouse.up()
    viewer.page.wait_for_timeout(1000)


def saved(viewer: Any) -> None:
    liver(viewer)
    print(viewer.press("save"))
    viewer.open_seg(PATIENT)
    viewer.show_image(int(organ().sum(axis=(0, 1))[::-1].argmax()))


if __name__ == "__main__":
    sys.exit(main())
