"""Who is let in: hosts, origins, tokens, cookies, roles, sizes; over an application with MONAI Label's paths."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from polycl.accounts import Accounts, Role
from polycl.errors import InputError
from polycl.server.connection import identity
from polycl.server.exposure import check_exposure
from polycl.server.roles import route_of
from polycl.server.signin import own_page
from polycl.server.site import protect_site
from polycl.server.tokens import TRIES
from polycl.settings import Settings

pytestmark = pytest.mark.app

ADDRESS = "http://127.0.0.1:8000"
PASSWORD = "correct horse"
FOREIGN = {"Origin": "https://example.org"}
OWN = {"Origin": ADDRESS}
WEB_PAGE = {"Accept": "text/html"}


def application() -> FastAPI:
    """Answers at some of MONAI Label's paths with the name of who asks."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    async def answer(path: str, request: Request) -> dict[str, Any]:
        body = await request.body() if request.method in ("POST", "PUT") else b""
        who = identity()
        return {"path": path, "who": who and who.name, "bytes": len(body)}

    return app


def client_of(settings: Settings, host: str = "127.0.0.1", address: str = ADDRESS) -> TestClient:
    app = application()
    protect_site(app, settings, host, 8000)
    return TestClient(app, base_url=address, follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture(scope="module", autouse=True)
def _quick_hashes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
        yield


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(state=tmp_path_factory.mktemp("state"))
    accounts = Accounts(settings.users)
    for role in Role:
        accounts.add(f"the-{role}", role, PASSWORD)
    return settings


@pytest.fixture
def site(small_site: Settings) -> Iterator[TestClient]:
    with client_of(small_site) as client:
        yield client


@pytest.fixture
def open_site(tmp_path: Path) -> TestClient:
    return client_of(Settings(state=tmp_path))


def token(client: TestClient, name: str = "the-reader", password: str = PASSWORD) -> dict[str, str]:
    """The header that 3D Slicer sends once it has a token."""
    form = {"username": name, "password": password, "grant_type": "password"}
    given = client.post("/auth/token", data=form)
    assert given.status_code == 200, given.text
    return {"Authorization": f"{given.json()['token_type']} {given.json()['access_token']}"}


def test_nobody_has_to_sign_in_by_default(open_site: TestClient) -> None:
    assert open_site.get("/auth/").json()["enabled"] is False
    assert open_site.get("/info/").json()["who"] is None
    assert open_site.delete("/datastore/image?id=x").status_code == 200
    assert open_site.get("/what/else/there/is").status_code == 200
    assert open_site.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_page_of_another_site_changes_nothing(open_site: TestClient, method: str) -> None:
    assert open_site.request(method, "/train/", headers=FOREIGN).status_code == 403
    assert open_site.request(method, "/train/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert open_site.request(method, "/train/", headers={"Origin": "null"}).status_code == 403
    assert open_site.request(method, "/train/", headers=OWN).status_code == 200
    assert open_site.request(method, "/train/").status_code == 200


@pytest.mark.parametrize("host", ["example.org", "example.org:8000", "127.0.0.1.example.org", ""])
def test_a_name_that_was_given_our_address_reads_nothing(open_site: TestClient, host: str) -> None:
    answer = open_site.get("/info/", headers={"Host": host})
    assert answer.status_code == 421
    assert "POLYCL_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_known(open_site: TestClient, host: str) -> None:
    assert open_site.get("/info/", headers={"Host": host}).status_code == 200


def test_more_names_can_be_given(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, hosts="ct.example.org, other")
    client = client_of(settings, "0.0.0.0")
    assert client.get("/info/", headers={"Host": "ct.example.org"}).status_code == 200
    assert client.get("/info/", headers={"Host": "example.org"}).status_code == 421
    assert client_of(Settings(state=tmp_path), "0.0.0.0").get("/", headers={"Host": "x"}).status_code == 200


def test_reload_is_closed_to_all(open_site: TestClient, site: TestClient) -> None:
    assert open_site.post("/reload").status_code == 404
    assert site.post("/reload", headers=token(site, "the-admin")).status_code == 404


def test_slicer_signs_in(site: TestClient) -> None:
    assert site.get("/auth/").json() == {"enabled": True, "client_id": "polycl", "realm": ""}
    assert site.get("/auth/token/valid").status_code == 401
    header = token(site, "the-annotator")
    valid = site.get("/auth/token/valid", headers=header)
    assert (valid.status_code, valid.json()["username"], valid.json()["roles"]) == (200, "the-annotator", ["annotator"])
    assert site.get("/info/", headers=header).json()["who"] == "the-annotator"
    wrong = {"Authorization": header["Authorization"][:-1] + "x"}
    assert site.get("/auth/token/valid", headers=wrong).status_code == 401


@pytest.mark.parametrize("name", ["the-reader", "nobody", "the-reader\0", "../users"])
def test_a_wrong_password_gets_no_token(site: TestClient, name: str) -> None:
    answer = site.post("/auth/token", data={"username": name, "password": "wrong"})
    assert answer.status_code == 401
    assert "access_token" not in answer.json()


def test_guessing_ends_soon(small_site: Settings) -> None:
    client = client_of(small_site)
    form = {"username": "the-admin", "password": "wrong"}
    answers = [client.post("/auth/token", data=form).status_code for _ in range(TRIES + 1)]
    assert answers == [401] * TRIES + [429]
    right = client.post("/auth/token", data=form | {"password": PASSWORD})
    assert right.status_code == 429
    assert int(right.headers["Retry-After"]) > 0
    token(client, "the-reader")


@pytest.mark.parametrize("body", [b"", b"username=the-reader", b"\xff\xfe=1", b"a=1&" * 50])
def test_what_is_no_form_gets_no_token(site: TestClient, body: bytes) -> None:
    header = {"Content-Type": "application/x-www-form-urlencoded"}
    assert site.post("/auth/token", content=body, headers=header).status_code == 400
    assert site.post("/auth/token", json={"username": "the-reader", "password": PASSWORD}).status_code == 415


def test_a_browser_gets_a_cookie_that_no_script_reads(site: TestClient) -> None:
    page = site.get("/ohif/viewer?StudyInstanceUIDs=1.2", headers=WEB_PAGE)
    assert page.status_code == 303
    login = site.get(page.headers["location"])
    assert 'value="/ohif/viewer?StudyInstanceUIDs=1.2"' in login.text
    form = {"username": "the-reader", "password": PASSWORD, "next": "/ohif/viewer?StudyInstanceUIDs=1.2"}
    signed_in = site.post("/login", data=form, headers=OWN)
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/ohif/viewer?StudyInstanceUIDs=1.2")
    cookie = signed_in.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert site.get("/info/").json()["who"] == "the-reader"
    assert site.post("/logout", headers=OWN).status_code == 303
    assert site.get("/info/").status_code == 401


def test_over_tls_the_cookie_goes_over_tls_alone(small_site: Settings) -> None:
    client = client_of(small_site, address="https://ct.example.org")
    form = {"username": "the-reader", "password": PASSWORD}
    answer = client.post("/login", data=form, headers={"Origin": "https://ct.example.org"})
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_cookie_serves_our_own_pages_alone(site: TestClient) -> None:
    form = {"username": "the-admin", "password": PASSWORD}
    assert site.post("/login", data=form, headers=FOREIGN).status_code == 403
    site.post("/login", data=form, headers=OWN)
    assert site.post("/train/", headers=OWN).status_code == 200
    assert site.post("/train/", headers=FOREIGN).status_code == 403
    assert site.post("/train/").status_code == 403
    assert site.post("/train/", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_failed_login_says_so_on_the_page(site: TestClient) -> None:
    answer = site.post("/login", data={"username": "<script>", "password": "x", "next": '"><script>'}, headers=OWN)
    assert answer.status_code == 401
    assert "do not belong together" in answer.text
    assert "<script>" not in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "target",
    ["https://example.org/", "//example.org", "/\\example.org", "javascript:alert(1)", "/a\nb", "ohif", "", "/login"],
)
def test_after_signing_in_one_stays_here(target: str) -> None:
    assert own_page(target) == "/ohif/"


ALLOWED = [
    ("GET", "/info/", Role.READER),
    ("POST", "/infer/polycl-liver", Role.READER),
    ("PUT", "/session/", Role.READER),
    ("GET", "/proxy/dicom/wado/studies/1.2/series", Role.READER),
    ("GET", "/static/ohif/app.js", Role.READER),
    ("GET", "/polycl/", Role.READER),
    ("PUT", "/datastore/label", Role.ANNOTATOR),
    ("PUT", "/datastore/image", Role.ANNOTATOR),
    ("POST", "/proxy/dicom/stow/studies", Role.ANNOTATOR),
    ("GET", "/datastore/dataset", Role.ANNOTATOR),
    ("POST", "/train/polycl", Role.REVIEWER),
    ("POST", "/polycl/api/models/publish", Role.REVIEWER),
    ("DELETE", "/datastore/label", Role.REVIEWER),
    ("DELETE", "/datastore/image", Role.ADMIN),
    ("GET", "/logs/", Role.ADMIN),
    ("GET", "/model/polycl-liver", Role.ADMIN),
    ("PUT", "/model/polycl-liver", Role.ADMIN),
    ("POST", "/batch/infer/polycl-liver", Role.ADMIN),
]


@pytest.mark.parametrize(("method", "path", "needed"), ALLOWED)
def test_each_role_does_what_it_may(site: TestClient, method: str, path: str, needed: Role) -> None:
    assert site.request(method, path).status_code == 401
    for role in Role:
        answer = site.request(method, path, headers=token(site, f"the-{role}"))
        assert answer.status_code == (200 if role >= needed else 403), role


@pytest.mark.parametrize(
    "path",
    ["/what/else", "/logs", "/info", "/static", "/auth/token/other", "/infer/a/b", "/datastore/label/"],
)
def test_what_is_not_in_the_table_is_for_nobody(site: TestClient, path: str) -> None:
    assert site.get(path).status_code == 401
    assert site.get(path, headers=token(site, "the-admin")).status_code == 404


def test_the_first_row_that_fits_decides() -> None:
    assert route_of("POST", "/infer/wsi/x") != route_of("POST", "/infer/x")
    assert route_of("POST", "/polycl").access is Role.REVIEWER  # type: ignore[union-attr]
    assert route_of("GET", "/polyclinic") is None
    assert route_of("TRACE", "/info/") is None
    assert route_of("GET", "//logs/") is None


def test_a_role_taken_away_counts_at_once(small_site: Settings) -> None:
    client, accounts = client_of(small_site), Accounts(small_site.users)
    accounts.add("jane", Role.ADMIN, PASSWORD)
    header = token(client, "jane")
    assert client.get("/logs/", headers=header).status_code == 200
    accounts.remove("jane")
    assert client.get("/info/", headers=header).status_code == 401
    accounts.add("jane", Role.READER, PASSWORD)
    assert client.get("/info/", headers=header).status_code == 401


def test_nobody_is_let_in_once_the_last_user_is_gone(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)
    Accounts(settings.users).add("jane", Role.ADMIN, PASSWORD)
    client = client_of(settings)
    Accounts(settings.users).remove("jane")
    assert client.get("/info/").status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic amFuZTp4", "bearer a b c", "Bearer \xff"])
def test_an_authorization_that_is_none(site: TestClient, header: str) -> None:
    assert site.get("/info/", headers={"Authorization": header.encode("latin-1")}).status_code == 401


def test_a_body_has_a_limit(tmp_path: Path) -> None:
    client = client_of(Settings(state=tmp_path, max_upload=20 << 20))
    assert client.put("/datastore/label", content=bytes(9 << 20)).json()["bytes"] == 9 << 20
    assert client.put("/datastore/label", content=bytes(21 << 20)).status_code == 413
    assert client.post("/train/", content=bytes(9 << 20)).status_code == 413
    chunks = (bytes(1 << 20) for _ in range(9))
    assert client.post("/train/", content=chunks).status_code == 413


def test_a_body_that_is_larger_than_it_says(tmp_path: Path) -> None:
    client = client_of(Settings(state=tmp_path))
    answer = client.post("/train/", content=bytes(9 << 20), headers={"Content-Length": "10"})
    assert answer.status_code == 413


def test_pages_may_not_be_framed_nor_guessed_at(open_site: TestClient) -> None:
    headers = open_site.get("/info/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    refused = open_site.get("/info/", headers={"Host": "example.org"}).headers
    assert refused["x-content-type-options"] == "nosniff"


def test_the_login_page_runs_no_script(site: TestClient) -> None:
    policy = site.get("/login").headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'self'" in policy


def test_requests_have_an_id(open_site: TestClient) -> None:
    assert open_site.get("/info/", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = open_site.get("/info/", headers={"X-Request-ID": "a b\t"}).headers["x-request-id"]
    assert made.isalnum()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "ct.example.org"])
def test_a_public_address_needs_people_to_sign_in(tmp_path: Path, small_site: Settings, host: str) -> None:
    with pytest.raises(InputError, match="insecure-public"):
        check_exposure(host, Settings(state=tmp_path), insecure_public=False)
    check_exposure(host, Settings(state=tmp_path), insecure_public=True)
    check_exposure(host, small_site, insecure_public=False)
    check_exposure("127.0.0.1", Settings(state=tmp_path), insecure_public=False)


def test_the_provider_must_be_asked_safely(tmp_path: Path) -> None:
    plain = Settings(state=tmp_path, oidc_issuer="http://id.example.org/realms/ct")
    with pytest.raises(InputError, match="https"):
        check_exposure("127.0.0.1", plain, insecure_public=True)


def test_a_damaged_file_of_users_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text(json.dumps({"users": 3}))
    with pytest.raises(InputError, match="users"):
        check_exposure("127.0.0.1", Settings(state=tmp_path), insecure_public=False)


def test_monai_labels_own_login_accepts_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jwt
    from monailabel.endpoints.user import auth

    issued = jwt.encode({"preferred_username": "jane"}, "k" * 32, algorithm="HS256")
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda uri: "k" * 32)
    with pytest.raises(jwt.DecodeError, match="algorithms"):
        auth.from_token(issued)
    with pytest.raises(InputError, match="MONAI_LABEL_AUTH_ENABLE"):
        protect_site(application(), Settings(state=tmp_path), "127.0.0.1", 8000)
