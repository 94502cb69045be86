"""A PACS in this process, that answers what a test tells it to, and keeps the instances it is sent."""

import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom

STUDY = "1.2.3"
MULTIPART = "multipart/related; type=application/dicom; boundary=edge"
Answer = tuple[int, str, bytes]


class FakePacs(ThreadingHTTPServer):
    """Answers a path with what `answers` has for it, and keeps the paths asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.queries: list[str] = []
        self.stored: list[pydicom.Dataset] = []
        self.address = f"http://127.0.0.1:{self.server_port}/dicom-web"

    def offer(self, uid: str, *, modality: str = "CT", images: int = 0) -> None:
        """List a series in answers to every search for series; `images` is how many it says it has, 0 for nothing."""
        row = {
            "0020000D": {"vr": "UI", "Value": [STUDY]},
            "0020000E": {"vr": "UI", "Value": [uid]},
            "00080060": {"vr": "CS", "Value": [modality]},
            "00201209": {"vr": "IS", "Value": [images] if images else []},
        }
        rows = json.loads(self.answers.get("/series", (200, "", b"[]"))[2])
        self.answers["/series"] = (200, "application/dicom+json", json.dumps([*rows, row]).encode())

    def send(self, uid: str, files: list[bytes]) -> None:
        """Answer the request for a series with these files."""
        head = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
        body = b"".join(head + data + b"\r\n" for data in files) + b"--edge--\r\n"
        self.answers[f"/studies/{STUDY}/series/{uid}"] = (200, MULTIPART, body)

    def have(self, files: list[Path]) -> str:
        """List a series and answer the request for it; returns its UID."""
        uid = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
        self.offer(uid)
        self.send(uid, [file.read_bytes() for file in files])
        return uid

    def keep(self, message: bytes) -> bytes:
        """Take in what STOW-RS brings as a PACS does: it is listed, described and sent from now on."""
        (data,) = re.findall(rb"\r\n\r\n(.*)\r\n--", message, re.DOTALL)
        instance = pydicom.dcmread(io.BytesIO(data))
        self.stored.append(instance)
        uid, sop = str(instance.SeriesInstanceUID), str(instance.SOPInstanceUID)
        self.offer(uid, modality="SEG")
        self.send(uid, [data])
        referenced = [item.to_json_dict() for item in instance.ReferencedSeriesSequence]
        described = {"00081115": {"vr": "SQ", "Value": referenced}}
        described["0008103E"] = {"vr": "LO", "Value": [str(instance.SeriesDescription)]}
        answer = (200, "application/dicom+json", json.dumps([described]).encode())
        self.answers[f"/studies/{STUDY}/series/{uid}/metadata"] = answer
        return json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [sop]}}]}}).encode()


@contextmanager
def fake_pacs() -> Iterator[FakePacs]:
    """A running one with nothing in it."""
    with FakePacs() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: FakePacs

    def do_GET(self) -> None:
        path, _, query = self.path.removeprefix("/dicom-web").partition("?")
        self.server.asked.append(path)
        self.server.queries.append(query)
        status, kind, body = self.server.answers.get(path, (404, "text/plain", b"no"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self._body()
        status, kind, text = self.server.answers.get("POST /studies", (200, "", b""))
        if status == 200:
            kind, text = "application/dicom+json", self.server.keep(body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""
