"""The holes of MONAI Label's own server, shown open in its own code and closed here."""

import io
import json
import re
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import iter_route_contexts
from monailabel.datastore.local import LocalDatastore
from monailabel.utils.sessions import Sessions
from replies import refused
from starlette.testclient import TestClient
from tiny_images import AFFINES, ct

from polycl.accounts import Accounts, Role
from polycl.server.roles import route_of
from polycl.settings import Settings
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.app

TRAVERSING = ["../x", "..", "../../x", "/tmp/x", "a/b", "a\\b", "a\0b", ".hidden", "a:b", "a\nb", "a*", "x" * 201]
PASSWORD = "correct horse"
NAMES = {role: f"the-{role}" for role in Role}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    limit = 2 << 20
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", max_upload=limit)


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    write_volume(Volume(ct(0), AFFINES["lps"]), tmp_path / "image.nii.gz")
    return (tmp_path / "image.nii.gz").read_bytes()


def outside(folder: Path) -> set[Path]:
    """What lies beside the store, where a path with `..` would lead."""
    return set(folder.parent.iterdir())


def zipped(*names: str, size: int = 8, link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o644) << 16
            archive.writestr(member, b"\0" * size)
    return buffer.getvalue()


def send_archive(client: TestClient, data: bytes, name: str = "a.zip") -> Any:
    return client.put("/session/?uncompress=true", files={"files": (name, data)})


@pytest.mark.parametrize("name", TRAVERSING)
def test_an_image_is_stored_in_the_store(client: TestClient, studies: Path, image: bytes, name: str) -> None:
    before = outside(studies)
    refused(client.put("/datastore/image", params={"image": name}, files={"file": ("i.nii.gz", image)}), 400, "image")
    refused(client.put("/datastore/", params={"image": name}, files={"file": ("i.nii.gz", image)}), 400, "image")
    assert outside(studies) == before


def test_the_bare_store_writes_an_image_elsewhere(tmp_path: Path, image: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "sent.nii.gz").write_bytes(image)
    store = LocalDatastore(str(tmp_path / "store"), auto_reload=False)
    store.add_image("../elsewhere", str(tmp_path / "sent.nii.gz"), {})
    assert (tmp_path / "elsewhere.nii.gz").exists()


def test_the_bare_store_writes_a_label_elsewhere(tmp_path: Path, image: bytes) -> None:
    (tmp_path / "store").mkdir()
    for file in ("store/lps.nii.gz", "sent.nii.gz"):
        (tmp_path / file).write_bytes(image)
    store = LocalDatastore(str(tmp_path / "store"), extensions=["*.nii.gz"], auto_reload=False)
    store.save_label("lps", str(tmp_path / "sent.nii.gz"), "../../elsewhere", {})
    assert (tmp_path / "elsewhere" / "lps.nii.gz").exists()


@pytest.mark.parametrize("tag", TRAVERSING)
def test_a_label_is_stored_in_the_store(client: TestClient, studies: Path, tag: str) -> None:
    before = outside(studies)
    files = {"label": ("label.nii.gz", b"data")}
    refused(client.put("/datastore/label", params={"image": "lps", "tag": tag}, files=files), 400, "tag")
    refused(client.delete("/datastore/label", params={"id": "lps", "tag": tag}), 400, "tag")
    params = {"params": json.dumps({"save_label": True, "label_tag": tag})}
    refused(client.post("/infer/tiny?image=lps", data=params), 400, "label_tag")
    assert outside(studies) == before


def test_a_folder_of_labels_that_is_a_link_is_not_followed(client: TestClient, studies: Path, tmp_path: Path) -> None:
    (studies / "labels").mkdir(exist_ok=True)
    (studies / "labels" / "linked").symlink_to(tmp_path, target_is_directory=True)
    files = {"label": ("label.nii.gz", b"data")}
    refused(client.put("/datastore/label", params={"image": "lps", "tag": "linked"}, files=files), 400, "tag")
    assert list(tmp_path.iterdir()) == []


