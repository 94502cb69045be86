"""Many readers at once: 32 clients who click, segment, save and look at the page, with 10 s of thought between.

The server runs in a process of its own over generated phantoms, no two of which have the same grid. Each reply is held
against what its client asked for: the grid of its image, the name of its label, and the mask that the same request had
when nobody else asked. Who segments takes an image that nobody has segmented, as the server remembers its results: a
phantom that lies elsewhere in space. At the end each save that was confirmed must be a version of that client's, with
the voxels that it painted. The times of clicks whose slice is in the cache are compared with those alone; then the same
for a while against MONAI Label's own server, which has none of our queue.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from polycl.errors import InputError
from polycl.phantom import make_phantom
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

CLIENTS, THINK_S, MINUTES = 32, 10.0, 5.0
BARE_MINUTES = 1.0
"""How long MONAI Label's own server is tried, at most."""
IMAGES, POINTS, ALONE = 6, 6, 60
"""Images, places to click at in each, and clicks that are timed alone."""
ALONE_THINK_S = 0.2
"""Between these, for what the server does once a click is answered."""
COPIES_A_MINUTE = 8
"""Of each image elsewhere in space, one for each time that somebody segments."""
SEGMENTER = "polycl-liver"
ACTIONS = {"click": 50, "segment": 15, "save": 15, "page": 20}
PAGES = ("/info/", "/polycl/", "/polycl/api/queue", "/polycl/api/labels", "/datastore/", "/healthz")
PATIENCE_S = 120.0
SAMPLE_S, SETTLED_S = 5.0, 60.0
"""How often memory is looked at, and how long it may rise to what this many at once need."""
SERVE = """
import sys
if sys.argv[3] == "bare":
    import polycl.server.endpoints
    polycl.server.endpoints.protect = lambda: None
from polycl.server import leave_server, run_server
run_server(sys.argv[1], port=int(sys.argv[2]))
leave_server()
"""

Point = tuple[int, int, int]
Reply = tuple[dict[str, Any], Volume]


@dataclass(frozen=True, eq=False)
class Study:
    """An image, where clients click in it, and the masks that they get alone."""

    name: str
    image: Volume
    points: list[Point]
    copies: Iterator[tuple[str, Volume]]
    """Names and grids of images with the same voxels elsewhere."""
    clicked: dict[Point, Volume] = field(default_factory=dict)
    segmented: list[Volume] = field(default_factory=list)


