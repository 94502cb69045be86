"""A server without weights of SAM: what needs them says where to get them, the rest is as ever."""

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("without")]


@pytest.fixture(scope="module", autouse=True)
def without() -> Iterator[None]:
    """No weights are found, whatever ships."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polycl.monailabel.engines.default_engine", lambda settings: None)
        patch.setattr("polycl.monailabel.propagators.at_hand", lambda catalogue: [])
        yield


@pytest.mark.parametrize("model", ["polycl-click", "refine", "polycl-propagate", "polycl-propagate-painted"])
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
