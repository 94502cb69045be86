"""Two people on one study: each is told of the other, wherever the server answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from monailabel.interfaces.utils.app import app_instance
from replies import reply
from starlette.testclient import TestClient

from polycl.volume import read_volume, write_volume

pytestmark = pytest.mark.app

IMAGE = "lps"


@pytest.fixture(autouse=True)
def nobody_works(client: TestClient) -> None:
    app_instance().leases._file.unlink(missing_ok=True)


def infer(client: TestClient, who: str, **more: str) -> Any:
    form = {"params": json.dumps({"client_id": who} if who else {})}
    answer = client.post("/infer/tiny", params={"image": IMAGE, **more}, data=form)
    assert answer.status_code == 200, answer.text
    return answer


def notes(client: TestClient, who: str) -> list[str]:
    return list(infer(client, who, output="json").json().get("notes", []))


def save(client: TestClient, studies: Path, who: str, folder: Path) -> Any:
    image = read_volume(studies / f"{IMAGE}.nii.gz")
    write_volume(image.with_voxels(np.ones(image.shape, np.uint8)), folder / "label.nii.gz")
    saved = client.put(
        "/datastore/label",
        params={"image": IMAGE, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "liver"}], "client_id": who})},
        files={"label": ("label.nii.gz", (folder / "label.nii.gz").read_bytes())},
    )
    assert saved.status_code == 200, saved.text
    return saved.json()


def test_results_tell_of_the_other(client: TestClient) -> None:
    assert notes(client, "ann") == []
    assert notes(client, "ann") == []
    assert notes(client, "bob") == ["'ann' works on this image too"]
    assert notes(client, "ann") == ["'bob' works on this image too"]
    whole = infer(client, "ann")
    assert reply(whole)[0]["notes"] == ["'bob' works on this image too"]
    mask = infer(client, "ann", output="image")
    assert unquote(mask.headers["X-PolyCL-Notes"]) == "'bob' works on this image too"


def test_windows_of_the_viewer_are_nobody_by_name(client: TestClient) -> None:
    assert notes(client, "ohif-abc") == notes(client, "ohif-def") == notes(client, "") == []
    assert notes(client, "ann") == []
    assert notes(client, "ohif-abc") == ["'ann' works on this image too"]


def test_a_save_tells_of_the_other_and_keeps_both(client: TestClient, studies: Path, tmp_path: Path) -> None:
    notes(client, "bob")
    first = save(client, studies, "ann", tmp_path)
    assert "'bob' works on this image too" in first["notes"]
    second = save(client, studies, "bob", tmp_path)
    assert "'ann' works on this image too" in second["notes"]
    assert any("kept" in line and "'ann'" in line for line in second["notes"])
    assert second["version"] == first["version"] + 1
    client.delete("/datastore/label", params={"id": IMAGE, "tag": "final"})


def test_the_next_sample_tells_of_the_other(client: TestClient) -> None:
    given = client.post("/activelearning/first", json={"client_id": "ann"}).json()
    assert "notes" not in given
    app_instance().leases.see(given["id"], "bob")
    again = client.post("/activelearning/first", json={"client_id": "ann"}).json()
    assert again["id"] == given["id"]
    assert again["notes"] == ["'bob' works on this image too"]


def test_the_page_tells_who_is_at_work(client: TestClient) -> None:
    assert client.get("/polycl/api/queue").json()["at_work"] == []
    notes(client, "bob")
    notes(client, "ann")
    told = client.get("/polycl/api/queue?count=50").json()
    assert told["at_work"] == [{"image": IMAGE, "people": ["ann", "bob"]}]
    assert {one["image"]: one["people"] for one in told["items"]}[IMAGE] == ["ann", "bob"]
    assert not any(one["held"] for one in told["items"]), "work on an image does not keep it from others"


def test_a_file_of_ones_own_is_nobody_elses(client: TestClient, studies: Path) -> None:
    files = {"file": ("own.nii.gz", (studies / f"{IMAGE}.nii.gz").read_bytes())}
    for who in ("ann", "bob"):
        sent = client.post("/infer/tiny?output=json", data={"params": json.dumps({"client_id": who})}, files=files)
        assert "notes" not in sent.json()
    assert app_instance().leases.at_work() == {}
