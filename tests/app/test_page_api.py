"""The page's JSON: what it tells, what it changes, who may ask, and that it names nobody."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.interfaces.utils.app import app_instance
from PIL import Image
from starlette.testclient import TestClient
from tiny_images import AFFINES, ct

from polycl import checkpoints
from polycl.learning.runs import Event, Pretraining, Runs
from polycl.learning.versions import Figures, Trained, Version, Versions
from polycl.server import overview, pages
from polycl.server.pages import install
from polycl.settings import Settings
from polycl.volume import Volume, write_volume
from waiting import until

pytestmark = pytest.mark.app

PATIENTS = [f"patient_{number}" for number in range(4)]
POSTS = {
    "training/start": {"segmenter": "tiny"},
    "training/cancel": {},
    "pretraining/start": {"segmenter": "tiny"},
    "models/publish": {"model": "tiny", "version": 0},
    "models/rollback": {"model": "tiny"},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for seed, name in enumerate(PATIENTS):
        write_volume(Volume(ct(seed), AFFINES["lps"]), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", score_model="tiny")


@pytest.fixture(scope="module")
def versions(client: TestClient, settings: Settings, tiny_checkpoint: Path) -> Versions:
    """Two versions of the model, none of them live."""
    made = Versions(settings.versions)
    for shift, better in ((1.0, True), (2.0, False)):
        header, weights = checkpoints.load(tiny_checkpoint)
        weights["decoder.head.bias"][1] += shift
        file = settings.state / "candidate.safetensors"
        sha256 = checkpoints.save(file, weights, header)
        version = Version(
            number=1,
            sha256=sha256,
            parent=0,
            parent_sha256="",
            run=f"run {shift}",
            created=datetime.now(UTC),
            seconds=3.0,
            blend=1.0,
            data=(Trained(image=PATIENTS[0], sha256="0" * 64, role="train"),),
            figures=Figures(before=0.5, after=0.6, cells={PATIENTS[0]: {"liver": (0.5, 0.6)}}),
            publish=better,
            reason="better" if better else "not better",
        )
        (settings.versions / "tiny").mkdir(parents=True, exist_ok=True)
        made.add("tiny", file, version)
    return made


def get(client: TestClient, path: str, status: int = 200) -> Any:
    response = client.get(f"/polycl/api/{path}")
    assert response.status_code == status, response.text
    return response.json()


def post(client: TestClient, path: str, body: object, **headers: str) -> Any:
    return client.post(
        f"/polycl/api/{path}", json=body, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def test_the_page_needs_nothing_but_itself(client: TestClient) -> None:
    answer = client.get("/polycl/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    files = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert sorted(files) == ["page.css", "page.js"]
    for name in (*files, "chart.js"):
        file = client.get(f"/polycl/{name}")
        assert file.status_code == 200
        assert "http" not in file.text.replace("http://www.w3.org/2000/svg", "")
        assert file.headers["x-content-type-options"] == "nosniff"
    assert client.get("/polycl", follow_redirects=False).headers["location"] == "polycl/"


@pytest.mark.parametrize("name", ["index.html", "..%2foverview.py", "__init__.py", "page.css.bak"])
def test_other_files_are_not_served(client: TestClient, name: str) -> None:
    assert client.get(f"/polycl/{name}").status_code == 404


def test_it_is_added_once(client: TestClient) -> None:
    from monailabel.app import app

    before = len(app.routes)
    install(app)
    assert len(app.routes) == before


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://example.org"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_other_sites_change_nothing(client: TestClient, versions: Versions, path: str, headers: dict[str, str]) -> None:
    versions.publish("tiny", 1, "before")
    refused = post(client, path, POSTS[path], **headers)
    assert refused.status_code == 403
    assert "another site" in refused.json()["detail"]
    assert versions.live("tiny") == 1
    assert get(client, "runs")["runs"] == []


def test_without_our_guard_too(client: TestClient) -> None:
    """As under MONAI Label's own start: the routes themselves refuse."""
    from fastapi import FastAPI

    bare = FastAPI()
    install(bare)
    with TestClient(bare, base_url="http://127.0.0.1:8000") as other:
        assert post(other, "models/rollback", {"model": "tiny"}, origin="https://example.org").status_code == 403
        assert other.get("/polycl/api/cache").status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_reading_changes_nothing(client: TestClient, path: str) -> None:
    assert client.get(f"/polycl/api/{path}").status_code == 405


