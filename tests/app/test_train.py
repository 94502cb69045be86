"""Training by request, and the switch to another version while requests run."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_images import AFFINES, ct

import waiting
from polycl import checkpoints
from polycl.learning.versions import Version, Versions
from polycl.segmenter import Segmenter
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume

until = partial(waiting.until, seconds=200)

pytestmark = pytest.mark.app

CASES = [f"case_{number}" for number in range(5)]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few patients."""
    folder = tmp_path_factory.mktemp("patients")
    for seed, name in enumerate(CASES):
        write_volume(Volume(ct(seed), AFFINES["lps"]), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    return Settings(
        state=tmp_path_factory.mktemp("state"), weights=tiny_checkpoint.parent, precision="fp32", learn_nice=0
    )


@pytest.fixture
def versions(client: TestClient, settings: Settings) -> Iterator[Versions]:
    """The versions of the running server, at version 0 before and after."""
    made = Versions(settings.versions)
    yield made
    made.publish("tiny", 0, "the test is over")


def add(versions: Versions, folder: Path, checkpoint: Path, shift: float) -> int:
    """A version that finds more, or less, of the first label than version 0."""
    header, weights = checkpoints.load(checkpoint)
    weights["decoder.head.bias"][1] += shift
    path = folder / "candidate.safetensors"
    sha256 = checkpoints.save(path, weights, header)
    kept = versions.add(
        "tiny",
        path,
        Version(
            number=1,
            sha256=sha256,
            parent=0,
            parent_sha256="",
            run=f"run {shift}",
            created=datetime.now(UTC),
            seconds=1.0,
            blend=1.0,
            publish=True,
            reason="better",
        ),
    )
    return kept.number


def infer(client: TestClient, image: str = "case_0", **query: str) -> Any:
    response = client.post("/infer/tiny", params={"image": image, **query})
    assert response.status_code == 200, response.text
    return response


def version_of(response: Any) -> int:
    name, _, number = response.headers["x-polycl-model"].partition("@")
    assert name == "tiny"
    return int(number)


def mask_of(response: Any) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(response.content)).dataobj)


@pytest.mark.parametrize("output", ["json", "image", "all"])
def test_every_reply_names_the_version_that_made_it(client: TestClient, settings: Settings, output: str) -> None:
    reply = infer(client, output=output)
    assert version_of(reply) == 0
    assert len(reply.headers["x-polycl-weights"]) == 64
    if output == "json":
        assert reply.json()["model"] == {"name": "tiny", "version": 0, "sha256": reply.headers["x-polycl-weights"]}


