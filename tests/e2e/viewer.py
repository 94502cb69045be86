"""OHIF in a browser, worked as a reader works it, and what it holds and shows."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, Request, Response

SHOTS = Path(__file__).resolve().parents[2] / "out" / "e2e"
CHROMIUM = "/usr/bin/chromium"
SWITCHES = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""By the last one there are no other hosts. A gate for each request would do too, and turn the browser's cache off."""
SLOW_MS = 180_000
"""For what may take long beside other work on a small machine: the first paint, an inference."""
PLANES = {"axial": 2, "sagittal": 0, "coronal": 1}
"""The views of the MONAI Label mode, and the axis of an axial series that each cuts."""

LOADED = """() => window.cornerstone?.getRenderingEngines()[0]?.getViewports().length >= 3
    && cornerstone.cache.getVolumes().some(volume => volume.loadStatus?.loaded)"""
LABELMAP = """() => {
    const service = services.segmentationService;
    const id = service.getActiveSegmentation(services.viewportGridService.getActiveViewportId())?.segmentationId;
    const volume = id && service.getLabelmapVolume(id);
    if (!volume) return null;
    const voxels = volume.voxelManager.getCompleteScalarDataArray();
    let text = '';
    for (let at = 0; at < voxels.length; at += 8192) text += String.fromCharCode(...voxels.subarray(at, at + 8192));
    const segments = Object.values(service.getSegmentation(id).segments);
    const names = segments.map(segment => [segment.segmentIndex, segment.label]);
    return { voxels: btoa(text), shape: [...volume.dimensions], names };
}"""
CANVAS = """plane => {
    const viewport = cornerstone.getRenderingEngines()[0].getViewport(`mpr-${plane}`);
    const { imageData } = cornerstone.cache.getVolume(viewport.getAllVolumeIds()[0]);
    const at = index => viewport.worldToCanvas(imageData.indexToWorld(index));
    const { left, top } = viewport.canvas.getBoundingClientRect();
    return {
        shown: imageData.worldToIndex(viewport.getCamera().focalPoint).map(Math.round), left, top,
        origin: at([0, 0, 0]), steps: [at([1, 0, 0]), at([0, 1, 0]), at([0, 0, 1])],
    };
}"""