def test_versions_are_published_and_rolled_back(client: TestClient, versions: Versions) -> None:
    versions.publish("tiny", 0, "the beginning")
    (tiny,) = [one for one in get(client, "models")["models"] if one["name"] == "tiny"]
    assert tiny["live"] == 0
    assert [one["number"] for one in tiny["versions"]] == [2, 1]
    assert (tiny["versions"][0]["before"], tiny["versions"][0]["after"]) == (0.5, 0.6)
    assert (tiny["versions"][0]["publish"], tiny["versions"][0]["reason"]) == (False, "not better")
    assert (tiny["versions"][0]["trained"], tiny["versions"][0]["validated"]) == (1, 0)
    answer = post(client, "models/publish", {"model": "tiny", "version": 2}, origin="http://127.0.0.1:8000")
    assert answer.status_code == 200, answer.text
    reply = client.post("/infer/tiny", params={"image": PATIENTS[0], "output": "json"})
    assert reply.headers["x-polycl-model"] == "tiny@2"
    assert post(client, "models/rollback", {"model": "tiny"}, sec_fetch_site="same-origin").status_code == 200
    assert versions.live("tiny") == 0
    nothing = post(client, "models/rollback", {"model": "tiny"})
    assert nothing.status_code == 422
    assert "nothing to roll back to" in nothing.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("models/publish", {"model": "tiny", "version": 9}, 404, "no version 9"),
        ("models/publish", {"model": "../x", "version": 1}, 404, "no segmenter"),
        ("models/publish", {"model": "tiny"}, 422, "version"),
        ("models/publish", {"model": "tiny", "version": -1}, 422, "version"),
        ("models/rollback", {"model": "other"}, 404, "tiny"),
        ("training/start", {"segmenter": "other"}, 404, "tiny"),
        ("training/start", {"segmenter": "tiny", "steps": 0}, 422, "steps"),
        ("training/start", {"segmenter": "tiny", "epochs": 1}, 422, "publish"),
        ("training/start", {"segmenter": "tiny"}, 422, "no label to train on"),
        ("training/cancel", {}, 404, "nothing is being trained"),
        ("pretraining/start", {"segmenter": "other"}, 404, "tiny"),
        ("pretraining/start", {"steps": 0}, 422, "steps"),
    ],
)
def test_what_cannot_be_done_says_why(
    client: TestClient, versions: Versions, path: str, body: dict[str, Any], status: int, word: str
) -> None:
    refused = post(client, path, body)
    assert refused.status_code == status, refused.text
    assert word in refused.text
    assert get(client, "runs")["runs"] == []