def test_a_session_is_one_of_ours(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    foreign = settings.sessions.parent / "foreign"
    foreign.mkdir()
    (foreign / "meta.info").write_text(json.dumps({"name": "x", "path": str(foreign), "image": str(foreign)}))
    assert Sessions(str(settings.sessions)).get_session("../foreign") is not None
    for name in ("../foreign", "..\\foreign", "a/../../foreign"):
        answer = client.post("/infer/tiny", params={"session_id": name})
        refused(answer, 400, "session_id")
    inside = settings.sessions / "forged"
    inside.mkdir()
    (inside / "meta.info").write_text(json.dumps({"name": "x", "path": str(inside), "image": "/etc/passwd"}))
    for url in ("/session/forged", "/session/forged?image=true"):
        refused(client.get(url), 404, "session")
    refused(client.post("/infer/tiny", params={"session_id": "forged"}), 404, "session")


@pytest.mark.parametrize("name", ["../x.nii", "/tmp/x.nii", "a/../../x.nii", "..\\x.nii"])
def test_an_archive_unpacks_into_its_folder(client: TestClient, settings: Settings, name: str) -> None:
    before = list(settings.sessions.iterdir())
    refused(send_archive(client, zipped(name)), 422, "outside")
    assert list(settings.sessions.iterdir()) == before


def test_bare_sessions_unpack_elsewhere_and_without_limit(tmp_path: Path) -> None:
    member = tarfile.TarInfo("../elsewhere-of-a-fence")
    member.size = 4
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member, io.BytesIO(b"data"))
    (tmp_path / "b.zip").write_bytes(zipped("large", size=3 << 20))
    sessions = Sessions(str(tmp_path / "sessions"))
    sessions.add_session(str(tmp_path / "a.tar"), uncompress=True)
    written = Path(tempfile.gettempdir(), "elsewhere-of-a-fence")
    assert written.exists()
    written.unlink()
    session = sessions.add_session(str(tmp_path / "b.zip"), uncompress=True)[1]
    assert (Path(session.image) / "large").stat().st_size == 3 << 20


def test_an_archive_holds_no_links(client: TestClient) -> None:
    refused(send_archive(client, zipped("link", link=True)), 422, "link")


@pytest.mark.parametrize("data", [zipped("a", size=3 << 20), zipped(*(f"{i}" for i in range(20_001)), size=0)])
def test_an_archive_is_no_bomb(client: TestClient, data: bytes) -> None:
    assert len(data) < 3 << 20
    if len(data) < 2 << 20:
        refused(send_archive(client, data), 422, "too large")
    else:
        assert send_archive(client, data).status_code == 413


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip.tar.xz"])
def test_tar_archives_are_not_unpacked(client: TestClient, name: str) -> None:
    refused(send_archive(client, b"data", name), 422, ".zip")


def test_an_upload_has_a_limit(client: TestClient) -> None:
    files = {"file": ("image.nii.gz", bytes(3 << 20))}
    refused(client.put("/datastore/image", params={"image": "x"}, files=files), 413, "larger")


@pytest.mark.parametrize("key", ["model", "image", "session"])
def test_params_cannot_say_what_the_address_says(client: TestClient, key: str) -> None:
    params = {key: "/etc/passwd"}
    refused(client.post("/infer/tiny?image=lps", data={"params": json.dumps(params)}), 400, key)
    refused(client.post("/batch/infer/tiny", json=params), 400, key)


@pytest.mark.parametrize("key", ["label", "polycl_stored_label", "file", "bundle_path"])
def test_params_name_no_file(client: TestClient, studies: Path, key: str, sam: Any) -> None:
    secret = studies / "one_slice.nii.gz"
    answer = client.post("/infer/polycl-refine?image=lps", data={"params": json.dumps({key: str(secret)})})
    assert answer.status_code in (404, 424)
    assert str(studies) not in answer.text


def test_a_painted_label_is_a_file_we_can_read(client: TestClient) -> None:
    refused(client.post("/infer/tiny?image=lps", files={"label": ("scribbles.bin", bytes(10))}), 422, "labels")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_no_model_comes_or_goes_over_http(client: TestClient, tiny_checkpoint: Path, method: str) -> None:
    before = tiny_checkpoint.read_bytes()
    files = {"files": {"file": ("m.pt", b"\x80\x04.")}} if method == "PUT" else {}
    refused(client.request(method, "/model/tiny", **files), 405, "published")
    assert tiny_checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    "options", [{"name": "../../x"}, {"tracking_uri": "http://192.0.2.1:5000"}, {"pretrained_path": "/etc/passwd"}]
)
def test_training_takes_known_options_alone(client: TestClient, options: dict[str, str]) -> None:
    refused(client.post("/train/polycl", json=options), 422, next(iter(options)))
    refused(client.post("/train/", json={"polycl": options}), 422, next(iter(options)))


def test_reload_is_closed(client: TestClient) -> None:
    from monailabel.interfaces.utils.app import app_instance

    before = app_instance()
    refused(client.post("/reload"), 404)
    assert app_instance() is before


@pytest.mark.parametrize("path", ["/train/", "/activelearning/first", "/infer/tiny?image=lps"])
def test_a_page_of_another_site_starts_nothing(client: TestClient, path: str) -> None:
    refused(client.post(path, headers={"Origin": "https://example.org"}), 403)
    refused(client.get("/info/", headers={"Host": "rebound.example.org"}), 421)


