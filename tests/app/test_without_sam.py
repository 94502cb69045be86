"""A server without weights of SAM: what needs them says where to get them, the rest is as ever."""

import json

import pytest
from starlette.testclient import TestClient

pytestmark = pytest.mark.app


@pytest.mark.parametrize("model", ["polycl-click", "refine"])
def test_what_needs_sam_is_not_offered_and_says_why(client: TestClient, model: str) -> None:
    assert model not in client.get("/info/").json()["models"]
    params = {"params": json.dumps({"foreground": [[5, 5, 3]]})}
    response = client.post(f"/infer/{model}", params={"image": "lps"}, data=params)
    assert response.status_code == 424
    assert "polycl models fetch" in response.json()["detail"]


def test_a_segmentation_comes_unrefined(client: TestClient) -> None:
    params = {"params": json.dumps({"refine": "mobile-sam"})}
    response = client.post("/infer/tiny", params={"image": "lps", "output": "json"}, data=params)
    assert response.status_code == 200
    assert response.json()["refined"] is False
    assert "mobile-sam" in response.json()["reason"]
    assert client.get("/info/").json()["models"]["tiny"]["config"] == {}