def test_the_queue_names_image_and_slice_with_a_picture(client: TestClient) -> None:
    until(lambda: get(client, "queue")["scored"] == len(PATIENTS))
    told = get(client, "queue?strategy=polycl-mixed")
    assert told["model"].startswith("tiny@")
    assert sorted(item["image"] for item in told["items"]) == PATIENTS
    assert set(told["strategies"]) == {"first", "polycl-mixed", "polycl-uncertain", "polycl-diverse"}
    item = told["items"][0]
    given = client.post("/activelearning/polycl-mixed", json={"client_id": "ann"}).json()
    assert (given["id"], given["slice"]) == (item["image"], item["slice"])
    assert get(client, f"slice?image={item['image']}") == {"slice": item["slice"]}
    held = {one["image"]: one["held"] for one in get(client, "queue")["items"]}
    assert held == {name: name == given["id"] for name in PATIENTS}
    people = {one["image"]: one["people"] for one in get(client, "queue")["items"]}
    assert people == {name: ["ann"] if name == given["id"] else [] for name in PATIENTS}
    app_instance().leases.release(given["id"])
    number = item["slice"]["number"]
    png = client.get("/polycl/api/thumbnail", params={"image": item["image"], "slice": number})
    assert png.headers["content-type"] == "image/png"
    assert png.headers["cache-control"] == "no-store"
    picture = np.asarray(Image.open(io.BytesIO(png.content)))
    assert picture.shape == (192, 192)
    volume = Volume(ct(PATIENTS.index(item["image"])), AFFINES["lps"]).canonical().voxels[:, :, number]
    tissue = (volume > -100).mean() * min(volume.shape) / max(volume.shape)
    assert (picture > 40).mean() == pytest.approx(tissue, abs=0.15)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("queue?strategy=random", 404),
        ("queue?strategy=nothing", 404),
        ("queue?count=0", 422),
        ("queue?count=1000", 422),
        ("thumbnail?image=nobody&slice=0", 404),
        ("slice?image=nobody", 404),
        ("slice", 422),
        (f"thumbnail?image={PATIENTS[0]}&slice=99", 422),
        (f"thumbnail?image={PATIENTS[0]}&slice=-1", 422),
        ("thumbnail?image=../x&slice=0", 400),
        ("thumbnail?image=%2fetc%2fpasswd&slice=0", 400),
        (f"thumbnail?image={'x' * 260}&slice=0", 400),
    ],
)
def test_a_bad_question(client: TestClient, query: str, status: int) -> None:
    get(client, query, status)


def test_no_picture_of_an_image_elsewhere(client: TestClient, tmp_path: Path) -> None:
    write_volume(Volume(ct(0), AFFINES["lps"]), tmp_path / "elsewhere.nii.gz")
    there = os.path.relpath(tmp_path, app_instance().datastore().folder)
    for image in (tmp_path / "elsewhere", Path(there, "elsewhere")):
        refused = client.get("/polycl/api/thumbnail", params={"image": str(image), "slice": 0})
        assert (refused.status_code, refused.json()["detail"]) == (400, "image must be a name, not a path")


def save(client: TestClient, folder: Path, image: str, who: str) -> None:
    path = folder / "sent.nii"
    volume = Volume(ct(PATIENTS.index(image)), AFFINES["lps"])
    write_volume(volume.with_voxels((volume.voxels > 60).astype(np.uint8)), path)
    params = {"label_info": [{"name": "liver"}], "client_id": who}
    saved = client.put(
        "/datastore/label",
        params={"image": image},
        data={"params": json.dumps(params)},
        files={"label": ("label.nii", path.read_bytes())},
    )
    assert saved.status_code == 200, saved.text


def test_labels_by_day_and_annotator(client: TestClient, tmp_path: Path) -> None:
    before = get(client, "labels")
    assert (before["rows"], before["labelled"], before["images"]) == ([], 0, 4)
    for image, who in ((PATIENTS[0], "ann"), (PATIENTS[0], "ann"), (PATIENTS[1], "bob")):
        save(client, tmp_path, image, who)
    told = get(client, "labels")
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    assert told["rows"] == [
        {"day": today, "annotator": "ann", "count": 2},
        {"day": today, "annotator": "bob", "count": 1},
    ]
    assert (told["saved"], told["labelled"]) == (3, 2)


