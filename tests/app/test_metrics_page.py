"""`/metrics`, `/readyz`: figures of what was asked, and nothing of a person; who may read them."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from test_signin import PASSWORD, application, token

from polycl.accounts import Accounts, Role
from polycl.settings import Settings

pytestmark = pytest.mark.app


def figures(text: str) -> dict[str, float]:
    """`name{label=value,…}` to value; the parser refuses what is no valid exposition."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_what_was_asked_is_counted(client: TestClient) -> None:
    path = "{method=POST,route=/infer/{},status=200}"
    before = figures(client.get("/metrics").text).get(f"polycl_request_seconds_count{path}", 0)
    answer = client.post("/infer/tiny?image=lps&output=json", data={"params": '{"result_extension": ".nii.gz"}'})
    assert answer.status_code == 200, answer.text
    client.get("/datastore/image?image=no_such_patient")
    client.request("INVENTED", "/x/y/z")
    page = client.get("/metrics")
    found = figures(page.text)
    assert page.headers["content-type"].startswith("text/plain")
    assert found[f"polycl_request_seconds_count{path}"] == before + 1
    seconds = answer.json()["seconds"]
    assert {f"polycl_stage_seconds_count{{model=tiny,stage={stage}}}" for stage in seconds} <= found.keys()
    assert found["polycl_wait_seconds_count{kind=volume}"] >= 1
    assert found["polycl_queue_waiting{queue=auto}"] == 0
    assert found["polycl_training{state=none}"] == 1
    assert found["polycl_disk_free_bytes{folder=store}"] > 0
    assert found["process_resident_memory_bytes{}"] > 1e6
    assert "polycl_embedding_cache_hits_total{}" in found
    assert not re.search("lps|no_such_patient|INVENTED|x/y/z", page.text)


def test_ready_until_it_cannot_write(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/readyz").json() == {"ready": True}
    monkeypatch.setattr("polycl.server.site.why_unwritable", lambda _: "No space left on device")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert "No space" in answer.json()["reason"]
    assert client.get("/healthz").status_code == 200


@pytest.fixture
def small_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    settings = Settings(state=tmp_path)
    Accounts(settings.users).add("the-reader", Role.READER, PASSWORD)
    return settings


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycl.server.metrics._text", lambda _: b"# figures\n")


@pytest.mark.usefixtures("_no_page")
def test_this_machine_and_who_signed_in_may_read_them(small_site: Settings) -> None:
    from polycl.server.site import protect_site

    app = application()
    protect_site(app, small_site, "127.0.0.1", 8000)
    address = "http://127.0.0.1:8000"
    with TestClient(app, base_url=address, client=("203.0.113.5", 1)) as elsewhere:
        assert elsewhere.get("/metrics").status_code == 401
        assert elsewhere.get("/metrics", headers=token(elsewhere)).text == "# figures\n"
    with TestClient(app, base_url=address, client=("127.0.0.1", 1)) as here:
        assert here.get("/metrics").status_code == 200
        assert here.get("/info/").status_code == 401
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            assert here.get("/metrics", headers={name: "203.0.113.5"}).status_code == 401