def test_a_switch_needs_no_restart_and_no_request_fails(
    client: TestClient, versions: Versions, studies: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    numbers = [add(versions, tmp_path, tiny_checkpoint, shift) for shift in (1.0, -1.0)]
    kept = {one.number: versions.weights("tiny", one) for one in versions.kept("tiny")}
    files = {0: tiny_checkpoint, **{number: kept[number] for number in numbers}}
    image = read_volume(studies / "case_0.nii.gz")
    expected = {
        number: Segmenter.load(path, device="cpu", precision="fp32").segment(image).voxels
        for number, path in files.items()
    }
    assert len({(voxels == 1).sum() for voxels in expected.values()}) == 3
    done = threading.Event()
    seen: list[int] = []

    def ask() -> int:
        count = 0
        while not done.is_set():
            reply = infer(client, output="image")
            np.testing.assert_array_equal(mask_of(reply), expected[version_of(reply)])
            seen.append(version_of(reply))
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for number in [*numbers, 0] * 4:
            versions.publish("tiny", number, "better")
            time.sleep(0.15)
        done.set()
        assert sum(one.result() for one in asking) > 10
    assert set(seen) == set(files)


def test_after_a_switch_the_next_reply_is_the_new_ones(
    client: TestClient, versions: Versions, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    number = add(versions, tmp_path, tiny_checkpoint, 2.0)
    assert version_of(infer(client)) == 0
    versions.publish("tiny", number, "better")
    assert version_of(infer(client)) == number
    assert versions.rollback("tiny") == version_of(infer(client)) == 0


def test_a_damaged_version_is_not_switched_to(
    client: TestClient, versions: Versions, tmp_path: Path, tiny_checkpoint: Path, settings: Settings
) -> None:
    number = add(versions, tmp_path, tiny_checkpoint, 3.0)
    version = versions.get("tiny", number)
    infer(client)
    versions.publish("tiny", number, "better")
    versions.weights("tiny", version).write_bytes(b"damaged")
    assert version_of(infer(client)) == 0
    (settings.versions / "tiny" / "live.json").write_bytes(b"{")
    assert version_of(infer(client)) == 0


def test_the_trainer_is_shown_with_its_options(client: TestClient) -> None:
    info = client.get("/info/").json()
    assert list(info["trainers"]) == ["polycl"]
    config = info["trainers"]["polycl"]["config"]
    assert config["segmenter"][0] in info["models"]
    assert "tiny" in config["segmenter"]
    assert config["publish"] == ["better", "force", "never"]
    assert isinstance(config["steps"], int)


def test_before_any_training(client: TestClient) -> None:
    assert client.get("/train/").status_code == 404
    assert client.get("/train/", params={"check_if_running": True}).status_code == 404
    assert client.get("/info/").json()["train_stats"] == {"polycl": {}}
    assert (client.delete("/train/").status_code, client.delete("/train/").json()) == (200, None)


@pytest.mark.parametrize(
    ("path", "params", "status", "reason"),
    [
        ("/train/polycl", {"segmenter": "tiny"}, 422, "no label to train on"),
        ("/train/", {"polycl": {"segmenter": "tiny"}}, 422, "no label to train on"),
        ("/train/polycl", {"segmenter": ["tiny", "other"], "client_id": "user-xyz"}, 422, "no label to train on"),
        ("/train/polycl", {"segmenter": "other"}, 404, "no segmenter 'other'"),
        ("/train/polycl", {"segmenter": "tiny", "steps": 0}, 422, "steps 0"),
        ("/train/polycl", {"segmenter": "tiny", "epochs": 5}, 422, "segmenter, steps, publish"),
        ("/train/", {"polycl": 3}, 422, "must be an object"),
        ("/train/other", {}, 404, "no trainer"),
    ],
)
def test_what_cannot_be_trained_says_why(
    client: TestClient, path: str, params: dict[str, Any], status: int, reason: str
) -> None:
    response = client.post(path, json=params)
    assert response.status_code == status, response.text
    assert reason in response.text
    assert client.get("/train/").status_code == 404


def save(client: TestClient, studies: Path, image: str) -> None:
    """Send the label of a bright half, as Slicer does: value 1 is the first of `label_info`."""
    volume = read_volume(studies / f"{image}.nii.gz")
    path = studies / "sent.nii"
    write_volume(volume.with_voxels((volume.voxels > 60).astype(np.uint8)), path)
    response = client.put(
        "/datastore/label",
        params={"image": image},
        data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
        files={"label": ("label.nii", path.read_bytes())},
    )
    path.unlink()
    assert response.status_code == 200, response.text


@pytest.mark.slow
def test_labels_saved_train_a_version_that_is_served_at_once(
    client: TestClient, versions: Versions, studies: Path, settings: Settings
) -> None:
    before = {switch.version for switch in versions.pointer("tiny").history}
    for image in CASES:
        save(client, studies, image)
    started = client.post("/train/polycl", json={"segmenter": "tiny", "steps": 20, "publish": "force"})
    assert started.status_code == 200, started.text
    assert started.json()["status"] in ("SUBMITTED", "RUNNING")
    assert started.json()["request"] == {"model": "polycl", "segmenter": "tiny", "steps": 20, "publish": "force"}
    assert client.post("/train/polycl", json={"segmenter": "tiny"}).status_code == 429
    assert client.post("/train/", json={}).status_code == 429
    assert client.get("/train/", params={"check_if_running": True}).json()["id"] == started.json()["id"]
    until(lambda: version_of(infer(client)) not in {0} | before or client.get("/train/").json().get("end_ts"))
    until(lambda: client.get("/train/").json()["status"] == "DONE")
    task = client.get("/train/").json()
    assert version_of(infer(client)) == versions.live("tiny") > 0
    assert f"version {versions.live('tiny')} published" in task["result"]
    assert task["details"]
    assert str(studies) not in json.dumps(client.get("/train/", params={"all": True}).json())
    stats = client.get("/info/").json()["train_stats"]["polycl"]
    assert (stats["epoch"], stats["total_epochs"], stats["state"]) == (20, 20, "done")
    assert "total_time" in stats
    version = versions.get("tiny", versions.live("tiny"))
    assert {one.image for one in version.data} == set(CASES)
    assert [one.role for one in version.data].count("validate") == 1
    assert versions.rollback("tiny") == version_of(infer(client)) == 0


@pytest.mark.slow
def test_training_is_stopped_by_request(client: TestClient, studies: Path) -> None:
    for image in CASES:
        save(client, studies, image)
    assert client.post("/train/", json={"polycl": {"segmenter": "tiny", "steps": 100_000}}).status_code == 200
    stopped = client.delete("/train/").json()
    assert stopped["status"] == "STOPPED"
    assert stopped["details"]
    assert client.get("/train/", params={"check_if_running": True}).status_code == 404


@pytest.mark.slow
def test_training_starts_by_itself_after_enough_labels(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.interfaces.utils.app import app_instance

    from polycl.learning.runs import Run

    started: list[str] = []
    task = app_instance()._trainers["polycl"]
    monkeypatch.setattr(task, "segmenters", ["tiny"])
    monkeypatch.setattr(task, "_settings", task._settings.model_copy(update={"learn_after": 3}))
    monkeypatch.setattr(task.trainer, "start", lambda options, *_: started.append(options.segmenter))
    monkeypatch.setattr(task.trainer.runs, "all", list[Run])
    for count, image in enumerate(CASES[:2], start=1):
        (studies / "labels" / "final" / f"{image}.nii.gz").unlink(missing_ok=True)
        save(client, studies, image)
        assert count < 3
    for image in CASES[2:]:
        save(client, studies, image)
    until(lambda: started, seconds=20)
    assert set(started) == {"tiny"}
