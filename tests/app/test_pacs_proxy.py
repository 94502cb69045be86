"""What OHIF reads of the PACS through the server: whole queries, only the DICOMweb root, and clear failures."""

import gzip
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fake_pacs import STUDY, FakePacs, fake_pacs
from hypothesis import given
from hypothesis import strategies as st
from replies import refused
from starlette.testclient import TestClient

from polycl.monailabel import pacs_client
from polycl.monailabel.folders import BadRequest
from polycl.server.proxy import address

pytestmark = [pytest.mark.app, pytest.mark.timeout(60)]

ROOT = "http://pacs:8042/dicom-web"
PARTS = ("studies", "1.2", "..", ".", "%2e", "%2f", "%", "\\", "@", ":", "//", "?", "#", ";", "~", "http:")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakePacs]:
    with fake_pacs() as server:
        server.offer("1.9")
        yield server


@pytest.fixture(scope="module")
def studies(fake: FakePacs) -> str:
    return fake.address


@pytest.fixture(autouse=True)
def fresh(client: TestClient, fake: FakePacs) -> None:
    fake.answers.clear()
    fake.offer("1.9")
    assert client.get("/info/").status_code == 200
    fake.asked.clear()
    fake.queries.clear()


def test_the_query_is_kept(client: TestClient, fake: FakePacs) -> None:
    query = (
        "PatientName=M%C3%BCller*&00080060=CT&limit=101&offset=0&includefield=00081030%2C00080060&fuzzymatching=true"
    )
    assert client.get(f"/proxy/dicom/qido/series?{query}").json()[0]["0020000E"]["Value"] == ["1.9"]
    assert fake.queries == [query]


def test_the_accept_header_is_kept_and_secrets_are_not(
    client: TestClient, fake: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    handler = fake.RequestHandlerClass
    original = handler.do_GET  # type: ignore[attr-defined]

    def noted(self: Any) -> None:
        seen.append({name.lower(): value for name, value in self.headers.items()})
        original(self)

    monkeypatch.setattr(handler, "do_GET", noted)
    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    sent = {"Accept": accept, "Cookie": "secret=1", "Range": "bytes=0-1", "X-Other": "secret"}
    assert client.get("/proxy/dicom/wado/series", headers=sent).status_code == 200
    assert seen[0]["accept"] == accept
    assert seen[0]["range"] == "bytes=0-1"
    assert "secret" not in str(seen)


def test_compressed_answers_pass_as_they_are(client: TestClient, fake: FakePacs) -> None:
    def handled(self: Any) -> None:
        body = gzip.compress(b"[]")
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    handler = fake.RequestHandlerClass
    original, handler.do_GET = handler.do_GET, handled  # type: ignore[attr-defined]
    try:
        answer = client.get("/proxy/dicom/qido/studies")
    finally:
        handler.do_GET = original  # type: ignore[attr-defined]
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == []


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/tools/shutdown",
        "..%2ftools",
        "studies/%2e%2e/%2e%2e/tools",
        "%252e%252e/tools",
        "studies%5c..%5c..",
        "studies//x",
        "studies/%3Fx",
        "studies/%23x",
        "studies/%0d%0ax",
        "http:%2f%2fother/x",
        "%2fetc/passwd",
    ],
)
@pytest.mark.parametrize("service", ["wado/", "qido/", ""])
def test_nothing_but_the_root_is_reached(client: TestClient, fake: FakePacs, path: str, service: str) -> None:
    answer = client.get(f"/proxy/dicom/{service}{path}")
    assert answer.status_code in (400, 404)
    assert not [asked for asked in fake.asked if not asked.startswith(("/studies", "/series"))]
    if answer.status_code == 404:
        assert "PACS" not in answer.text or fake.asked == []


@pytest.mark.parametrize(
    "path", ["studies", "studies/1.2/series/1.3/instances/1.4/frames/1,2", "studies/1.2/bulkdata/a:b"]
)
def test_addresses(path: str) -> None:
    assert address(ROOT + "/", "wado", path, "") == f"{ROOT}/{path}"
    assert address(ROOT, "qido", path, "a=b&c=%2F") == f"{ROOT}/{path}?a=b&c=%2F"
    with pytest.raises(BadRequest):
        address(ROOT, "", f"{path}/../../..", "")


@given(st.lists(st.sampled_from([*PARTS, "/"]) | st.text(max_size=3), max_size=8).map("".join))
def test_no_path_leads_out_of_the_root(path: str) -> None:
    try:
        url = urlsplit(address(ROOT, "wado", path, ""))
    except BadRequest:
        return
    assert (url.scheme, url.netloc, url.query, url.fragment) == ("http", "pacs:8042", "", "")
    assert url.path.startswith("/dicom-web/")
    assert not {"", ".", ".."} & set(unquote(url.path).split("/")[1:])


def test_it_only_reads(client: TestClient, fake: FakePacs) -> None:
    for path in ("stow/studies", "wado/studies", "studies"):
        refused(client.post(f"/proxy/dicom/{path}", content=b"x"), 405, "/datastore/label")
    assert not fake.asked
    assert not fake.stored


@pytest.mark.parametrize(
    ("status", "answered", "words"),
    [
        (404, 404, "404"),
        (400, 400, "400"),
        (401, 502, "account"),
        (403, 502, "account"),
        (500, 502, "500"),
        (503, 502, "503"),
    ],
)
def test_what_the_pacs_refuses(client: TestClient, fake: FakePacs, status: int, answered: int, words: str) -> None:
    fake.answers["/series"] = (status, "text/html", b"of patient X")
    answer = client.get("/proxy/dicom/qido/series")
    refused(answer, answered, words)
    assert "patient" not in answer.text
    assert client.get("/info/").status_code == 200


def test_no_redirection_is_followed(client: TestClient, fake: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Any) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:9/secret")
        self.send_header("Content-Length", "0")
        self.end_headers()

    monkeypatch.setattr(fake.RequestHandlerClass, "do_GET", elsewhere)
    refused(client.get("/proxy/dicom/qido/series"), 502, "redirects")


def test_a_slow_pacs(client: TestClient, fake: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_client, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(fake.RequestHandlerClass, "do_GET", lambda self: time.sleep(1))
    refused(client.get("/proxy/dicom/qido/studies"), 504, "in time")


def test_an_answer_that_breaks_off(
    client: TestClient, fake: FakePacs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    monkeypatch.setattr(fake.RequestHandlerClass, "do_GET", broken)
    answer = client.get(f"/proxy/dicom/wado/studies/{STUDY}")
    assert len(answer.content) < int(answer.headers["content-length"])
    assert "broke off" in caplog.text
    monkeypatch.undo()
    assert client.get("/info/").status_code == 200


def test_no_line_breaks_in_addresses() -> None:
    with pytest.raises(BadRequest):
        address(ROOT, "wado", "studies/x\r\nHost: other", "")
