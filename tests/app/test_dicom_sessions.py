"""DICOM that is not in the store, sent in a session: as an archive, or as the files of one series at once."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replies import refused, reply
from starlette.testclient import TestClient

from polycl.phantom import make_phantom, write_dicom_series
from polycl.segmenter import Segmenter
from polycl.volume import read_series

pytestmark = pytest.mark.app


@pytest.fixture(scope="module", params=["increasing", "decreasing"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The images of a series."""
    image = make_phantom(3, shape=(48, 40, 6), spacing=(8.0, 8.0, 30.0)).image
    folder = tmp_path_factory.mktemp("series")
    return write_dicom_series(image, folder, seed=3, decreasing=request.param == "decreasing")


def archive(files: list[Path], folder: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            packed.write(file, f"{folder}{file.parent.name}_{file.name}")
    return buffer.getvalue()


def send(client: TestClient, *files: tuple[str, bytes], **query: str) -> str:
    answer = client.put("/session/", params=query, files=[("files", file) for file in files])
    assert answer.status_code == 200, answer.text
    return str(answer.json()["session_id"])


def segment(client: TestClient, session: str) -> Any:
    params = {"params": json.dumps({"result_extension": ".nii.gz"})}
    return client.post("/infer/tiny", params={"session_id": session}, data=params)


@pytest.mark.parametrize("folder", ["", "PATIENT/STUDY/"])
def test_an_archive(client: TestClient, segmenter: Segmenter, files: list[Path], folder: str) -> None:
    session = send(client, ("study.zip", archive(files, folder)), uncompress="true")
    _, mask = reply(segment(client, session))
    np.testing.assert_array_equal(mask, segmenter.segment(read_series(files[0].parent)).voxels)
    assert client.delete(f"/session/{session}").status_code == 200
    assert segment(client, session).status_code == 404


def test_files_at_once(client: TestClient, segmenter: Segmenter, files: list[Path]) -> None:
    session = send(client, *((file.name, file.read_bytes()) for file in reversed(files)))
    _, mask = reply(segment(client, session))
    np.testing.assert_array_equal(mask, segmenter.segment(read_series(files[0].parent)).voxels)


def test_what_is_no_one_series_is_refused(client: TestClient, files: list[Path], tmp_path: Path) -> None:
    other = make_phantom(4, shape=(24, 20, 4), spacing=(16.0, 16.0, 40.0)).image
    two = archive([*files, *write_dicom_series(other, tmp_path / "other", seed=4)])
    refused(segment(client, send(client, ("two.zip", two), uncompress="true")), 422, "2 series")
    missing = archive([file for number, file in enumerate(files) if number != 2])
    refused(segment(client, send(client, ("gap.zip", missing), uncompress="true")), 422, "missing")
    refused(segment(client, send(client, ("not_unpacked.zip", two))), 422, "accepted")
