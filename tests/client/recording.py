"""The requests of 3D Slicer's two modules, recorded as their own code sends them.

Requests pass through a recorder on their way to a running server. What differs at each run (temporary files,
boundaries, the number of a session) is replaced by something fixed. `RECORD=1 pytest
tests/client/test_slicer_requests.py` writes the folder `requests` anew.
"""

import base64
import http.client
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlparse

import numpy as np
from plugin import Panel, Reviewer

from polycl.phantom import make_phantom
from polycl.volume import Volume, write_volume

FOLDER = Path(__file__).parent / "requests"
SHAPE, AXIAL = (64, 52, 9), np.diag([-4.0, -4.0, 5.0, 1.0])
POINT, OTHER = (31, 37, 4), (16, 15, 4)
BOX = [50, 12, 8, 40, 7, 1]
OWN = "Own CT"
SCRIBBLES = ["liver", "background_scribbles", "foreground_scribbles"]
SESSION = "{session}"
TEMPORARY = re.compile(rb'filename="(?:/[^"]+/)?tmp[^".]+(\.[^"]+)"')
TIME = re.compile(rb'(editTime(?:%22%3A\+|": ))\d+')
SECONDS = 120


@dataclass(frozen=True)
class Part:
    """A part of a form: its header lines, and its text or (base64) bytes."""

    headers: list[str]
    text: str | None = None
    data: str | None = None

    @property
    def content(self) -> bytes:
        return self.text.encode() if self.text is not None else base64.b64decode(self.data or "")

    @property
    def name(self) -> str:
        found = re.search(r'name="(\w+)"', self.headers[0])
        assert found is not None
        return found[1]


@dataclass(frozen=True)
class Recorded:
    """A request: `parts` if it is a form, else `text`."""

    method: str
    path: str
    content_type: str = ""
    text: str = ""
    parts: list[Part] = field(default_factory=list)
    end: str = ""

    @classmethod
    def of(cls, method: str, path: str, content_type: str, body: bytes) -> "Recorded":
        boundary = re.search("boundary=(.+)", content_type)
        if boundary is None:
            return cls(method, path, content_type, body.decode())
        first, *rest, end = body.split(f"--{boundary[1]}".encode())
        assert first == b""
        content_type = "multipart/form-data; boundary=limit"
        recorded = cls(method, path, content_type, parts=[_part(one) for one in rest], end=end.decode())
        assert recorded.body == body.replace(boundary[1].encode(), b"limit"), "not every byte would be sent again"
        return recorded

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Recorded":
        return cls(**{**content, "parts": [Part(**part) for part in content["parts"]]})

    @property
    def body(self) -> bytes:
        if not self.parts:
            return self.text.encode()
        parts = ("\r\n".join(["--limit", *one.headers, "", ""]).encode() + one.content for one in self.parts)
        return b"\r\n".join(parts) + b"\r\n--limit" + self.end.encode()

    @property
    def asks(self) -> tuple[Any, ...]:
        """What must stay the same: all but the content of files."""
        fields = {one.name: json.loads(one.text) for one in self.parts if one.name == "params" and one.text}
        return self.method, self.path, [one.name for one in self.parts], fields, not self.parts and self.text


def _part(raw: bytes) -> Part:
    head, _, content = raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    content = content.removesuffix(b"\r\n")
    headers = head.decode().split("\r\n")
    if "filename" in headers[0]:
        return Part(headers, data=base64.b64encode(content).decode())
    return Part(headers, text=content.decode())


@dataclass
class Recorder:
    """Notes requests under the scene that is played."""

    scene: str = ""
    scenes: dict[str, list[Recorded]] = field(default_factory=dict)
    session: str = ""

    def note(self, method: str, path: str, content_type: str, body: bytes, reply: bytes) -> None:
        if path == "/auth/" and self.scene != "connect":
            return  # before each
        body = TEMPORARY.sub(rb'filename="/home/reader/Slicer/saved\1"', body)
        body = TIME.sub(rb"\g<1>1700000000", body)
        if self.session:
            path = path.replace(self.session, SESSION)
        if method == "PUT" and path == "/session/":
            self.session = json.loads(reply)["session_id"]
        self.scenes.setdefault(self.scene, []).append(Recorded.of(method, path, content_type, body))


