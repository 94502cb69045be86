"""Weights of SAM that are not what they should be: clicks say so, a segmentation comes unrefined."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from replies import refused, reply
from starlette.testclient import TestClient

from polycl.settings import Settings

pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    weights = tmp_path_factory.mktemp("weights")
    shutil.copy(tiny_checkpoint, weights)
    (weights / "mobile_sam").mkdir()
    for name in ("encoder.onnx", "decoder.onnx"):
        (weights / "mobile_sam" / name).write_bytes(b"something else")
    return Settings(state=tmp_path_factory.mktemp("state"), weights=weights, precision="fp32")


def infer(client: TestClient, model: str, **params: Any) -> Any:
    body = {"params": json.dumps({"result_extension": ".nii.gz"} | params)}
    return client.post(f"/infer/{model}", params={"image": "lps"}, data=body)


def test_a_click_says_so_each_time(client: TestClient) -> None:
    for _ in range(2):
        refused(infer(client, "polycl-click", foreground=[[18, 14, 3]]), 424, "encoder.onnx")


def test_a_segmentation_comes_unrefined(client: TestClient) -> None:
    plain, expected = reply(infer(client, "tiny"))
    params, mask = reply(infer(client, "tiny", refine="mobile-sam"))
    assert params["refined"] is False
    assert "encoder.onnx" in params["reason"]
    assert "/tmp" not in params["reason"]
    assert "refined" not in plain
    assert (mask == expected).all()


def test_opening_a_study_is_answered(client: TestClient) -> None:
    assert client.get("/datastore/image", params={"image": "lps"}).status_code == 200
    assert client.get("/info/").json()["embeddings"]["prefetched"] == 0
