"""The page at /polycl/ in Chromium: every state, by mouse, keyboard and accessibility tree, on a phone and a desk."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from processes import environment, free_port, process
from viewer import SHOTS

from polycl import checkpoints
from polycl.learning.runs import Event, Request, Run, Runs
from polycl.learning.versions import Figures, Version, Versions
from polycl.phantom import LABELS, make_phantom
from polycl.volume import write_volume

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SLOW_MS = 200_000
"""A small machine with other work takes long to start the process that trains."""
REFUSED = "not better: mean Dice 0.912 -> 0.909 on 3 patients, and 0.005 more is needed"
BETTER = "better: mean Dice 0.912 -> 0.941 on 3 patients"
FAILED = "there is no label to train on: save some that show liver or spleen"
STUDIES = 5
PHONE, DESK = (360, 740), (1280, 900)

CONTRAST = """() => {
    const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
        .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.disabled) continue;
        const style = getComputedStyle(node);
        const colour = parse(node.closest('svg') ? style.fill : style.color);
        const [a, b] = [colour, ground(node)].map(light).sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) low.push([walker.currentNode.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
    }
    return low;
}"""
NAMED = "button, a, input, select, summary, img, progress, dialog, [role=img], [role=region], [role=group]"
NAMELESS = """(named) => [...document.querySelectorAll(named)]
    .filter(node => node.checkVisibility())
    .filter(node => !(node.getAttribute('aria-label') || node.alt || node.textContent.trim()
        || node.labels?.[0]?.textContent.trim()))
    .map(node => node.outerHTML.slice(0, 120))"""


@dataclass
class Site:
    """A running server, what its state folder holds, and what went wrong in browsers that visited it."""

    address: str
    state: Path
    errors: list[str] = field(default_factory=list)

    @property
    def versions(self) -> Versions:
        return Versions(self.state / "models" / "versions")

    def visit(self, browser: Browser, size: tuple[int, int] = DESK, **options: str) -> Page:
        """A new window with the page, all parts drawn."""
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        page = context.new_page()
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._check(request.url))
        page.goto(f"{self.address}/polycl/")
        expect(page.locator("[aria-busy]")).to_have_count(0, timeout=SLOW_MS)
        return page

    def _check(self, url: str) -> None:
        if not url.startswith(self.address):
            self.errors.append(f"asked for {url}")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[dict[str, Site]]:
    """A server with studies, labels, runs and versions, and one with nothing."""
    with contextlib.ExitStack() as stack:
        waits, made = [], {}
        for name in ("full", "empty"):
            folder, port = tmp_path_factory.mktemp(name), free_port()
            (folder / "watch").mkdir()
            (folder / "studies").mkdir()
            site = made[name] = Site(f"http://127.0.0.1:{port}", folder / "state")
            if name == "full":
                furnish(site, folder / "studies", tiny_checkpoint)
            variables = environment(folder, tiny_checkpoint) | {"POLYCL_SCORE_MODEL": "tiny", "POLYCL_LEARN_NICE": "0"}
            command = [sys.executable, "-m", "polycl.cli", "serve", "--port", str(port)]
            command += ["--studies", str(folder / "studies")]
            waits.append(stack.enter_context(process(command, folder, variables, f"{site.address}/info/")))
        for wait_until_it_answers in waits:
            wait_until_it_answers()
        label(made["full"])
        yield made


def furnish(site: Site, studies: Path, checkpoint: Path) -> None:
    """Studies, runs that ended in every way, and two versions, the second live."""
    for seed in range(STUDIES):
        image = make_phantom(seed, shape=(96, 80, 24), spacing=(4.0, 4.0, 12.0)).image
        write_volume(image, studies / f"phantom_{seed:03d}.nii.gz")
    (studies / "damaged.nii.gz").write_bytes(b"nothing")
    runs = Runs(site.state / "learning" / "runs")
    for events in (
        ran([], "failed", FAILED),
        ran(losses(0.93), "done", f"version 1 not published: {REFUSED}", version=1),
    ):
        play(runs, checkpoint, events)
    play(runs, checkpoint, ran(losses(0.94), "done", f"version 2 published: {BETTER}", version=2, published=True))
    for shift, after, better in ((0.1, 0.909, False), (0.2, 0.941, True)):
        number = keep(site, checkpoint, shift, after, BETTER if better else REFUSED, better)
    site.versions.publish("tiny", number, "better")


def losses(dice: float) -> list[Event]:
    at = datetime.now(UTC) - timedelta(hours=2)
    told = [
        Event(at=at, state="training", step=step, steps=150, loss=0.8 * 0.985**step + 0.02 * (step % 3), eta=60.0)
        for step in range(0, 151, 10)
    ]
    curve = [(step, 0.7 + (dice - 0.7) * (1 - 0.97**step)) for step in (0, 38, 76, 114, 150)]
    return sorted(
        [*told, *(Event(at=at, state="training", step=step, steps=150, dice=value) for step, value in curve)],
        key=lambda event: event.step or 0,
    )


def ran(events: list[Event], state: str, message: str, **last: object) -> list[Event]:
    at = datetime.now(UTC) - timedelta(hours=1)
    return [*events, Event.model_validate({"at": at, "state": state, "message": message, **last})]


def play(runs: Runs, checkpoint: Path, events: list[Event]) -> Run:
    request = Request(
        model="tiny",
        parent=0,
        weights=checkpoint,
        sha256="0" * 64,
        examples=(),
        validation=(),
        versions=runs.folder,
        keep=2,
        cache=runs.folder,
        threads=1,
    )
    run = runs.create(request)
    for event in events:
        run.add(event)
    return run


def keep(site: Site, checkpoint: Path, shift: float, after: float, reason: str, better: bool) -> int:
    header, weights = checkpoints.load(checkpoint)
    weights["decoder.head.bias"][1] += shift
    site.state.mkdir(exist_ok=True)
    file = site.state / "candidate.safetensors"
    sha256 = checkpoints.save(file, weights, header)
    version = Version(
        number=1,
        sha256=sha256,
        parent=0,
        parent_sha256="",
        run=f"run {shift}",
        created=datetime.now(UTC),
        seconds=214.0,
        blend=0.75,
        figures=Figures(before=0.912, after=after),
        publish=better,
        reason=reason,
    )
    (site.state / "models" / "versions" / "tiny").mkdir(parents=True, exist_ok=True)
    return site.versions.add("tiny", file, version).number


def label(site: Site) -> None:
    """Two labels, by two people."""
    for seed, who in ((0, "ann"), (1, "bob")):
        phantom = make_phantom(seed, shape=(96, 80, 24), spacing=(4.0, 4.0, 12.0))
        mask = phantom.labels.with_voxels((phantom.labels.voxels == LABELS["liver"]).astype(np.uint8))
        path = site.state / "label.nii"
        write_volume(mask, path)
        params = {"label_info": [{"name": "liver"}], "client_id": who, "complete": True}
        saved = httpx.put(
            f"{site.address}/datastore/label",
            params={"image": f"phantom_{seed:03d}"},
            data={"params": json.dumps(params)},
            files={"label": ("label.nii", path.read_bytes())},
            timeout=60,
        )
        assert saved.status_code == 200, saved.text


@pytest.fixture
def site(sites: dict[str, Site]) -> Iterator[Site]:
    """Nothing may have failed in the browser, and nothing may have been asked of another host."""
    yield sites["full"]
    errors, sites["full"].errors = sites["full"].errors, []
    assert errors == []


def live(site: Site) -> int:
    """The version that answers, by a segmentation."""
    reply = httpx.post(f"{site.address}/infer/tiny", params={"image": "phantom_002", "output": "json"}, timeout=60)
    return int(reply.headers["x-polycl-model"].partition("@")[2])


def test_what_to_label_next(site: Site, browser: Browser) -> None:
    page = site.visit(browser)
    queue = page.get_by_role("region", name="What to label next")
    items = queue.locator("ol > li")
    expect(items).to_have_count(STUDIES - 2, timeout=SLOW_MS)
    expect(queue).to_contain_text("phantom_000: ann works on it")
    expect(queue).to_contain_text("scored by tiny@2", timeout=SLOW_MS)
    expect(queue.get_by_role("img")).to_have_count(STUDIES - 2, timeout=SLOW_MS)
    first = items.first
    told = re.search(r"Slice (\d+) of 24, from the feet\s+(\d+) of 24 in OHIF", first.inner_text())
    assert told
    assert int(told[1]) + int(told[2]) == 25, "OHIF counts from the head"
    for image in queue.get_by_role("img").all():
        image.evaluate("node => node.scrollIntoView()")  # the list is drawn anew now and then
        expect(image).to_have_js_property("complete", True, timeout=SLOW_MS)
        assert image.evaluate("node => node.naturalWidth") > 0
    queue.get_by_text("1 image left out").click()
    expect(queue.get_by_role("table")).to_contain_text("damaged")
    page.get_by_label("Chosen by").select_option("polycl-uncertain")
    expect(queue).to_contain_text("doubts most")
    shown = first.get_by_role("heading").inner_text()
    given = httpx.post(f"{site.address}/activelearning/polycl-uncertain", json={"client_id": "cid"}, timeout=60).json()
    assert given["id"] == shown
    assert f"Slice {given['slice']['number'] + 1} of" in first.inner_text()
    expect(first).to_contain_text("cid works on it", timeout=SLOW_MS)


def test_runs_with_curves_and_reasons(site: Site, browser: Browser) -> None:
    page = site.visit(browser)
    training = page.get_by_role("region", name="Training", exact=True)
    expect(training.get_by_role("article", name="Training of tiny, failed")).to_contain_text(FAILED, ignore_case=True)
    expect(training.get_by_role("article", name="Training of tiny, not published")).to_contain_text(REFUSED)
    newest = training.get_by_role("article", name="Training of tiny, published")
    expect(newest).to_contain_text(BETTER)
    expect(newest.get_by_role("img", name=re.compile("Loss: .* at step 150"))).to_be_visible()
    expect(newest.get_by_role("img", name=re.compile("Dice .* at step 150"))).to_be_visible()
    newest.get_by_text("Figures as a table").click()
    expect(newest.get_by_role("row")).to_have_count(1 + 16 + 5)
    assert newest.locator("polyline").first.evaluate("node => node.getTotalLength()") > 100


def test_labels_by_day_and_annotator(site: Site, browser: Browser) -> None:
    page = site.visit(browser)
    labels = page.get_by_role("region", name="Labels", exact=True)
    expect(labels).to_contain_text(f"2 of {STUDIES + 1} images have a label")
    rows = labels.get_by_role("row")
    expect(rows).to_have_count(3)
    assert {row.get_by_role("cell").nth(1).inner_text() for row in rows.all()[1:]} == {"ann", "bob"}
    httpx.post(f"{site.address}/infer/tiny", params={"image": "phantom_000", "output": "json"}, timeout=60)
    assert "phantom" not in labels.inner_text()
    assert "phantom" not in page.get_by_role("region", name="Models and versions").inner_text()


def test_publish_and_roll_back(site: Site, browser: Browser) -> None:
    page = site.visit(browser)
    models = page.get_by_role("region", name="Models and versions")
    tiny = models.get_by_role("article", name="tiny")
    expect(tiny).to_contain_text("version 2 is live")
    expect(tiny).to_contain_text("0.912 → 0.941")
    expect(tiny).to_contain_text(f"Held back by the gate: {REFUSED}")
    tiny.get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog", name="Roll back tiny?")
    dialog.get_by_role("button", name="Leave it").click()
    expect(tiny).to_contain_text("version 2 is live")
    tiny.get_by_role("button", name="Roll back").click()
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("main").get_by_role("status")).to_have_text("tiny was rolled back.")
    expect(tiny).to_contain_text("version 0 is live, as it came")
    assert live(site) == 0
    tiny.get_by_role("button", name="Publish version 1 of tiny").click()
    dialog = page.get_by_role("dialog", name="Publish version 1 of tiny?")
    expect(dialog).to_contain_text("The gate held it back")
    dialog.get_by_role("button", name="Publish").click()
    expect(tiny).to_contain_text("version 1 is live")
    assert live(site) == 1
    site.versions.publish("tiny", 2, "by the command line")
    expect(tiny).to_contain_text("version 2 is live", timeout=SLOW_MS)


def test_train_and_cancel_by_keyboard(site: Site, browser: Browser) -> None:
    page = site.visit(browser)
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    training = page.get_by_role("region", name="Training", exact=True)
    form = page.get_by_role("form", name="Train on the saved labels")
    for _ in range(30):
        keys.press("Tab")
        if form.get_by_label("Segmenter").evaluate("node => node === document.activeElement"):
            break
    form.get_by_label("Segmenter").select_option("tiny")
    keys.press("Tab")
    keys.press("Control+A")
    keys.type("20000")
    keys.press("Enter")
    expect(page.get_by_role("main").get_by_role("status")).to_have_text("Training has begun.")
    running = training.get_by_role("article").first
    expect(running).to_contain_text("Cancel")
    expect(running).to_contain_text(re.compile("training, [0-9]+ of 20000 · about .* left"), timeout=SLOW_MS)
    expect(form.get_by_role("button", name="Train")).to_be_disabled()
    expect(running.get_by_role("progressbar")).to_have_attribute("value", re.compile("[0-9]+"))
    keep_pictures(browser, site, "running")
    running.get_by_role("button", name="Cancel").focus()
    page.wait_for_timeout(2500)
    expect(running.get_by_role("button", name="Cancel")).to_be_focused()
    keys.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel this run?")
    dialog.get_by_role("button", name="Cancel the run").focus()
    keys.press("Enter")
    expect(running).to_contain_text("cancelled", timeout=SLOW_MS)
    expect(form.get_by_role("button", name="Train")).to_be_enabled()


def test_pre_training_makes_an_encoder(site: Site, browser: Browser) -> None:
    (site.state.parent / "studies" / "damaged.nii.gz").write_bytes(b"nothing at all")
    page = site.visit(browser)
    page.get_by_text("Pre-train an encoder without labels").click()
    form = page.get_by_role("form", name="Pre-train an encoder")
    form.get_by_label("Like that of").select_option("tiny")
    form.get_by_label("Steps").fill("4")
    form.get_by_role("button", name="Pre-train").click()
    article = page.get_by_role("region", name="Training", exact=True).get_by_role("article").first
    expect(article).to_contain_text(re.compile(r"encoder-\d{8}-\d{6}"), timeout=SLOW_MS)
    expect(article).to_contain_text(f"was learnt from {STUDIES} images", timeout=SLOW_MS)
    expect(page.get_by_role("article", name="Encoders")).to_contain_text("encoder-", timeout=SLOW_MS)


def test_what_is_refused_says_why(sites: dict[str, Site], browser: Browser) -> None:
    page = sites["empty"].visit(browser)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("There is no label to train on")


def test_an_empty_server(sites: dict[str, Site], browser: Browser) -> None:
    page = sites["empty"].visit(browser)
    expect(page.get_by_role("region", name="What to label next")).to_contain_text("There are no images yet")
    expect(page.get_by_role("region", name="Training", exact=True)).to_contain_text("Nothing was trained here yet")
    expect(page.get_by_role("region", name="Labels", exact=True)).to_contain_text("Nobody has saved a label yet")
    expect(page.get_by_role("region", name="Cache for clicks")).to_contain_text("Nobody has clicked")
    keep_pictures(browser, sites["empty"], "empty")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_can_be_read(site: Site, browser: Browser, size: tuple[int, int], scheme: str) -> None:
    page = site.visit(browser, size, color_scheme=scheme)
    expect(page.get_by_role("region", name="What to label next")).to_contain_text("scored by", timeout=SLOW_MS)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(NAMELESS, NAMED) == []
    assert [one.inner_text() for one in page.get_by_role("heading", level=1).all()] == ["PolyCL"]
    landmarks = [page.get_by_role(role) for role in ("banner", "navigation", "main")]
    assert [one.count() for one in landmarks] == [1, 1, 1]
    for link in page.get_by_role("navigation").get_by_role("link").all():
        assert page.locator(str(link.get_attribute("href"))).count() == 1
    small = "() => [...document.querySelectorAll('button, select, input')].map(node => node.getBoundingClientRect())"
    assert all(box["height"] == 0 or box["height"] >= 24 for box in page.evaluate(small))


def keep_pictures(browser: Browser, site: Site, name: str) -> None:
    """For a person to look at, in `out/`."""
    for size, scheme in ((PHONE, "light"), (DESK, "light"), (DESK, "dark")):
        page = site.visit(browser, size, color_scheme=scheme)
        page.wait_for_timeout(500)
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"page-{name}-{size[0]}-{scheme}.png", full_page=True)
        page.context.close()


def test_pictures(site: Site, browser: Browser) -> None:
    keep_pictures(browser, site, "full")
    assert (SHOTS / "page-full-360-light.png").stat().st_size > 20_000


def test_it_works_beside_monai_labels_own_pages(site: Site) -> None:
    answer = httpx.get(f"{site.address}/polycl", follow_redirects=True)
    assert str(answer.url) == f"{site.address}/polycl/"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