@dataclass
class Viewer:
    """A page of the viewer; `outside` are the requests it made to other hosts, which led nowhere."""

    page: Page
    address: str
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    patience_ms: int = SLOW_MS

    def open_study(self, patient: str) -> None:
        """From the study list into the MONAI Label mode."""
        self._open(patient, "MONAI Label")
        self.wait_until_loaded()
        self._hide_notice()

    def open_seg(self, patient: str) -> None:
        """From the study list into the Basic Viewer, and there the newest segmentation of the PACS over its images."""
        self._open(patient, "Basic Viewer")
        self.listed_segs().last.wait_for(timeout=self.patience_ms)
        self._hide_notice()
        self.listed_segs().last.dblclick()
        self.page.locator("[data-cy=yes-hydrate-btn]").click(timeout=self.patience_ms)
        self.page.wait_for_timeout(3000)

    def listed_segs(self) -> Locator:
        """The segmentations in the viewer's own list of series."""
        return self.page.locator("[data-cy*=thumbnail]", has_text="SEG")

    def _open(self, patient: str, mode: str) -> None:
        self.page.goto(f"{self.address}/ohif/", timeout=self.patience_ms)
        self.page.get_by_text(patient).first.click(timeout=self.patience_ms)
        self.page.get_by_text(mode).first.click()

    def _hide_notice(self) -> None:
        notice = self.page.get_by_role("button", name="Confirm and Hide")
        if notice.is_visible():
            notice.click()

    def wait_until_loaded(self) -> None:
        self.page.locator("#monailabelServerURL").wait_for(timeout=self.patience_ms)
        self.page.wait_for_function(LOADED, timeout=self.patience_ms)

    def connect(self) -> None:
        """Press the button beside the server's address."""
        self.page.locator(".settingsTable button").click()
        self.page.get_by_text("Auto-Segmentation").wait_for(timeout=self.patience_ms)
        self.page.wait_for_function(f"({LABELMAP})() !== null", timeout=self.patience_ms)
        self.page.wait_for_timeout(1500)  # the panel itself waits a second for its label map, then colours it

    def tab(self, name: str) -> None:
        self.page.locator(".tab-label", has_text=name).click()

    def choose(self, title: str, model: str) -> None:
        """Choose the model of the open tab whose button is titled so."""
        selector = self.page.locator(".modelSelector", has=self.page.locator(f"button[title='Run {title}']"))
        selector.locator("select").select_option(model)

    def run(self, title: str) -> Response:
        """Press the Run of the open tab; returns the reply, once it is painted."""
        button = self.page.locator(f"button[title='Run {title}']")
        with self.page.expect_response(lambda reply: "/infer/" in reply.url, timeout=self.patience_ms) as reply:
            button.click()
        reply.value.finished()
        self.page.wait_for_timeout(1500)
        return reply.value

    def press(self, name: str) -> str:
        """Press one of our buttons and return what the status says when it is done."""
        self.page.click(f"#polycl-{name}")
        return self.done()

    def done(self) -> str:
        """Wait until our buttons can be pressed again; returns what the status says."""
        self.page.wait_for_function("!document.getElementById('polycl-save').disabled", timeout=self.patience_ms)
        return self.page.inner_text("#polycl-status")

    def labelmap(self) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """The voxels [column, row, slice] of the active segmentation, and the names of its segments."""
        held = self.page.evaluate(LABELMAP)
        voxels = np.frombuffer(base64.b64decode(held["voxels"]), np.uint8).reshape(held["shape"], order="F")
        return voxels, dict(held["names"])

    def canvas(self, plane: str) -> "Canvas":
        """Where one of the three views is."""
        return Canvas(**self.page.evaluate(CANVAS, plane))

    def scroll_to(self, plane: str, index: int) -> None:
        """Turn the wheel over a view of an axial series until it shows the slice."""
        canvas, turn = self.canvas(plane), -100
        self.page.mouse.move(canvas.left + 60, canvas.top + 250)
        missing = abs(index - canvas.shown[PLANES[plane]])
        for _ in range(500):
            if missing == 0:
                return
            self.page.mouse.wheel(0, turn)
            self.page.wait_for_timeout(150)
            before, missing = missing, abs(index - self.canvas(plane).shown[PLANES[plane]])
            turn = -turn if missing > before else turn
        raise TimeoutError(f"the wheel does not reach slice {index}")

    def show_image(self, number: int) -> None:
        """Scroll the Basic Viewer to an image of its stack."""
        self.page.evaluate(f"cornerstone.getRenderingEngines()[0].getViewports()[0].setImageIdIndex({number})")
        self.page.wait_for_timeout(1500)

    def pixels(self) -> NDArray[np.int16]:
        """What is on the screen: [y, x, colour]."""
        shot = Image.open(io.BytesIO(self.page.screenshot()))
        return np.asarray(shot.convert("RGB")).astype(np.int16)

    def keep(self, name: str) -> None:
        """Keep a screenshot for people to look at."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


@dataclass(frozen=True)
class Canvas:
    """A view: the voxel in its middle, its place in the window, where on it voxel (0, 0, 0) and its neighbours lie."""

    shown: list[int]
    left: float
    top: float
    origin: list[float]
    steps: list[list[float]]

    def places(self, voxels: NDArray[np.integer]) -> NDArray[np.float64]:
        """Window coordinates (x, y) of the centres of voxels [n, 3]."""
        steps = np.array(self.steps) - self.origin
        return voxels @ steps + self.origin + (self.left, self.top)

    def colours(self, voxels: NDArray[np.integer], pixels: NDArray[np.int16]) -> NDArray[np.int16]:
        """What `pixels` of the screen show at voxels [n, 3] of the plane that is shown: [n, 3]."""
        x, y = self.places(voxels).round().astype(int).T
        return pixels[y, x]


@contextmanager
def opened(context: BrowserContext, address: str) -> Iterator[Viewer]:
    """A new window without cookies."""
    context.clear_cookies()
    viewer = Viewer(context.new_page(), address)

    def asked(request: Request) -> None:
        if not request.url.startswith((f"{address}/", "blob:", "data:")):
            viewer.outside.append(request.url)

    viewer.page.on("request", asked)
    viewer.page.on("pageerror", lambda error: viewer.errors.append(str(error)))
    try:
        yield viewer
    finally:
        viewer.page.close()


def launched(playwright: Playwright) -> Browser:
    """Debian's Chromium without a window, drawing on the processor."""
    return playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(SWITCHES))


def segment_voxels(viewer: Viewer, name: str) -> NDArray[np.bool_]:
    """Where the segment called `name` is in the label map."""
    voxels, names = viewer.labelmap()
    index = next(index for index, label in names.items() if label == name)
    found: NDArray[Any] = voxels == index
    return found
