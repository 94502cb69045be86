"""Holes of MONAI Label's own server (0.8.5), each as the request that goes through it.

`HOLES` holds functions that make the request and tell whether the hole is open. `PACS_HOLES` are those of the proxy.
"""

import gzip
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np

FOREIGN = {"Origin": "https://example.org"}
MAX_UPLOAD = 2 << 20
"""What our server is told to accept, in bytes."""


class Recorder(ThreadingHTTPServer):
    """Any other host: notes paths and headers of what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Noting)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Noting(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_response(404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def recorder() -> Iterator[Recorder]:
    """A running one."""
    with Recorder() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@dataclass(frozen=True)
class World:
    """A server, and what lies around it. The store `studies` holds the image `case` with a final label."""

    http: httpx.Client
    """Of somebody who may do everything."""
    annotator: httpx.Client
    studies: Path
    sessions: Path
    temporary: Path
    app: Path
    secret: Path
    """An image that is not in the store."""
    elsewhere: Recorder


def image() -> bytes:
    """A small CT, as .nii.gz."""
    voxels = np.random.default_rng(0).normal(0, 200, (12, 12, 4)).astype(np.int16)
    return gzip.compress(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])).to_bytes())


def label() -> bytes:
    """A label of `image`."""
    voxels = np.zeros((12, 12, 4), np.uint8)
    voxels[2:6, 2:6] = 1
    return gzip.compress(nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])).to_bytes())


def image_outside_the_store(world: World) -> bool:
    files = {"file": ("image.nii.gz", image())}
    world.http.put("/datastore/image", params={"image": "../escaped"}, files=files)
    return (world.studies.parent / "escaped.nii.gz").exists()


def label_outside_the_store(world: World) -> bool:
    files, params = {"label": ("label.nii.gz", label())}, {"image": "case", "tag": "../../escaped"}
    world.http.put("/datastore/label", params=params, files=files)
    return (world.studies.parent / "escaped" / "case.nii.gz").exists()


def foreign_session(world: World) -> bool:
    folder = world.sessions.parent / "foreign"
    folder.mkdir(exist_ok=True)
    said = {
        "name": "x",
        "path": str(folder),
        "image": str(world.secret),
        "meta": {},
        "create_ts": 0,
        "last_access_ts": 0,
    }
    (folder / "meta.info").write_text(json.dumps({**said, "expiry": 10**9}))
    return world.http.post("/infer/tiny", params={"session_id": "../foreign"}).status_code == 200


def slip_of_an_archive(world: World) -> bool:
    buffer, member = io.BytesIO(), tarfile.TarInfo("../slipped")
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO())
    world.http.put("/session/?uncompress=true", files={"files": ("a.tar", buffer.getvalue())})
    return any(world.temporary.rglob("slipped")) or any(world.sessions.parent.rglob("slipped"))


def archive_without_limit(world: World) -> bool:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.nii", bytes(2 * MAX_UPLOAD))
    answer = world.http.put("/session/?uncompress=true", files={"files": ("a.zip", buffer.getvalue())})
    return answer.status_code == 200


def upload_without_limit(world: World) -> bool:
    files = {"file": ("image.nii.gz", image() + bytes(2 * MAX_UPLOAD))}
    return world.http.put("/datastore/image", params={"image": "large"}, files=files).status_code == 200


def voxels_without_limit(world: World) -> bool:
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 30_000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    files = {"file": ("image.nii.gz", gzip.compress(header.binaryblock + bytes(4)))}
    return world.http.put("/datastore/image", params={"image": "vast"}, files=files).status_code == 200


def image_by_its_path(world: World) -> bool:
    return world.http.post("/infer/tiny", params={"image": str(world.secret)}).status_code == 200


def image_in_the_params(world: World) -> bool:
    return _infer(world, image=str(world.secret))


def model_in_the_params(world: World) -> bool:
    return _infer(world, model="other")


def _infer(world: World, **params: str) -> bool:
    form = {"params": json.dumps(params)}
    return world.http.post("/infer/tiny", params={"image": "case"}, data=form).status_code == 200


def model_by_upload(world: World) -> bool:
    files = {"file": ("model.pt", b"\x80\x04.")}  # a pickle, which torch.load would run
    return world.annotator.put("/model/tiny", files=files).status_code == 200


def model_deleted(world: World) -> bool:
    return world.annotator.delete("/model/tiny").status_code == 200


def training_elsewhere(world: World) -> bool:
    _train(world, name="../../trained")
    return (world.app.parent / "trained").exists()


def training_calls_any_host(world: World) -> bool:
    world.elsewhere.asked.clear()
    _train(world, tracking="mlflow", tracking_uri=world.elsewhere.address)
    return bool(world.elsewhere.asked)


def _train(world: World, **options: Any) -> None:
    quick = {"max_epochs": 1, "dataset": "Dataset", "multi_gpu": False, "pretrained": False, "val_split": 0.0}
    world.http.post("/train/polycl", params={"run_sync": True}, json={**quick, "device": "cpu", **options})


def app_dropped_by_anybody(world: World) -> bool:
    return world.annotator.post("/reload").status_code == 200


def logs_for_everybody(world: World) -> bool:
    return world.annotator.get("/logs/").status_code == 200


def every_page_may_read(world: World) -> bool:
    headers = world.http.get("/info/", headers=FOREIGN).headers
    return headers.get("access-control-allow-origin") is not None


def every_page_may_change(world: World) -> bool:
    return world.http.post("/activelearning/random", headers=FOREIGN).status_code != 403


def pages_may_be_framed(world: World) -> bool:
    return "x-frame-options" not in world.http.get("/info/").headers


HOLES: tuple[Callable[[World], bool], ...] = (
    image_outside_the_store,
    label_outside_the_store,
    foreign_session,
    slip_of_an_archive,
    archive_without_limit,
    upload_without_limit,
    voxels_without_limit,
    image_by_its_path,
    image_in_the_params,
    model_in_the_params,
    training_elsewhere,
    training_calls_any_host,
    logs_for_everybody,
    every_page_may_read,
    every_page_may_change,
    pages_may_be_framed,
    app_dropped_by_anybody,
    model_by_upload,
    model_deleted,
)


def proxy_leaves_the_root(world: World) -> bool:
    world.elsewhere.asked.clear()
    world.annotator.get("/proxy/dicom/wado/%2e%2e/system")
    return any(path == "/system" for path, _ in world.elsewhere.asked)


def proxy_lends_its_password(world: World) -> bool:
    return proxy_leaves_the_root(world) and "Authorization" in world.elsewhere.asked[-1][1]


def proxy_drops_the_query(world: World) -> bool:
    world.elsewhere.asked.clear()
    world.annotator.get("/proxy/dicom/qido/studies?PatientName=X*")
    return not any("PatientName" in path for path, _ in world.elsewhere.asked)


PACS_HOLES = (proxy_leaves_the_root, proxy_lends_its_password, proxy_drops_the_query)
