"""Propagation as 3D Slicer's panels ask for it, through both copies of MONAI Label's client."""

import json
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from polycl.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.client, pytest.mark.slow]

CLICKED, PAINTED = "polycl-propagate", "polycl-propagate-painted"
SLICE = 4


@pytest.fixture
def image(images: Path) -> Volume:
    return read_volume(images / "axial.nii.gz")


def bright(image: Volume) -> np.ndarray:
    """What the fake network takes for one object, on one slice."""
    found: np.ndarray = image.voxels[:, :, SLICE] > 60
    return found


def defaults(client: Any, model: str) -> dict[str, Any]:
    """The first of each list of options, as the panel sends them."""
    config = client.info()["models"][model]["config"]
    return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}


def ask(client: Any, model: str, label: Path | None = None, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
    sent = defaults(client, model) | {"result_extension": ".nrrd", "result_dtype": "uint8"} | params
    file, reply = client.infer(model, "axial", sent, str(label) if label else None)
    voxels, header = nrrd.read(file)
    assert header["type"] in ("uint8", "unsigned char", "uchar")
    return voxels, reply


def test_the_panels_list_both(client: Any) -> None:
    models = client.info()["models"]
    assert (models[CLICKED]["type"], models[CLICKED]["dimension"]) == ("deepgrow", 3)
    assert models[PAINTED]["type"] == "scribbles"
    deepgrow = [name for name, model in models.items() if model["type"] == "deepgrow"]
    assert deepgrow[0] != CLICKED, "the click that answers at once is the panel's first"


def test_smart_edit(client: Any, image: Volume) -> None:
    i, j = map(int, np.argwhere(bright(image))[40])
    mask, reply = ask(client, CLICKED, label=None, foreground=[[i, j, SLICE]], background=[])
    assert mask.shape == image.shape
    assert set(np.unique(mask)) == {0, 1}
    assert len(np.flatnonzero(mask.any(axis=(0, 1)))) > 1
    assert reply["label_names"] == {"object": 1}
    assert reply["seed_slices"] == [SLICE]


def test_scribbles(client: Any, image: Volume, tmp_path: Path) -> None:
    label = tmp_path / "scribbles.nrrd"
    info = [
        {"name": "liver", "id": 1},
        {"name": "background_scribbles", "id": 2},
        {"name": "foreground_scribbles", "id": 3},
    ]
    painted = np.zeros(image.shape, np.uint8)
    painted[:, :, SLICE][bright(image)] = 3
    params = {"label_info": info, "selected_label_name": "liver", "roi": []}
    write_volume(image.with_voxels(painted), label)
    mask, reply = ask(client, PAINTED, label, **params)
    np.testing.assert_array_equal(mask[:, :, SLICE] > 0, bright(image))
    assert reply["label_names"] == {"liver": 1}
    assert (reply["seed_slices"], reply["corrected_slices"]) == ([SLICE], [])
    again = mask.copy()
    again[painted == 3] = 3
    again[:, :, SLICE + 2] = 0
    write_volume(image.with_voxels(again), label)
    mended, reply = ask(client, PAINTED, label, **params)
    assert reply["corrected_slices"] == ([SLICE + 2] if mask[:, :, SLICE + 2].any() else [])
    assert not mended[:, :, SLICE + 2].any()
    np.testing.assert_array_equal(mended[:, :, SLICE] > 0, bright(image))


def test_a_refusal_tells_the_panel_why(client: Any, image: Volume, tmp_path: Path) -> None:
    label = tmp_path / "empty.nrrd"
    write_volume(image.with_voxels(np.zeros(image.shape, np.uint8)), label)
    with pytest.raises(client.infer.__globals__["MONAILabelClientException"]) as raised:
        ask(client, PAINTED, label, label_info=[{"name": "liver", "id": 1}], selected_label_name="liver", roi=[])
    assert "Status: 422" in raised.value.msg
    assert "liver" in json.loads(raised.value.msg.partition("Response: ")[2])["detail"]