def test_runs_tell_state_curves_and_reason(client: TestClient, settings: Settings, tiny_checkpoint: Path) -> None:
    runs = Runs(settings.learning / "runs")
    header = checkpoints.load(tiny_checkpoint)[0]
    request = Pretraining(
        kind="pretraining",
        store=settings.state / PATIENTS[0],
        header=header,
        models=settings.models,
        name="encoder-x",
        cache=settings.cache,
        threads=1,
    )
    run = runs.create(request)
    for step, loss in ((0, 0.9), (10, 0.5)):
        run.add(Event(at=datetime.now(UTC), state="training", step=step, steps=20, loss=loss, eta=3.0))
    told = get(client, "runs")
    assert told["busy"]
    (now,) = told["runs"]
    assert (now["state"], now["kind"], now["model"]) == ("training", "pretraining", "encoder-x")
    assert (now["step"], now["steps"], now["eta"]) == (10, 20, 3.0)
    assert now["curves"] == {"loss": [[0, 0.9], [10, 0.5]]}
    run.add(Event(at=datetime.now(UTC), state="failed", message="too few images"))
    (now,) = get(client, "runs")["runs"]
    assert (now["state"], now["message"], now.get("eta")) == ("failed", "too few images", None)
    assert not get(client, "runs")["busy"]
    (run.folder / "request.json").write_text("{}")
    assert get(client, "runs")["runs"][0]["message"] == "too few images"


def test_only_the_queue_names_images(client: TestClient, versions: Versions) -> None:
    for part in ("runs", "models", "labels", "cache"):
        text = json.dumps(get(client, part))
        assert "patient" not in text.replace("patients", ""), part
    assert "patient" not in json.dumps(overview.stamps())


def test_stamps_change_with_their_part_alone(client: TestClient, versions: Versions) -> None:
    def stamps() -> dict[str, str]:
        overview._looked = (0.0, 0, {})
        return overview.stamps()

    def settled() -> bool:
        known = stamps()
        time.sleep(0.3)
        return stamps() == known

    until(lambda: app_instance().scores.progress().done == len(PATIENTS))
    until(settled)  # the last scores are noted a moment after they are counted
    before = stamps()
    assert stamps() == before
    versions.publish("tiny", 1, "now")
    after = stamps()
    # of another version, the scores that the queue goes by are other ones too
    assert {name for name in before if before[name] != after[name]} - {"queue"} == {"models"}
    until(lambda: app_instance().scores.progress().done == len(PATIENTS))
    after = stamps()
    app_instance().leases.take(PATIENTS[2], "ann")
    assert [name for name, stamp in stamps().items() if stamp != after[name]] == ["queue"]
    app_instance().leases.release(PATIENTS[2])
    versions.publish("tiny", 0, "as before")


def test_events_tell_stamps_at_once_and_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STREAM_SECONDS", 1.0)
    answer = client.get("/polycl/api/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[0] == "retry: 1000"
    name, data = events[1].split("\n")
    assert name == "event: change"
    assert set(json.loads(data.removeprefix("data: "))) == {"runs", "models", "labels", "queue", "cache"}


def test_events_end_when_the_server_stops(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = app_instance().runtime

    async def follow() -> list[str]:
        told = []
        async for text in pages._changes():
            told.append(text)
            runtime.stopping.set()
        return told

    try:
        assert len(asyncio.run(asyncio.wait_for(follow(), 10))) == 1
    finally:
        runtime.stopping.clear()


@pytest.mark.slow
def test_training_is_started_and_cancelled(client: TestClient, tmp_path: Path) -> None:
    for image in PATIENTS:
        save(client, tmp_path, image, "ann")
    begun = post(client, "training/start", {"segmenter": "tiny", "steps": 100_000})
    assert begun.status_code == 200, begun.text
    assert begun.json()["state"] == "submitted"
    busy = post(client, "pretraining/start", {"segmenter": "tiny"})
    assert busy.status_code == 429
    assert "under way" in busy.json()["detail"]
    assert post(client, "training/cancel", {}).json()["state"] == "cancelled"
    begun = post(client, "pretraining/start", {"segmenter": "tiny", "steps": 100_000})
    assert begun.json()["kind"] == "pretraining"
    assert post(client, "training/cancel", {}).json()["state"] == "cancelled"
    assert client.get("/train/").json()["status"] == "STOPPED"
