"""The audit trail over HTTP: what a request did, by whom, under which id."""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient
from test_signin import PASSWORD, client_of, token

from polycl.accounts import Accounts, Role
from polycl.audit import Audit, Line
from polycl.catalogue import Catalogue
from polycl.learning.runs import Event, Request
from polycl.monailabel.train import LearnTask
from polycl.settings import Settings

pytestmark = pytest.mark.app


def told(settings: Settings) -> list[Line]:
    return list(Audit(settings.audit).lines())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, Settings]]:
    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    settings = Settings(state=tmp_path)
    for role in Role:
        Accounts(settings.users).add(f"the-{role}", role, PASSWORD)
    with client_of(settings) as client:
        yield client, settings


def test_signing_in_is_told_whether_it_works_or_not(site: tuple[TestClient, Settings]) -> None:
    client, settings = site
    token(client, "the-reader")
    client.post("/auth/token", data={"username": "the-admin", "password": "wrong"})
    done, refused = told(settings)
    assert (done.action, done.user, done.outcome) == ("user.sign-in", "the-reader", "done")
    assert (refused.user, refused.outcome, refused.details) == ("the-admin", "refused", {"status": 401})
    assert "wrong" not in (settings.audit / "audit.jsonl").read_text()


def test_changes_are_told_with_user_and_request(site: tuple[TestClient, Settings]) -> None:
    client, settings = site
    header = token(client, "the-reviewer") | {"X-Request-ID": "abc-1"}
    client.put("/datastore/label?image=patient_7&tag=final", headers=header)
    client.post("/polycl/api/models/publish", headers=header)
    client.get("/datastore/label?label=patient_7&tag=final", headers=header)
    assert client.delete("/datastore/image?id=patient_7", headers=header).status_code == 403
    lines = told(settings)[1:]
    assert [line.action for line in lines] == ["label.save", "model.publish"]
    assert {(line.user, line.request) for line in lines} == {("the-reviewer", "abc-1")}
    assert [line.action for line in Audit(settings.audit).lines(image="patient_7")] == ["label.save"]
    assert "patient_7" not in (settings.audit / "audit.jsonl").read_text()


def test_a_trail_that_cannot_be_written_stops_no_work(
    site: tuple[TestClient, Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    client, _ = site
    header = token(client, "the-reviewer")
    monkeypatch.setattr(Audit, "add", full)
    assert client.post("/train/", headers=header).status_code == 200
    assert "audit trail cannot be written (No space left on device)" in caplog.text


def test_the_version_that_was_saved(client: TestClient, studies: Path, settings: Settings) -> None:
    image = nib.load(studies / "lps.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[2:5, 2:5, 1] = 1
    file = gzip.compress(nib.Nifti1Image(voxels, image.affine).to_bytes())
    params = json.dumps({"client_id": "user-xyz", "label_info": [{"name": "liver", "idx": 1}]})
    answer = client.put("/datastore/label?image=lps", files={"label": ("l.nii.gz", file)}, data={"params": params})
    assert answer.status_code == 200, answer.text
    (line,) = Audit(settings.audit).lines(image="lps")
    assert (line.action, line.client, line.user) == ("label.save", "user-xyz", "")
    assert line.details == {"tag": "final", "version": answer.json()["version"]}
    assert line.request == answer.headers["X-Request-ID"]


def test_how_training_ended(settings: Settings, tmp_path: Path) -> None:
    task = LearnTask(["tiny"], Catalogue.default(settings), Settings(state=tmp_path))
    request = Request(
        model="tiny",
        parent=0,
        weights=tmp_path / "w",
        sha256="",
        examples=(),
        validation=(),
        versions=tmp_path,
        keep=2,
        cache=tmp_path,
        threads=1,
    )
    run = task.trainer.runs.create(request)
    run.add(Event(at=datetime.now(UTC), state="done", version=4, published=True))
    task._ended(run)
    ended, published = Audit(tmp_path / "audit").lines()
    assert (ended.action, ended.details["state"], ended.details["run"]) == ("training.end", "done", run.id)
    assert (published.action, published.details) == ("model.publish", {"model": "tiny", "version": 4, "run": run.id})
