"""Both ways of starting the app over a real PACS: what OHIF sends, and what it gets."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nrrd
import numpy as np
import pydicom
import pytest
from processes import Pacs, Server

from polycl.phantom import make_phantom, write_dicom_series
from polycl.segmenter import Segmenter
from polycl.volume import list_series, read_series, read_volume, write_volume

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WAYS = ["polycl serve", "monailabel start_server"]
ORDERS = ["increasing", "decreasing"]
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
LPS = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture(params=WAYS)
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


@pytest.fixture(scope="session")
def segmenter(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")


def infer(server: Server, uid: str) -> httpx.Response:
    """As OHIF's Auto-Segmentation panel asks."""
    query = {"image": uid, "output": "image"}
    return httpx.post(f"{server.address}/infer/tiny", params=query, data={"params": json.dumps(OHIF)}, timeout=60)


def unpack(reply: httpx.Response) -> tuple[dict[str, Any], np.ndarray]:
    """Header and voxels [column, row, slice] of a raw NRRD, taken from its bytes as OHIF takes them."""
    assert reply.status_code == 200, reply.text
    header = nrrd.read_header(io.BytesIO(reply.content))
    raw = reply.content[reply.content.index(b"\n\n") + 2 :]
    return header, np.frombuffer(raw, np.uint8).reshape(header["sizes"], order="F")


def cornerstone_order(folder: Path) -> list[Any]:
    """The images as Cornerstone stacks them: by (first - position) along row x column, falling."""
    images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    orientation = np.array(images[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    first = np.array(images[0].ImagePositionPatient, float)
    return sorted(
        images, key=lambda image: (first - np.array(image.ImagePositionPatient, float)) @ normal, reverse=True
    )


def test_info_and_datastore(server: Server, series: dict[str, tuple[str, Path]]) -> None:
    info = httpx.get(f"{server.address}/info/").json()
    assert info["models"]["tiny"]["labels"] == {"liver": 1, "spleen": 2}
    assert info["datastore"]["total"] >= len(series)
    offered = httpx.post(f"{server.address}/activelearning/first", json={}).json()
    assert offered["id"] in {uid for uid, _ in series.values()}
    assert Path(offered["path"]).is_file()


@pytest.mark.parametrize("order", ORDERS)
def test_a_reply_is_our_mask_in_the_order_ohif_stacks(
    server: Server, series: dict[str, tuple[str, Path]], segmenter: Segmenter, order: str
) -> None:
    uid, folder = series[order]
    header, voxels = unpack(infer(server, uid))
    assert header["encoding"] == "raw"
    assert header["space"] == "left-posterior-superior"
    mask = segmenter.segment(read_series(folder))
    assert set(np.unique(mask.voxels)) == {0, 1, 2}
    np.testing.assert_array_equal(voxels, mask.voxels)
    stack = cornerstone_order(folder)
    first, last = (np.array(stack[at].ImagePositionPatient, float) for at in (0, -1))
    row, column = np.array(stack[0].ImageOrientationPatient, float).reshape(2, 3)
    spacing = np.array(stack[0].PixelSpacing, float)
    axes = np.array([row * spacing[1], column * spacing[0], (last - first) / (len(stack) - 1)])
    np.testing.assert_allclose(header["space origin"], first, atol=1e-3)
    np.testing.assert_allclose(header["space directions"], axes, atol=1e-3)
    np.testing.assert_allclose(mask.affine[:3, :3], LPS @ axes.T, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_the_kept_image_is_monailabels_conversion(
    server: Server, series: dict[str, tuple[str, Path]], order: str, tmp_path: Path
) -> None:
    from monailabel.datastore.utils.convert import dicom_to_nifti

    uid, folder = series[order]
    (tmp_path / "ours.nii.gz").write_bytes(httpx.get(f"{server.address}/datastore/image?image={uid}").content)
    ours, theirs = read_volume(tmp_path / "ours.nii.gz"), read_volume(dicom_to_nifti(str(folder)))
    np.testing.assert_array_equal(ours.voxels, theirs.voxels)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


def test_requests_at_once_for_a_new_series(
    server: Server, pacs: Pacs, segmenter: Segmenter, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = 20 + WAYS.index(request.node.callspec.params["server"])
    image = make_phantom(seed, shape=(48, 40, 8), spacing=(8.0, 8.0, 22.0)).image
    for file in write_dicom_series(image, tmp_path, seed=seed):
        pacs.store(file)
    uid = list_series(tmp_path)[0].uid
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: infer(server, uid), range(4)))
    mask = segmenter.segment(read_series(tmp_path))
    for reply in replies:
        np.testing.assert_array_equal(unpack(reply)[1], mask.voxels)


def test_an_incomplete_series_is_read_again_once_whole(
    server: Server, pacs: Pacs, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = 30 + WAYS.index(request.node.callspec.params["server"])
    image = make_phantom(seed, shape=(48, 40, 8), spacing=(8.0, 8.0, 22.0)).image
    files = write_dicom_series(image, tmp_path, seed=seed)
    for file in files[:3] + files[4:]:
        pacs.store(file)
    uid = list_series(tmp_path)[0].uid
    refusal = infer(server, uid)
    assert refusal.status_code == 422
    assert "slices missing" in refusal.json()["detail"]
    pacs.store(files[3])
    assert unpack(infer(server, uid))[1].shape == (48, 40, 8)


@pytest.mark.parametrize("uid", ["undefined", "null", "1.2.3", "1..2"])
def test_a_series_that_is_not_there(server: Server, uid: str) -> None:
    refusal = infer(server, uid)
    assert refusal.status_code == 404
    assert uid in refusal.json()["detail"]


def test_an_image_sent_in_a_session(
    server: Server, series: dict[str, tuple[str, Path]], segmenter: Segmenter, tmp_path: Path
) -> None:
    volume = read_series(series["decreasing"][1])
    write_volume(volume, tmp_path / "sent.nii.gz")
    files = {"files": ("sent.nii.gz", (tmp_path / "sent.nii.gz").read_bytes())}
    session = httpx.put(f"{server.address}/session/", files=files, timeout=60).json()["session_id"]
    query = {"session_id": session, "output": "image"}
    reply = httpx.post(f"{server.address}/infer/tiny", params=query, data={"params": json.dumps(OHIF)}, timeout=60)
    np.testing.assert_array_equal(unpack(reply)[1], segmenter.segment(volume).voxels)


def test_ohif_reaches_the_pacs_through_the_server(server: Server, series: dict[str, tuple[str, Path]]) -> None:
    uid, _ = series["increasing"]
    listed = httpx.get(f"{server.address}/proxy/dicom/qido/series").json()
    assert [uid] in [row["0020000E"]["Value"] for row in listed]
    assert "<html" in httpx.get(f"{server.address}/ohif/").text


def test_nothing_but_this_machine_is_asked(server: Server, series: dict[str, tuple[str, Path]]) -> None:
    infer(server, series["increasing"][0])
    assert server.outside.with_name(server.outside.name + ".on").exists()
    assert server.outside.read_text() == ""
