"""Every hole of MONAI Label's server that we know of: open in a bare one, closed in ours, by the same request.

Both run in processes of their own. In ours the request comes from an admin, so that it is not the role that stops it;
what an annotator must not do comes from an annotator.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from holes import HOLES, MAX_UPLOAD, PACS_HOLES, Recorder, World, image, label, recorder
from starting import free_port, wait_for

from polycl.accounts import Accounts, Role

pytestmark = [pytest.mark.client, pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORD = "correct horse"
SECONDS = 120
PATIENT: Any = {"timeout": SECONDS, "limits": httpx.Limits(max_keepalive_connections=0)}
"""For clients; the bare server closes what is idle while it works, and a request may just be on its way."""
Hole = Callable[[World], bool]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """MONAI Label's own server, with its own start command, and nothing of ours in its process."""
    folder = tmp_path_factory.mktemp("bare")
    app = folder / "apps" / "bare"
    app.mkdir(parents=True)
    (app / "main.py").write_text(Path(__file__).with_name("bare_app.py").read_text())
    with recorder() as elsewhere:
        more = {
            "BARE_STUDIES": str(folder / "studies"),
            "MONAI_LABEL_DICOMWEB_USERNAME": "server",
            "MONAI_LABEL_DICOMWEB_PASSWORD": "secret",
        }
        command = ["-m", "monailabel.main", "start_server", "--app", str(app), "--host", "127.0.0.1"]
        command += ["--studies", f"{elsewhere.address}/dicom-web"]
        with started(folder, command, more) as address, httpx.Client(base_url=address, **PATIENT) as http:
            yield world(folder, app, elsewhere, http, http)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[World]:
    """`polycl serve`, where people sign in."""
    folder = tmp_path_factory.mktemp("ours")
    for role in (Role.ADMIN, Role.ANNOTATOR):
        Accounts(folder / "state" / "users.json").add(f"the-{role}", role, PASSWORD)
    more = {
        "POLYCL_STATE": str(folder / "state"),
        "POLYCL_WEIGHTS": str(tiny_checkpoint.parent),
        "POLYCL_MAX_UPLOAD": str(MAX_UPLOAD),
        "POLYCL_SCORE_AHEAD": "false",
        "POLYCL_DEVICE": "cpu",
    }
    command = ["-m", "polycl.cli", "serve", "--studies", str(folder / "studies")]
    with recorder() as elsewhere, started(folder, command, more) as address:
        admin, annotator = (signed_in(address, role) for role in (Role.ADMIN, Role.ANNOTATOR))
        with admin, annotator:
            yield world(folder, folder / "state" / "app", elsewhere, admin, annotator)


@contextmanager
def started(folder: Path, command: list[str], more: dict[str, str]) -> Iterator[str]:
    """The address of a server over `folder`/studies, with an image and its label."""
    for name in ("studies/labels/final", "outside", "sessions", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "studies" / "case.nii.gz").write_bytes(image())
    (folder / "studies" / "labels" / "final" / "case.nii.gz").write_bytes(label())
    (folder / "outside" / "secret.nii.gz").write_bytes(image())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_"))}
    clean |= {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "TMPDIR": str(folder / "tmp")}
    port, log = free_port(), folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            cwd=folder,
            env=clean | more,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log, "/openapi.json" if "BARE_STUDIES" in more else "/readyz")
        yield address
    finally:
        process.kill()
        process.wait()


def world(folder: Path, app: Path, elsewhere: Recorder, http: httpx.Client, annotator: httpx.Client) -> World:
    secret = folder / "outside" / "secret.nii.gz"
    return World(http, annotator, folder / "studies", folder / "sessions", folder / "tmp", app, secret, elsewhere)


def signed_in(address: str, role: Role) -> httpx.Client:
    form = {"username": f"the-{role}", "password": PASSWORD}
    token = httpx.post(f"{address}/auth/token", data=form, timeout=SECONDS).json()["access_token"]
    return httpx.Client(base_url=address, **PATIENT, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("hole", [*HOLES, *PACS_HOLES], ids=lambda hole: hole.__name__)
def test_it_is_open_in_the_bare_server(bare: World, hole: Hole) -> None:
    assert hole(bare)


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.__name__)
def test_it_is_closed_in_ours(ours: World, hole: Hole) -> None:
    assert not hole(ours)
    assert ours.http.get("/info/").status_code == 200


def test_the_bare_server_listens_on_every_address() -> None:
    from monailabel.main import Main

    from polycl.server.exposure import is_loopback
    from polycl.server.run import HOST

    assert Main().args_parser().parse_args(["start_server"]).host == "0.0.0.0"
    assert is_loopback(HOST)
