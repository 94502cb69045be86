"""A segmentation that was asked for before: the same answer, without computing it again."""

import json
from typing import Any

import numpy as np
import pytest
from replies import reply
from starlette.testclient import TestClient

from polycl.segmenter import Segmenter
from polycl.volume import Volume

pytestmark = pytest.mark.app


@pytest.fixture(autouse=True)
def computed_anew() -> None:
    """Not here."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Volume]:
    """Images that a segmenter was shown."""
    images, segment = [], Segmenter.segment

    def counted(self: Segmenter, image: Volume, *given: Any, **named: Any) -> Volume:
        images.append(image)
        return segment(self, image, *given, **named)

    monkeypatch.setattr(Segmenter, "segment", counted)
    return images


def ask(client: TestClient, image: str, **params: Any) -> np.ndarray:
    sent = {"params": json.dumps({"result_extension": ".nii.gz"} | params)}
    answer = client.post("/infer/tiny", params={"image": image}, data=sent)
    stages = [stage.partition(";dur=")[0] for stage in answer.headers["server-timing"].split(", ")]
    assert stages == ["fetch", "read", "segment", "write", "total"]
    return reply(answer)[1]


@pytest.mark.parametrize("image", ["ras", "swapped", "oblique", "as_nrrd"])
def test_the_second_time_costs_nothing(client: TestClient, computed: list[Volume], image: str) -> None:
    first = ask(client, image)
    assert len(computed) == 1
    np.testing.assert_array_equal(ask(client, image), first)
    for value in (1, 2):
        assert (first == value).any()
        np.testing.assert_array_equal(ask(client, image, label_prompt=[value]), np.where(first == value, value, 0))
    assert len(computed) == 1


def test_another_image_is_computed(client: TestClient, computed: list[Volume]) -> None:
    ask(client, "lps")
    ask(client, "las_down")
    assert len(computed) == 2


def test_what_failed_is_not_kept(client: TestClient, computed: list[Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "segment", None)
        assert client.post("/infer/tiny", params={"image": "one_slice"}).status_code == 500
    ask(client, "one_slice")
    assert len(computed) == 1