def test_bare_cors_lets_every_page_read_with_credentials(client: TestClient) -> None:
    import monailabel.app

    ours = [one for one in monailabel.app.app.user_middleware if one.cls is CORSMiddleware]  # type: ignore[comparison-overlap]
    assert monailabel.app.origins == ["*"]
    assert [one.kwargs["allow_origins"] for one in ours] != [["*"]]
    answer = client.get("/info/", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in answer.headers


def test_every_route_has_its_row_in_the_table(client: TestClient) -> None:
    found = [(method, route.path) for route in iter_route_contexts(client.app.routes) for method in route.methods or ()]  # type: ignore[attr-defined]
    assert ("DELETE", "/model/{model}") in found
    missing = [one for one in found if route_of(one[0], re.sub(r"\{[^}]*\}", "x", one[1])) is None]
    assert missing == []


def test_the_viewer_may_run(client: TestClient) -> None:
    answer = client.get("/ohif/")
    policy = answer.headers["content-security-policy"]
    assert "worker-src 'self' blob:" in policy
    assert "http://127.0.0.1:8000" in policy
    assert "frame-ancestors 'self'" in policy


@pytest.fixture
def signed_in(client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The header of a user with some role; the server asks everybody to sign in meanwhile."""
    from polycl.server.site import protect_site

    monkeypatch.setattr("polycl.accounts.SCRYPT", {"n": 16, "r": 1, "p": 1})
    accounts = Accounts(settings.users)
    for role, name in NAMES.items():
        accounts.add(name, role, PASSWORD)
    app: Any = client.app
    protect_site(app, settings, "127.0.0.1", 8000)

    def header(role: Role) -> dict[str, str]:
        given = client.post("/auth/token", data={"username": NAMES[role], "password": PASSWORD}).json()
        return {"Authorization": f"Bearer {given['access_token']}"}

    yield header
    settings.users.unlink()
    protect_site(app, settings, "127.0.0.1", 8000)


def test_logs_are_for_admins(client: TestClient, signed_in: Any) -> None:
    assert client.get("/logs/").status_code == 401
    assert client.get("/logs/", headers=signed_in(Role.REVIEWER)).status_code == 403
    assert client.get("/logs/", headers=signed_in(Role.ADMIN)).status_code in (200, 404)


def test_who_saves_a_label_is_who_signed_in(client: TestClient, studies: Path, signed_in: Any, tmp_path: Path) -> None:
    painted = (ct(0) > 0).astype("uint8")
    write_volume(Volume(painted, AFFINES["lps"]), tmp_path / "label.nii.gz")
    files = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
    form = {"params": json.dumps({"client_id": "somebody else", "label_info": [{"name": "liver"}]})}
    url = "/datastore/label?image=lps&tag=mine"
    assert client.put(url, files=files, data=form, headers=signed_in(Role.READER)).status_code == 403
    saved = client.put(url, files=files, data=form, headers=signed_in(Role.ANNOTATOR))
    assert saved.status_code == 200, saved.text
    record = json.loads((studies / "labels" / "mine" / "lps.record.json").read_text())
    assert record["annotator"] == NAMES[Role.ANNOTATOR]


def test_a_reader_saves_no_result(client: TestClient, studies: Path, signed_in: Any) -> None:
    form = {"params": json.dumps({"save_label": True, "label_tag": "theirs"})}
    refused(client.post("/infer/tiny?image=lps", data=form, headers=signed_in(Role.READER)), 403, "annotator")
    assert not (studies / "labels" / "theirs").exists()
    assert client.post("/infer/tiny?image=lps", headers=signed_in(Role.READER)).status_code == 200


def test_a_session_is_its_makers(client: TestClient, image: bytes, signed_in: Any) -> None:
    files = {"files": ("image.nii.gz", image)}
    mine, other = signed_in(Role.ANNOTATOR), signed_in(Role.ADMIN)
    made = client.put("/session/", files=files, headers=mine).json()["session_id"]
    refused(client.get(f"/session/{made}", headers=other), 404, "session")
    refused(client.delete(f"/session/{made}", headers=other), 404, "session")
    refused(client.post(f"/infer/tiny?session_id={made}", headers=other), 404, "session")
    assert client.post(f"/infer/tiny?session_id={made}", headers=mine).status_code == 200
    assert client.delete(f"/session/{made}", headers=mine).status_code == 200


def test_sessions_have_room_for_so_much(client: TestClient, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from monailabel.interfaces.utils.app import app_instance

    sessions = app_instance().sessions()
    before = list(Path(sessions.store_path).iterdir())
    monkeypatch.setattr(sessions, "_room", 10)
    refused(client.put("/session/", files={"files": ("image.nii.gz", image)}), 507, "room")
    refused(send_archive(client, zipped("a", size=11)), 507, "room")
    assert list(Path(sessions.store_path).iterdir()) == before
