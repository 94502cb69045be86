"""The load run notices what it is there to notice: results of somebody else's, lost saves, errors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from polycl.cli.bench import _load
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit

load = _load("load")
SHAPE = (6, 5, 4)
ELSEWHERE = np.array([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def mask(value: int = 1, shape: tuple[int, ...] = SHAPE) -> Volume:
    voxels = np.zeros(shape, np.uint8)
    voxels[1:3, 1:3, 1] = value
    return Volume(voxels, np.eye(4))


def reply(params: dict[str, Any], result: Volume, folder: Path) -> httpx.Response:
    """As the server sends it."""
    path = folder / "mask.nii.gz"
    write_volume(result, path)
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + json.dumps(params).encode() + b"\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\nContent-Transfer-Encoding: binary\r\n\r\n',
        path.read_bytes() + b"\r\n--x--\r\n",
    ]
    return httpx.Response(200, content=b"".join(parts), headers={"Content-Type": "multipart/form-data; boundary=x"})


@pytest.fixture
def study() -> Any:
    point = (1, 1, 1)
    image, elsewhere = (Volume(np.zeros(SHAPE, np.int16), affine) for affine in (np.eye(4), ELSEWHERE))
    return load.Study("a", image, [point], itertools.repeat(("b", elsewhere)), {point: mask()}, [mask()])


def client(study: Any, answer: Any) -> Any:
    """A client whose server answers by `answer`, of the params of a request."""

    def handle(request: httpx.Request) -> httpx.Response:
        form = dict(httpx.QueryParams(request.content.decode()))
        return answer(json.loads(form.get("params", "{}")))

    made = load.Client("http://server", 1, "click", [study], load.Tally())
    made._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(handle))
    return made


@pytest.mark.parametrize(
    ("label", "result", "wrong"),
    [
        (None, mask(), 0),
        ("somebody else's", mask(), 1),
        (None, mask(0), 1),
        (None, mask(shape=(6, 5, 3)), 1),
        (None, Volume(mask().voxels, np.diag([1.0, 1, 2, 1])), 1),
    ],
)
def test_a_click_that_was_somebody_elses(
    study: Any, tmp_path: Path, label: str | None, result: Volume, wrong: int
) -> None:
    def answer(params: dict[str, Any]) -> httpx.Response:
        return reply({"label_names": {label or params["label"]: 1}, "cached": True}, result, tmp_path)

    one = client(study, answer)
    assert one.click(study)
    assert len(one._tally.wrong) == wrong
    assert len(one._tally.clicks) == 1


@pytest.mark.parametrize(("affine", "wrong"), [(ELSEWHERE, 0), (np.eye(4), 1)])
def test_a_volume_on_the_grid_of_another(study: Any, tmp_path: Path, affine: np.ndarray, wrong: int) -> None:
    one = client(study, lambda params: reply({}, Volume(mask().voxels, affine), tmp_path))
    assert one.segment(study)
    assert len(one._tally.wrong) == wrong
    assert len(one._tally.volumes) == 1


def test_refusals_are_counted(study: Any) -> None:
    one = client(study, lambda params: httpx.Response(503))
    assert not one.click(study)
    assert not one.segment(study)
    assert one._tally.statuses == {503: 2}
    figures = load.summary(one._tally, [0.1], [100] * 12 + [200] * 3 + [220] * 3)
    assert (figures["busy"], figures["failed"]) == (2, 0)
    assert figures["memory_growth"] == pytest.approx(0.1)


def test_lost_saves(tmp_path: Path) -> None:
    folder = tmp_path / "label_versions" / "final" / "a" / "000001"
    folder.mkdir(parents=True)
    write_volume(mask(), folder / "label.nii.gz")
    (folder / "record.json").write_text(json.dumps({"annotator": "ann"}))
    assert load.lost_saves(tmp_path, [("a", "ann", 1, 4)]) == 0
    assert load.lost_saves(tmp_path, [("a", "ann", 2, 4), ("a", "bob", 1, 4), ("a", "ann", 1, 5)]) == 3
