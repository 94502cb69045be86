"""What goes on of a request's parameters: what is read, whatever else clients send."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.routing import iter_route_contexts
from monailabel.interfaces.utils.app import app_instance
from replies import refused
from starlette.testclient import TestClient

import polycl.monailabel
from polycl.monailabel import refine
from polycl.server import pages, work
from polycl.server.parameters import INFER, NEXT, NOTED, keep_known
from polycl.volume import read_volume, write_volume

pytestmark = pytest.mark.app

SOURCES = Path(polycl.monailabel.__file__).parent
OTHERS = ("strategy", "train")
"""Modules that read requests of other kinds."""
TASKS = sorted({file.stem for file in SOURCES.glob("*.py")} - set(OTHERS))
ELSEWHERE = {"image", "model", refine.STORED, refine.STORED_INFO}
"""What the address of a request says, or the app adds."""


def keys_read(module: str) -> Iterator[str]:
    """The names that the module reads of a request, as text."""
    for node in ast.walk(ast.parse((SOURCES / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            of, keys = node.func.value, node.args[:1]
        elif isinstance(node, ast.Subscript):
            of, keys = node.value, [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            of, keys = node.args[0], [node.args[1]]  # such as _flag(request, "save_label")
        else:
            continue
        if isinstance(of, ast.Name) and of.id == "request":
            yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


@pytest.mark.parametrize("module", TASKS)
def test_all_that_tasks_read_goes_on(module: str) -> None:
    assert set(keys_read(module)) <= INFER | ELSEWHERE | {"refine", "propagate"}


def test_all_that_strategies_read_goes_on() -> None:
    assert set(keys_read("strategy")) <= NEXT


@pytest.mark.parametrize(
    ("name", "arguments", "left"),
    [
        ("api_run_inference", {"params": '{"device": "cuda:9", "label": "liver", "timeout": 1}'}, '{"label": "liver"}'),
        ("api_run_inference", {"params": "{}"}, "{}"),
        ("api_run_inference", {"params": None}, None),
        ("api_run", {"model": "x", "params": {"images": ["/etc/passwd"], "max_workers": 1}}, {"max_workers": 1}),
        ("api_run", {"params": {"any": 1}}, {"any": 1}),
        ("api_sample", {"params": {"strategy": "other", "client_id": "ann"}}, {"client_id": "ann"}),
        ("api_run_model", {"model": "polycl", "params": {"stpes": 3}}, {"stpes": 3}),
    ],
)
def test_what_is_not_read_is_left_out(name: str, arguments: dict[str, Any], left: object) -> None:
    keep_known(name, arguments)
    assert arguments["params"] == left


def test_a_request_reaches_a_task_without_the_rest(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    app, seen = app_instance(), []
    original = app.infer
    monkeypatch.setattr(app, "infer", lambda request, *more: (seen.append(dict(request)), original(request, *more))[1])
    params = {"result_extension": ".nii.gz", "restore_label_idx": False, "device": "cuda", "timeout": 0.001}
    assert client.post("/infer/tiny?image=lps", data={"params": json.dumps(params)}).status_code == 200
    assert seen == [{"model": "tiny", "image": "lps", "result_extension": ".nii.gz"}]


@pytest.mark.parametrize("key", NOTED)
def test_what_the_server_notes_of_a_label_is_its_own(
    client: TestClient, studies: Path, tmp_path: Path, key: str
) -> None:
    image = read_volume(studies / "lps.nii.gz")
    write_volume(image.with_voxels(np.ones(image.shape, np.uint8)), tmp_path / "label.nii.gz")
    label = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
    where = {"label": "lps", "tag": "final"}
    assert client.put("/datastore/label", params={"image": "lps"}, files=label).status_code == 200
    before = client.get("/datastore/label/info", params=where).json()
    for url, field in (("/datastore/updatelabelinfo", "params"), ("/datastore/label/info", "info")):
        form = {field: json.dumps({key: "mine", "comment": "x"})}
        refused(client.put(url, params=where, data=form), 400, key, field)
    assert client.get("/datastore/label/info", params=where).json() == before
    client.delete("/datastore/label", params={"id": "lps", "tag": "final"})


def test_our_routes_are_there_once(client: TestClient) -> None:
    """The app is made anew for each store, and MONAI Label's application is one for the process."""
    application: Any = client.app
    for install in (work.install, pages.install):
        install(application)
    found = [
        (method, route.path)
        for route in iter_route_contexts(application.routes)
        for method in route.methods or ()
        if route.path.startswith("/polycl")
    ]
    assert len(found) == len(set(found))
    assert ("DELETE", "/polycl/work/{number}") in found
    assert ("GET", "/polycl/api/queue") in found