@contextmanager
def recording(target: str) -> Iterator[tuple[str, Recorder]]:
    """An address that passes all on to `target`, and what was recorded."""
    recorder, host = Recorder(), urlparse(target).netloc

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kind = self.headers.get("content-type", "")
            onward = http.client.HTTPConnection(host, timeout=SECONDS)
            onward.request(self.command, self.path, body, {"content-type": kind} if kind else {})
            answer = onward.getresponse()
            content = answer.read()
            recorder.note(self.command, self.path, kind, body, content)
            self.send_response(answer.status)
            for key in ("content-type", "content-disposition"):
                if value := answer.headers.get(key):
                    self.send_header(key, value)
            self.send_header("content-length", str(len(content)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        def log_message(self, *message: Any) -> None:
            """Not told."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", recorder
    finally:
        server.shutdown()
        server.server_close()


def files(folder: Path) -> dict[str, Path]:
    """What 3D Slicer would save: an image of the user's own, labels for it, and scribbles on the image `axial`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = make_phantom(1, shape=(24, 20, 6), spacing=(16.0, 16.0, 30.0)).image
    labels = np.zeros(own.shape, np.uint8)
    labels[6:12, 5:11, 2:4], labels[15:18, 9:13, 3] = 1, 2
    label = own.with_voxels(labels)
    painted = np.zeros(SHAPE, np.uint8)
    painted[POINT[0] - 3 : POINT[0] + 4, POINT[1] - 3 : POINT[1] + 4, POINT[2]] = 3
    names = {"liver": 1, "spleen": 2}
    kept: dict[str, tuple[Volume, dict[str, int] | None]] = {
        "own.nii.gz": (own, None),
        "label.nii.gz": (label, None),
        "label.seg.nrrd": (label, names),
        "edited.seg.nrrd": (own.with_voxels(np.where(labels == 2, 0, labels).astype(np.uint8)), {"Segment_1": 1}),
        "scribbles.nii.gz": (Volume(painted, AXIAL), None),
    }
    for name, (volume, segments) in kept.items():
        write_volume(volume, folder / name, names=segments)
    (folder / "edited.seg.nrrd").rename(folder / "edited.nrrd")  # the reviewer's, which has lost the names
    return {file.name: file for file in folder.iterdir()}


Scene = Callable[[Panel, dict[str, Path]], Any]


def connect(panel: Panel, saved: dict[str, Path]) -> None:
    panel.connect()
    assert panel.widget.isTrainingRunning() is False


def next_sample(panel: Panel, saved: dict[str, Path]) -> None:
    panel.press("onNextSampleButton", strategyBox="first")


def next_sample_elsewhere(panel: Panel, saved: dict[str, Path]) -> None:
    """As on another machine than the server's, where the server's file is not found."""
    panel.widget.samples.clear()
    exists = os.path.exists
    with patch("os.path.exists", lambda path: exists(path) and not str(path).endswith("axial.nii.gz")):
        panel.press("onNextSampleButton", strategyBox="first")


def skip(panel: Panel, saved: dict[str, Path]) -> None:
    """There is no button for it: nothing is submitted, and the next sample asked for."""
    panel.settings["MONAILabel/autoRunSegmentationOnNextSample"] = False
    given = []
    for _ in range(2):
        panel.press("onNextSampleButton", strategyBox="polycl-mixed")
        given.append(panel.widget.current_sample["id"])
    assert given[0] != given[1]
    panel.settings.clear()


def auto_segmentation(panel: Panel, saved: dict[str, Path]) -> None:
    panel.open("axial")
    panel.press("onClickSegmentation", segmentationModelSelector="tiny")


def smart_edit(panel: Panel, model: str, *points: tuple[int, int, int], **placed: Any) -> None:
    panel.open("axial")
    panel.segments(["liver", "spleen"], placed.get("label", "liver"))
    panel.points(points, placed.get("outside", ()))
    panel.roi(placed.get("roi"))
    panel.press("onClickDeepgrow", list(points[-1]) if points else None, deepgrowModelSelector=model)
    panel.roi(None)


def smart_edit_2d(panel: Panel, saved: dict[str, Path]) -> None:
    smart_edit(panel, "polycl-click", POINT)
    smart_edit(panel, "polycl-click", POINT, outside=[OTHER])
    smart_edit(panel, "polycl-click", (*OTHER[:2], 5), (*POINT[:2], 0))  # on slice 0 the points of all are sent


def smart_edit_box(panel: Panel, saved: dict[str, Path]) -> None:
    panel.offset = 20.2
    smart_edit(panel, "polycl-click", roi=BOX)
    smart_edit(panel, "polycl-propagate", roi=BOX)


def smart_edit_3d(panel: Panel, saved: dict[str, Path]) -> None:
    panel.widget.resetLabelState = True
    smart_edit(panel, "polycl-propagate", POINT, label="spleen")
    smart_edit(panel, "polycl-propagate", POINT, outside=[OTHER], label="spleen")


def options(panel: Panel, saved: dict[str, Path]) -> None:
    panel.options("infer", "polycl-propagate", guide="none", window="lung", size="256")
    smart_edit(panel, "polycl-propagate", POINT)
    panel.options("", "")
    panel.connect()


def scribbles(panel: Panel, saved: dict[str, Path]) -> None:
    panel.open("axial")
    panel.segments(SCRIBBLES)
    panel.saves = saved["scribbles.nii.gz"]
    panel.press("onUpdateScribbles", scribblesMethodSelector="polycl-propagate-painted")
    panel.roi(BOX)
    panel.press("onUpdateScribbles", scribblesMethodSelector="polycl-propagate-painted")
    panel.roi(None)


def session(panel: Panel, saved: dict[str, Path]) -> None:
    panel.open(OWN, session=True)
    panel.saves = saved["own.nii.gz"]
    for _ in range(2):  # the session is made, then found again
        panel.press("onClickSegmentation", segmentationModelSelector="tiny")
    panel.logic.remove_session(panel.widget.current_sample["session_id"])


def submit(panel: Panel, saved: dict[str, Path]) -> None:
    panel.open(OWN)
    panel.saves = saved["own.nii.gz"]
    panel.press("onUploadImage")
    panel.open(OWN)
    panel.segments(["background", "liver", "spleen"])
    panel.saves = saved["label.nii.gz"]
    panel.press("onSaveLabel", segmentationModelSelector="tiny")


def submit_seg_nrrd(panel: Panel, saved: dict[str, Path]) -> None:
    panel.open(OWN)
    panel.segments(["liver", "spleen"])
    panel.settings["MONAILabel/fileExtension"] = panel.widget.file_ext = ".seg.nrrd"
    panel.settings["MONAILabel/allowOverlappingSegments"] = True
    panel.saves = saved["label.seg.nrrd"]
    panel.press("onSaveLabel", segmentationModelSelector="tiny")
    panel.settings.clear()
    panel.widget.file_ext = ".nii.gz"


def train(panel: Panel, saved: dict[str, Path]) -> None:
    panel.options("train", "polycl", segmenter="tiny", steps="100000")
    panel.press("onTraining", trainerBox="polycl")
    assert panel.widget.isTrainingRunning() is True
    assert panel.logic.train_status(check_if_running=False)["status"] in ("SUBMITTED", "RUNNING")
    panel.press("onStopTraining")


def reviewer(panel: Panel, saved: dict[str, Path]) -> None:
    module = Reviewer(panel.address)
    image = module.images()[OWN]
    assert image.getStatus() == ""
    module.judge(image, "final", "flagged", "hard", "dr", "too small")
    module.controller.reuqestSegmentation(OWN, "final")
    version = module.save(image, saved["edited.nrrd"], "dr")
    module.judge(image, version, "approved", "easy", "dr", "mended")
    module.controller.deleteLabelByVersionTag(OWN, version)


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        connect,
        next_sample,
        next_sample_elsewhere,
        skip,
        auto_segmentation,
        smart_edit_2d,
        smart_edit_box,
        smart_edit_3d,
        options,
        scribbles,
        session,
        submit,
        submit_seg_nrrd,
        reviewer,
        train,
    )
}
"""In the order in which they can be played."""


def play(address: str, folder: Path) -> tuple[dict[str, list[Recorded]], Panel]:
    """Every scene, at the server at `address`. Returns what was sent, and the panel with what it showed."""
    saved = files(folder / "saved")
    with recording(address) as (between, recorder):
        panel = Panel(between, folder / "slicer")
        for name, scene in SCENES.items():
            recorder.scene = name
            scene(panel, saved)
    return recorder.scenes, panel


def write(scenes: dict[str, list[Recorded]]) -> None:
    """A file for each scene."""
    FOLDER.mkdir(exist_ok=True)
    for name, sent in scenes.items():
        (FOLDER / f"{name}.json").write_text(json.dumps([asdict(one) for one in sent], indent=1) + "\n")


def read(name: str) -> list[Recorded]:
    """The requests of a scene."""
    return [Recorded.read(one) for one in json.loads((FOLDER / f"{name}.json").read_text())]
