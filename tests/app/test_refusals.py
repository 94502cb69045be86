"""Bad requests: a 4xx with a reason, no paths of the server in it, and the server goes on."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from replies import refused
from starlette.testclient import TestClient
from tiny_images import AFFINES, ct

from polycl.segmenter import Segmenter
from polycl.settings import Settings

pytestmark = pytest.mark.app


def post(client: TestClient, model: str = "tiny", query: dict[str, str] | None = None, **kwargs: Any) -> Any:
    return client.post(f"/infer/{model}", params=query or {}, **kwargs)


def serves(client: TestClient) -> None:
    assert post(client, query={"image": "lps"}).status_code == 200


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINES["lps"]) -> None:
    image = nibabel.Nifti1Image(voxels, None)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    nibabel.save(image, path)


def with_value(value: float) -> np.ndarray:
    voxels = ct(0).astype(np.float32)
    voxels[3, 4, 5] = value
    return voxels


def colour(path: Path) -> None:
    rgb = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, AFFINES["lps"]), path)


def truncated(path: Path) -> None:
    write_nifti(path, ct(0))
    path.write_bytes(path.read_bytes()[:-3000])


def corrupt(path: Path) -> None:
    write_nifti(path, ct(0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\x55" * 64
    path.write_bytes(bytes(data))


BAD_IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "no_image": (lambda path: path.write_bytes(b"hello" * 100), "not"),
    "empty_gzip": (lambda path: path.write_bytes(gzip.compress(b"")), "not"),
    "truncated": (truncated, "truncated"),
    "corrupt": (corrupt, "corrupt"),
    "2d": (lambda path: write_nifti(path, ct(0)[:, :, 0]), "volume"),
    "4d": (lambda path: write_nifti(path, np.stack([ct(0), ct(1)], axis=3)), "4D"),
    "colour": (colour, "colour"),
    "nan": (lambda path: write_nifti(path, with_value(np.nan)), "NaN"),
    "infinite": (lambda path: write_nifti(path, with_value(np.inf)), "infinite"),
    "zero_affine": (lambda path: write_nifti(path, ct(0), np.zeros((4, 4))), "affine"),
    "flat_affine": (lambda path: write_nifti(path, ct(0), np.diag([1.0, 1, 0, 1])), "affine"),
    "no_ct": (lambda path: write_nifti(path, np.abs(ct(0)) % 256), "Hounsfield"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_sent_along(client: TestClient, tmp_path: Path, kind: str) -> None:
    make, word = BAD_IMAGES[kind]
    path = tmp_path / "image.nii.gz"
    make(path)
    refused(post(client, files={"file": ("image.nii.gz", path.read_bytes())}), 422, word)
    serves(client)


def test_a_bad_image_in_a_session(client: TestClient, tmp_path: Path) -> None:
    truncated(tmp_path / "image.nii.gz")
    files = {"files": ("image.nii.gz", (tmp_path / "image.nii.gz").read_bytes())}
    session = client.put("/session/", files=files).json()["session_id"]
    refused(post(client, query={"session_id": session}), 422, "truncated")


def test_values_that_are_no_ct_can_be_allowed(client: TestClient, tmp_path: Path) -> None:
    write_nifti(tmp_path / "image.nii.gz", np.abs(ct(0)) % 256)
    files = {"file": ("image.nii.gz", (tmp_path / "image.nii.gz").read_bytes())}
    assert post(client, files=files, data={"params": '{"allow_any_values": true}'}).status_code == 200


@pytest.mark.parametrize("image", ["undefined", "null", "nowhere", "lps.nii.gz", "tests", "1.2.840.99"])
def test_an_unknown_image(client: TestClient, image: str) -> None:
    refused(post(client, query={"image": image}), 404, image)
    serves(client)


@pytest.mark.parametrize("image", ["/etc/passwd", "../studies/lps", "..", "a\\b"])
def test_an_image_is_a_name_and_no_path(client: TestClient, image: str) -> None:
    refused(post(client, query={"image": image}), 400, "name")


def test_no_image(client: TestClient) -> None:
    refused(post(client), 400, "image")


def test_an_image_that_left_the_store(client: TestClient, studies: Path) -> None:
    data = (studies / "lps.nii.gz").read_bytes()
    assert client.put("/datastore/image", params={"image": "gone"}, files={"file": ("g.nii.gz", data)}).is_success
    (studies / "gone.nii.gz").unlink()
    refused(post(client, query={"image": "gone"}), 404, "gone")


def test_an_unknown_model_names_those_there_are(client: TestClient) -> None:
    refused(post(client, "nothing", {"image": "lps"}), 404, "nothing", "tiny")
    serves(client)


@pytest.mark.parametrize("text", ["{", "[]", "1", "not json", '"text"', "[" * 10_000])
def test_params_that_are_no_json_object(client: TestClient, text: str) -> None:
    refused(post(client, query={"image": "lps"}, data={"params": text}), 400, "JSON")


@pytest.mark.parametrize(
    ("params", "status", "word"),
    [
        ({"result_extension": ".dcm"}, 422, ".nrrd"),
        ({"result_extension": 3}, 422, ".nrrd"),
        ({"result_dtype": "float32"}, 422, "uint8"),
        ({"result_compress": "maybe"}, 422, "result_compress"),
        ({"label_prompt": [7]}, 404, "1 (liver)"),
        ({"label_prompt": ["liver"]}, 422, "ids"),
        ({"label_prompt": {"liver": 1}}, 422, "ids"),
        ({"label_prompt": [True]}, 422, "ids"),
        ({"labels": ["lung"]}, 404, "lung"),
        ({"labels": 5}, 422, "labels"),
        ({"label": "lung"}, 404, "spleen"),
        ({"image": "/etc/passwd"}, 400, "image"),
        ({"session": {"image": "/etc/passwd"}}, 400, "session"),
        ({"model": "other"}, 400, "model"),
    ],
)
def test_a_bad_parameter(client: TestClient, params: dict[str, Any], status: int, word: str) -> None:
    refused(post(client, query={"image": "lps"}, data={"params": json.dumps(params)}), status, word)
    serves(client)


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/datastore/image?image=nowhere", 404),
        ("GET", "/datastore/label?label=nowhere&tag=final", 404),
        ("PUT", "/datastore/image/info?image=nowhere", 404),
        ("PUT", "/datastore/label/info?label=nowhere&tag=final", 404),
        ("DELETE", "/datastore/image?id=nowhere", 404),
        ("DELETE", "/datastore/label?id=lps&tag=../../x", 400),
        ("GET", "/datastore/dataset", 404),
        ("GET", "/session/nowhere", 404),
        ("DELETE", "/session/nowhere", 404),
        ("GET", "/model/tiny", 404),
        ("DELETE", "/model/tiny", 405),
        ("POST", "/infer/wsi/tiny?image=lps", 404),
        ("POST", "/activelearning/nothing", 404),
        ("POST", "/train/nothing?run_sync=true", 404),
        ("GET", "/train/?check_if_running=true", 404),
    ],
)
def test_other_endpoints(client: TestClient, method: str, url: str, status: int) -> None:
    body = {"json": {}} if "/infer/wsi" in url else {}
    assert client.request(method, url, **body).status_code == status
    serves(client)


def test_a_label_for_an_unknown_image(client: TestClient) -> None:
    files = {"label": ("label.nii.gz", b"data")}
    refused(client.put("/datastore/label", params={"image": "nowhere"}, files=files), 404, "image")


def test_labels_stay_inside_the_store(client: TestClient, studies: Path) -> None:
    files = {"label": ("label.nii.gz", b"data")}
    query = {"image": "lps", "tag": "../../elsewhere"}
    refused(client.put("/datastore/label", params=query, files=files), 400, "tag")
    assert not (studies.parent / "elsewhere").exists()


def test_only_images_enter_the_store(client: TestClient) -> None:
    files = {"file": ("program.exe", b"data")}
    refused(client.put("/datastore/image", params={"image": "x"}, files=files), 422, ".nii.gz")


def test_models_are_not_replaced_over_http(client: TestClient, tiny_checkpoint: Path) -> None:
    before = tiny_checkpoint.read_bytes()
    refused(client.put("/model/tiny", files={"file": ("m.pt", b"data")}), 405, "publish")
    assert tiny_checkpoint.read_bytes() == before


def test_only_zip_archives_are_unpacked(client: TestClient) -> None:
    refused(client.put("/session/?uncompress=true", files={"files": ("a.tar.gz", b"data")}), 422, ".zip")


def test_what_is_unexpected_gets_an_id_and_no_more(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("secret of /tmp/patient")

    monkeypatch.setattr(Segmenter, "segment", broken)
    response = post(client, query={"image": "lps"})
    assert response.status_code == 500
    detail = response.json()["detail"]
    assert "secret" not in detail
    (record,) = [record for record in caplog.records if record.name == "polycl.server.problems"]
    assert record.args[0] in detail
    monkeypatch.undo()
    serves(client)


def test_random_may_be_asked_twice_in_a_second(client: TestClient) -> None:
    for _ in range(3):
        for _ in range(8):
            assert client.post("/activelearning/random", json={"client_id": "user-xyz"}).json()["id"]
