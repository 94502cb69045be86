"""POST /infer: what comes back, for every orientation, format and parameter."""

import gzip
import hashlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from starlette.testclient import TestClient

from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_volume

pytestmark = pytest.mark.app

LABELS = {"liver": 1, "spleen": 2}
IMAGES = ["ras", "lps", "las_down", "swapped", "oblique"]


def infer(client: TestClient, image: str, output: str | None = None, **params: Any) -> Any:
    query = {"image": image} | ({"output": output} if output else {})
    response = client.post("/infer/tiny", params=query, data={"params": json.dumps(params)})
    assert response.status_code == 200, response.text
    return response


def parts(response: Any) -> tuple[dict[str, Any], str, bytes]:
    """Params, file name and file of a multipart reply."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    params, image = message_from_bytes(head + response.content).get_payload()
    return json.loads(params.get_payload()), image.get_filename(), image.get_payload(decode=True)


def nifti(data: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(data))


def expected(segmenter: Segmenter, studies: Path, name: str, labels: list[str] | None = None) -> Volume:
    (file,) = studies.glob(f"{name}.n*")
    mask = segmenter.segment(read_volume(file), labels)
    assert set(np.unique(mask.voxels)) == {0} | {mask_id for n, mask_id in LABELS.items() if n in (labels or LABELS)}
    return mask


def test_info_is_json_with_named_labels(client: TestClient) -> None:
    info = client.get("/info/").json()
    assert info["models"]["tiny"]["type"] == "segmentation"
    assert info["models"]["tiny"]["labels"] == LABELS
    assert info["labels"][:1] == ["liver"]
    assert list(info["strategies"])[:2] == ["first", "random"]
    assert {"polycl-uncertain", "polycl-diverse"} < set(info["strategies"])


@pytest.mark.parametrize("name", IMAGES)
def test_nifti_reply_is_in_the_images_own_axes(
    client: TestClient, segmenter: Segmenter, studies: Path, name: str
) -> None:
    params, filename, data = parts(infer(client, name))
    reply = nifti(data)
    want = expected(segmenter, studies, name)
    assert filename.endswith(".nii.gz")
    assert reply.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(reply.dataobj), want.voxels)
    np.testing.assert_allclose(reply.affine, nibabel.load(studies / f"{name}.nii.gz").affine, atol=1e-4)
    assert params["label_names"] == LABELS


@pytest.mark.parametrize("name", [*IMAGES, "as_nrrd"])
def test_raw_nrrd_reply_is_what_ohif_reads(client: TestClient, segmenter: Segmenter, studies: Path, name: str) -> None:
    reply = infer(client, name, "image", result_extension=".nrrd", result_dtype="uint8", result_compress=False)
    header = nrrd.read_header(io.BytesIO(reply.content))
    assert header["encoding"] == "raw"
    assert header["type"] in ("uint8", "unsigned char", "uchar")
    voxels = nrrd.read_data(header, io.BytesIO(reply.content[reply.content.index(b"\n\n") + 2 :]))
    np.testing.assert_array_equal(voxels, expected(segmenter, studies, name).voxels)


def test_slicers_nrrd_is_compressed(client: TestClient) -> None:
    _, filename, data = parts(infer(client, "lps", result_extension=".nrrd", result_dtype="uint8"))
    assert filename.endswith(".nrrd")
    assert nrrd.read_header(io.BytesIO(data))["encoding"] == "gzip"


def test_plain_nifti(client: TestClient) -> None:
    _, filename, data = parts(infer(client, "lps", result_extension=".nii"))
    assert filename.endswith(".nii")
    assert nibabel.Nifti1Image.from_bytes(data).shape == (36, 28, 7)


def test_one_slice(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    _, _, data = parts(infer(client, "one_slice"))
    np.testing.assert_array_equal(nifti(data).dataobj, expected(segmenter, studies, "one_slice").voxels)


@pytest.mark.parametrize(
    ("params", "labels"),
    [
        ({"label_prompt": [2]}, ["spleen"]),
        ({"label_prompt": [1]}, ["liver"]),
        ({"label_prompt": [1, 2]}, ["liver", "spleen"]),
        ({"label_prompt": []}, None),
        ({"labels": ["spleen"]}, ["spleen"]),
        ({"label": "liver"}, ["liver"]),
    ],
)
def test_only_the_labels_asked_for(
    client: TestClient, segmenter: Segmenter, studies: Path, params: dict[str, Any], labels: list[str] | None
) -> None:
    reply, _, data = parts(infer(client, "lps", **params))
    voxels = np.asarray(nifti(data).dataobj)
    np.testing.assert_array_equal(voxels, expected(segmenter, studies, "lps", labels).voxels)
    assert list(reply["volumes_ml"]) == (labels or ["liver", "spleen"])
    assert reply["label_names"] == LABELS


def test_volumes_model_and_seconds_in_the_reply(
    client: TestClient, segmenter: Segmenter, studies: Path, tiny_checkpoint: Path
) -> None:
    reply = infer(client, "oblique", "json").json()
    mask = expected(segmenter, studies, "oblique")
    for name, value in LABELS.items():
        assert reply["volumes_ml"][name] == pytest.approx(mask.millilitres(mask.voxels == value), abs=1e-3)
    assert reply["model"] == {
        "name": "tiny",
        "version": 0,
        "sha256": hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest(),
    }
    assert set(reply["seconds"]) == {"read", "segment", "write", "total"}


def test_a_file_sent_with_the_request(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    with (studies / "oblique.nii.gz").open("rb") as file:
        response = client.post("/infer/tiny", files={"file": ("scan 1.2.3.nii.gz", file)})
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(nifti(parts(response)[2]).dataobj, expected(segmenter, studies, "oblique").voxels)


def test_an_image_sent_in_a_session(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    with (studies / "swapped.nii.gz").open("rb") as file:
        session = client.put("/session/", files={"files": ("swapped.nii.gz", file)}).json()["session_id"]
    # Slicer sends the name of its volume along, whatever it is.
    response = client.post("/infer/tiny", params={"image": "3: CT ABD/PELV", "session_id": session})
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(nifti(parts(response)[2]).dataobj, expected(segmenter, studies, "swapped").voxels)
    assert client.delete(f"/session/{session}").status_code == 200
    gone = client.post("/infer/tiny", params={"session_id": session})
    assert gone.status_code == 404
    assert "session" in gone.json()["detail"]


def test_a_result_is_deleted_once_sent(client: TestClient, settings: Any) -> None:
    infer(client, "lps")
    assert list((settings.cache / "results").iterdir()) == []


def test_requests_at_once_get_their_own_results(client: TestClient, segmenter: Segmenter, studies: Path) -> None:
    names = IMAGES * 3
    with ThreadPoolExecutor(len(names)) as pool:
        replies = list(pool.map(lambda name: parts(infer(client, name))[2], names))
    for name, data in zip(names, replies, strict=True):
        np.testing.assert_array_equal(nifti(data).dataobj, expected(segmenter, studies, name).voxels)


@pytest.mark.timeout(60)
def test_the_server_answers_during_an_inference(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    original = Segmenter.segment

    def blocked(self: Segmenter, *args: Any, **kwargs: Any) -> Volume:
        started.set()
        assert go_on.wait(50)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Segmenter, "segment", blocked)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(infer, client, name) for name in ("ras", "lps", "oblique")]
        try:
            assert started.wait(30)
            assert client.get("/info/").status_code == 200
            assert client.post("/activelearning/first", json={}).json()["id"]
            assert not any(future.done() for future in running)
        finally:
            go_on.set()
        assert all(future.result().status_code == 200 for future in running)


def test_the_second_request_does_not_read_the_image_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    infer(client, "ras")
    monkeypatch.setattr("polycl.monailabel.infer.read_volume", None)
    infer(client, "ras", label_prompt=[1])
