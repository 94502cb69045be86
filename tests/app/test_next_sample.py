"""The next image to label: by strategy, with its slice, not what another holds, the same after a restart."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.interfaces.utils.app import app_instance
from starlette.testclient import TestClient
from tiny_images import AFFINES, SHAPE, ct

from polycl.errors import NotFoundError
from polycl.monailabel.scoring import images_of, scores_of
from polycl.settings import Settings
from polycl.volume import Volume, read_volume, write_volume
from waiting import until

pytestmark = pytest.mark.app

STRATEGIES = ("first", "random", "polycl-mixed", "polycl-uncertain", "polycl-diverse")
IMAGES = [*AFFINES, "broken"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for seed, (name, affine) in enumerate(AFFINES.items()):
        write_volume(Volume(ct(seed), affine), folder / f"{name}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", score_model="tiny")


@pytest.fixture(autouse=True)
def fresh(client: TestClient) -> None:
    """All images are scored, and nobody holds one."""
    app = app_instance()
    until(lambda: app.scores.progress().done == len(AFFINES) and "broken" in app.scores.progress().skipped)
    for image in app.leases.held():
        app.leases.release(image)


def ask(client: TestClient, strategy: str, who: str | None = None) -> Any:
    return client.post(f"/activelearning/{strategy}", json={} if who is None else {"client_id": who})


def test_all_strategies_are_offered(client: TestClient) -> None:
    offered = client.get("/info/").json()["strategies"]
    assert set(offered) == set(STRATEGIES)
    assert all(one["description"] for one in offered.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_reply_names_the_slice_as_a_viewer_finds_it(client: TestClient, studies: Path, strategy: str) -> None:
    told = ask(client, strategy, "ann").json()
    assert told["id"] != "broken"
    image = read_volume(studies / f"{told['id']}.nii.gz")
    where = told["slice"]
    assert where["of"] == image.canonical().shape[2]
    assert 0 <= where["number"] < where["of"]
    voxel = np.linalg.inv(image.affine) @ [*where["ras"], 1]
    assert voxel["ijk".index(where["axis"])] == pytest.approx(where["index"], abs=0.02)
    canonical = np.linalg.inv(image.canonical().affine) @ [*where["ras"], 1]
    assert canonical[2] == pytest.approx(where["number"], abs=0.02)
    assert told["path"].endswith(f"{told['id']}.nii.gz")
    assert told["leased_until"]


def test_a_scored_image_comes_before_one_that_cannot_be_read(client: TestClient) -> None:
    given = [ask(client, strategy, strategy).json() for strategy in STRATEGIES]
    assert "broken" not in [one["id"] for one in given]
    last = ask(client, "first", "one more").json()
    assert last["id"] == "broken"
    assert "not NIfTI" in last["note"] or "is not" in last["note"]


def test_who_asks_again_is_given_another(client: TestClient) -> None:
    given = [ask(client, "polycl-uncertain", "ann").json()["id"] for _ in AFFINES]
    assert sorted(given) == sorted(AFFINES)
    assert ask(client, "polycl-uncertain", "ann").json()["id"] == given[0], "all were: the best again"


@pytest.mark.parametrize("strategy", ["polycl-mixed", "polycl-uncertain", "polycl-diverse"])
def test_who_was_given_all_is_given_them_in_turn(client: TestClient, strategy: str) -> None:
    given = [ask(client, strategy, "ann").json()["id"] for _ in range(2 * len(AFFINES))]
    assert given[: len(AFFINES)] == given[len(AFFINES) :], "the one that was given longest ago"


def test_first_is_the_same_until_it_is_labelled(client: TestClient) -> None:
    assert ask(client, "first", "ann").json()["id"] == ask(client, "first", "ann").json()["id"] == sorted(AFFINES)[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_people_get_different_images_and_then_none(client: TestClient, strategy: str) -> None:
    given = [ask(client, strategy, f"person {number}").json()["id"] for number in range(len(IMAGES))]
    assert sorted(given) == sorted(IMAGES)
    refused = ask(client, strategy, "one more")
    assert refused.status_code == 409
    assert "others work on all 6 images" in refused.json()["detail"]
    assert ask(client, strategy, "person 0").status_code == 200


def test_who_does_not_say_their_name_is_one_person(client: TestClient) -> None:
    assert ask(client, "first").json()["id"] == ask(client, "first").json()["id"]
    assert ask(client, "first", "ann").json()["id"] != ask(client, "first").json()["id"]


def test_a_lease_expires(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = app_instance().leases
    given = ask(client, "first", "ann").json()["id"]
    assert ask(client, "first", "bob").json()["id"] != given
    now = leases._now()
    monkeypatch.setattr(leases, "_now", lambda: now + timedelta(minutes=31))
    assert ask(client, "first", "cid").json()["id"] == given


def test_without_leases_all_get_the_same(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_instance().leases, "_time", timedelta(0))
    told = [ask(client, "first", who).json() for who in ("ann", "bob")]
    assert told[0]["id"] == told[1]["id"]
    assert "leased_until" not in told[0]


def test_a_saved_label_ends_the_lease_and_covers_its_image(client: TestClient, studies: Path, tmp_path: Path) -> None:
    given = ask(client, "polycl-diverse", "ann").json()["id"]
    assert given in app_instance().leases.held()
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:20, 10:20, 2:4] = 1
    image = read_volume(studies / f"{given}.nii.gz")
    write_volume(
        Volume(mask if image.shape == SHAPE else np.ones(image.shape, np.uint8), image.affine), tmp_path / "l.nii"
    )
    saved = client.put(
        "/datastore/label",
        params={"image": given},
        data={"params": json.dumps({"label_info": [{"name": "liver"}], "client_id": "ann"})},
        files={"label": ("label.nii", (tmp_path / "l.nii").read_bytes())},
    )
    assert saved.status_code == 200, saved.text
    assert given not in app_instance().leases.held()
    labelled = {image.id: image for image in images_of(app_instance().datastore()) if image.labelled}
    assert list(labelled) == [given]
    assert labelled[given].known is not None
    until(lambda: app_instance().scores.choose("diverse", [given], 1) == [])
    assert ask(client, "polycl-diverse", "bob").json()["id"] != given
    client.delete("/datastore/label", params={"id": given, "tag": "final"})
    app_instance().scores.wake()
    until(lambda: app_instance().scores.choose("diverse", [given], 1))


def test_scores_are_there_at_the_next_start(client: TestClient) -> None:
    app = app_instance()
    reads: list[Path] = []
    segmenters = {"tiny": app._infers["tiny"]}
    again = scores_of(app.runtime, segmenters, app.datastore)
    again._read = lambda path: reads.append(path) or read_volume(path)
    again.look()
    assert again.progress().done == len(AFFINES)
    assert [path.name for path in reads] == ["broken.nii.gz"]
    picks = again.choose("mixed", list(AFFINES), 5)
    assert picks == app.scores.choose("mixed", list(AFFINES), 5)


def test_a_segmenter_that_is_not_served_is_named(client: TestClient, settings: Settings) -> None:
    app = app_instance()
    runtime = type("R", (), {"settings": settings.model_copy(update={"score_model": "other"})})()
    with pytest.raises(NotFoundError, match=r"POLYCL_SCORE_MODEL='other'.*tiny"):
        scores_of(runtime, {"tiny": app._infers["tiny"]}, app.datastore)


def test_what_is_kept_names_no_image(client: TestClient, settings: Settings) -> None:
    names = [path.name for path in (settings.acquisition / "scores").rglob("*")]
    assert names
    assert not any(image in name for image in IMAGES for name in names)