@dataclass
class Tally:
    """What happened, added to by all clients."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)
    volumes: list[float] = field(default_factory=list)
    saves: list[tuple[str, str, int, int]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(settings: Settings, minutes: float = MINUTES) -> dict[str, Any]:
    """Measure, print the figures and return them."""
    with tempfile.TemporaryDirectory() as folder:
        ours = measure(Path(folder, "ours"), settings, minutes, bare=False)
        bare = measure(Path(folder, "bare"), settings, min(minutes, BARE_MINUTES), bare=True)
    figures = {"clients": CLIENTS, "think_s": THINK_S, "ours": ours, "monai_label": bare}
    print(f"load: {CLIENTS} clients, {THINK_S:.0f} s of thought, {minutes:g} min")  # noqa: T201
    for name, row in (("polycl serve", ours), ("MONAI Label's server", bare)):
        print(  # noqa: T201
            f"  {name}: {row['requests']} requests ({row['done']}); 5xx but 503: {row['failed']}, 503: {row['busy']}, "
            f"lost: {row['lost']}, mixed up: {row['mixed_up']}; "
            f"cached clicks, p95: {row['alone_p95_ms']:.0f} ms alone, {row['load_p95_ms']:.0f} ms under load "
            f"({row['ratio']:.1f} times; median {row['alone_median_ms']:.0f} and {row['load_median_ms']:.0f} ms); "
            f"volumes, median {row['volume_median_s']:.1f} s; "
            f"memory {row['memory_alone_mib']:.0f} MiB alone, {row['memory_start_mib']:.0f} after a minute of load, "
            f"{row['memory_end_mib']:.0f} at the end ({row['memory_growth']:+.0%})"
        )
        for line in row["first_wrong"]:
            print(f"    {line}")  # noqa: T201
    return figures


def measure(folder: Path, settings: Settings, minutes: float, *, bare: bool) -> dict[str, Any]:
    """One server under load."""
    studies = make_studies(folder / "studies", max(1, round(COPIES_A_MINUTE * minutes)))
    tally = Tally()
    with server(folder, settings, bare=bare) as (address, process):
        clicker = clicking_model(address)
        alone = warm_up(address, clicker, studies)
        memory = [process.memory_info().rss]
        until = time.monotonic() + minutes * 60
        clients = [Client(address, number, clicker, studies, tally) for number in range(CLIENTS)]
        threads = [threading.Thread(target=one.work, args=(until,)) for one in clients]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(SAMPLE_S)
            memory.append(process.memory_info().rss)
    kept = lost_saves(folder / "studies", tally.saves)
    return summary(tally, alone, memory) | {"lost": kept + tally.statuses[0]}


def summary(tally: Tally, alone: list[float], memory: list[int]) -> dict[str, Any]:
    """Figures of one server."""
    load = tally.clicks or [float("nan")]
    settled = memory[min(round(SETTLED_S / SAMPLE_S), len(memory) - 1)]
    return {
        "requests": sum(tally.statuses.values()),
        "done": ", ".join(f"{count} {name}" for name, count in sorted(tally.done.items())),
        "failed": sum(count for status, count in tally.statuses.items() if status >= 500 and status != 503),
        "busy": tally.statuses[503],
        "refused": sum(count for status, count in tally.statuses.items() if 400 <= status < 500),
        "mixed_up": len(tally.wrong),
        "first_wrong": tally.wrong[:5],
        "alone_p95_ms": p95(alone) * 1e3,
        "load_p95_ms": p95(load) * 1e3,
        "ratio": p95(load) / p95(alone),
        "alone_median_ms": statistics.median(alone) * 1e3,
        "load_median_ms": statistics.median(load) * 1e3,
        "volume_median_s": statistics.median(tally.volumes or [float("nan")]),
        "load_clicks": len(tally.clicks),
        "memory_alone_mib": memory[0] / 2**20,
        "memory_start_mib": settled / 2**20,
        "memory_end_mib": statistics.median(memory[-3:]) / 2**20,
        "memory_growth": statistics.median(memory[-3:]) / settled - 1,
    }


class Client:
    """One reader, who does one thing after the other and holds each answer against the question."""

    def __init__(self, address: str, number: int, clicker: str, studies: list[Study], tally: Tally) -> None:
        self.name = f"reader-{number}"
        self._draw = random.Random(number)
        self._clicker, self._studies, self._tally = clicker, studies, tally
        self._http = httpx.Client(
            base_url=address, timeout=PATIENCE_S, headers={"X-Forwarded-For": f"10.0.0.{number + 1}"}
        )

    def work(self, until: float) -> None:
        """Think and act until the time is over."""
        actions = {"click": self.click, "segment": self.segment, "save": self.save, "page": self.page}
        time.sleep(self._draw.uniform(0, THINK_S))
        while time.monotonic() < until:
            chosen = self._draw.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            try:
                done = actions[chosen](self._draw.choice(self._studies))
            except httpx.HTTPError:  # no answer at all
                self._count(0)
            except Exception as error:
                self._wrong(f"{chosen}: the reply cannot be read: {type(error).__name__}: {error}")
            else:
                with self._tally.lock:
                    self._tally.done[chosen] += done
            time.sleep(self._draw.expovariate(1 / THINK_S))

    def click(self, study: Study) -> bool:
        """A click in a place that was clicked before; the mask is the one of then, under the name asked for."""
        point, label = self._draw.choice(study.points), f"{self.name}-{self._draw.randrange(10**6)}"
        started = time.perf_counter()
        answer = clicked(self._http, self._clicker, study, point, label, self.name)
        seconds = time.perf_counter() - started
        if not self._count(answer.status_code):
            return False
        params, mask = parsed(answer)
        if params["label_names"] != {label: 1}:
            self._wrong(f"click: asked for {label}, got {params['label_names']}")
        self._compare("click", mask, study.clicked[point], study.name, study.image)
        if params.get("cached"):
            with self._tally.lock:
                self._tally.clicks.append(seconds)
        return True

    def segment(self, study: Study) -> bool:
        """The whole volume, of an image that nobody has segmented yet."""
        with self._tally.lock:
            name, grid = next(study.copies)
        started = time.perf_counter()
        answer = segmented(self._http, name, self.name)
        seconds = time.perf_counter() - started
        if not self._count(answer.status_code):
            return False
        with self._tally.lock:
            self._tally.volumes.append(seconds)
        self._compare("segment", parsed(answer)[1], study.segmented[0], name, grid)
        return True

    def save(self, study: Study) -> bool:
        """A box of a size that is drawn, and read again: its version has just that many voxels."""
        voxels = np.zeros(study.image.shape, np.uint8)
        sides = [self._draw.randrange(2, size) for size in voxels.shape]
        voxels[: sides[0], : sides[1], : sides[2]] = 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "label.nii.gz")
            write_volume(study.image.with_voxels(voxels), path)
            answer = self._http.put(
                "/datastore/label",
                params={"image": study.name, "tag": "final"},
                data={"params": json.dumps({"label_info": [{"name": "liver"}], "client_id": self.name})},
                files={"label": (path.name, path.read_bytes())},
            )
        if not self._count(answer.status_code):
            return False
        told = answer.json()
        if told["image"] != study.name or told.get("voxels", {"liver": int(voxels.sum())})["liver"] != voxels.sum():
            self._wrong(f"save: {study.name} was sent, {told['image']} with {told.get('voxels')} is confirmed")
        if "version" in told:  # MONAI Label's own server keeps none
            with self._tally.lock:
                self._tally.saves.append((study.name, self.name, int(told["version"]), int(voxels.sum())))
        return True

    def page(self, study: Study) -> bool:
        """A page, or what one is made of."""
        return self._count(self._http.get(self._draw.choice(PAGES)).status_code)

    def _compare(self, what: str, mask: Volume, expected: Volume, name: str, grid: Volume) -> None:
        if not mask.same_grid(grid):
            self._wrong(f"{what}: the mask is not on the grid of {name}")
        elif (mask.voxels != expected.voxels).sum() > 0.01 * max(1, int((expected.voxels > 0).sum())):
            self._wrong(f"{what}: not the mask that {name} has alone")

    def _count(self, status: int) -> bool:
        with self._tally.lock:
            self._tally.statuses[status] += 1
        return status == 200

    def _wrong(self, text: str) -> None:
        with self._tally.lock:
            self._tally.wrong.append(text)


def make_studies(folder: Path, copies: int) -> list[Study]:
    """Images of different patients and grids, written to `folder`, with places in their livers.

    And `copies` of each elsewhere in space.
    """
    folder.mkdir(parents=True)
    studies = []
    for number in range(IMAGES):
        phantom = make_phantom(number, shape=(112 + 8 * number, 120, 20 + number), spacing=(3.0, 3.0, 8.0))
        write_volume(phantom.image, folder / f"patient-{number}.nii.gz")
        inside = np.argwhere(phantom.labels.voxels == 1)
        chosen = np.linspace(0, len(inside) - 1, POINTS + 2).astype(int)[1:-1]
        image = read_volume(folder / f"patient-{number}.nii.gz")
        points = [tuple(map(int, inside[at])) for at in chosen]
        elsewhere = [copied(image, number, 1.0 + copy, folder) for copy in range(copies)]
        studies.append(Study(f"patient-{number}", image, points, itertools.cycle(elsewhere)))
    return studies


def copied(image: Volume, number: int, shift: float, folder: Path) -> tuple[str, Volume]:
    """Name and grid of a file in `folder` with the voxels of `image`, `shift` mm to the right."""
    affine = image.affine.copy()
    affine[0, 3] += shift
    name, copy = f"patient-{number}-{shift:.0f}", Volume(image.voxels, affine)
    write_volume(copy, folder / f"{name}.nii.gz")
    return name, copy


@contextmanager
def server(folder: Path, settings: Settings, *, bare: bool) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server over `folder/studies`, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    ours = {"STATE": folder / "state", "DEVICE": settings.device, "LABEL_VERSIONS": 100_000, "SCORE_AHEAD": False}
    ours |= {"WEIGHTS": settings.weights} if settings.weights else {}
    environment = clean | {f"POLYCL_{name}": str(value) for name, value in ours.items()}
    arguments = [str(folder / "studies"), str(port), "bare" if bare else "ours"]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{address}/readyz", timeout=PATIENCE_S).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    last = (folder / "output.txt").read_text().strip().splitlines()[-1:]
                    raise InputError("the server did not start", hint="".join(last)) from None
                time.sleep(0.5)
        yield address, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def clicking_model(address: str) -> str:
    """The model that answers clicks on one slice."""
    models = httpx.get(f"{address}/info/", timeout=PATIENCE_S).json()["models"]
    return next(name for name, told in models.items() if told["type"] == "deepgrow" and told["dimension"] == 2)


def warm_up(address: str, clicker: str, studies: list[Study]) -> list[float]:
    """Ask everything once, keep the answers as what is right, and time clicks that nobody disturbs, in seconds."""
    seconds: list[float] = []
    with httpx.Client(base_url=address, timeout=600) as http:
        for study in studies:
            study.segmented.append(parsed(segmented(http, study.name, "alone"))[1])
            for point in study.points:
                study.clicked[point] = parsed(clicked(http, clicker, study, point, "x", "alone"))[1]
        http.get("/polycl/api/queue")
        for number in range(ALONE):
            time.sleep(ALONE_THINK_S)
            study = studies[number % IMAGES]
            started = time.perf_counter()
            answer = clicked(http, clicker, study, study.points[number % POINTS], "x", "alone")
            if parsed(answer)[0].get("cached"):
                seconds.append(time.perf_counter() - started)
    return seconds


def clicked(http: httpx.Client, model: str, study: Study, point: Point, label: str, who: str) -> httpx.Response:
    """Ask for what is at a point."""
    params = {"foreground": [list(point)], "label": label, "client_id": who, "result_extension": ".nii.gz"}
    return http.post(f"/infer/{model}", params={"image": study.name}, data={"params": json.dumps(params)})


def segmented(http: httpx.Client, image: str, who: str) -> httpx.Response:
    """Ask for the whole volume."""
    params = {"client_id": who, "result_extension": ".nii.gz"}
    return http.post(f"/infer/{SEGMENTER}", params={"image": image}, data={"params": json.dumps(params)})


def parsed(answer: httpx.Response) -> Reply:
    """Params and mask of a reply that has both."""
    answer.raise_for_status()
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    params, image = message_from_bytes(head + answer.content).get_payload()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.nii.gz")
        path.write_bytes(image.get_payload(decode=True))
        return json.loads(params.get_payload()), read_volume(path, kind="label")


def lost_saves(studies: Path, saves: list[tuple[str, str, int, int]]) -> int:
    """How many saves that were confirmed are no version of that client's with that many voxels."""
    lost = 0
    for image, who, version, voxels in saves:
        folder = studies / "label_versions" / "final" / image / f"{version:06d}"
        try:
            record = json.loads((folder / "record.json").read_text())
            label = read_volume(next(folder.glob("label.*")), kind="label")
        except (OSError, StopIteration):
            lost += 1
            continue
        lost += record["annotator"] != who or int((label.voxels > 0).sum()) != voxels
    return lost


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return float(np.percentile(values, 95)) if values else float("nan")
