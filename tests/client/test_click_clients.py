"""Clicks as 3D Slicer's Smart Edit panel sends them, through both copies of MONAI Label's client."""

import json
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from fake_sam import FakeSam
from polycl.clicks import Click, Index, best_mask, locate, on_slice
from polycl.sam import EmbeddingCache
from polycl.sam.slices import SliceEncoder
from polycl.volume import Volume, read_volume
from polycl.window import Window

pytestmark = [pytest.mark.client, pytest.mark.slow]

IMAGES = ["axial", "oblique"]
MODEL = "polycl-click"


def volume(images: Path, name: str) -> Volume:
    return read_volume(images / f"{name}.nii.gz")


def expected(image: Volume, click: Click, window: str = "soft-tissue") -> np.ndarray:
    """The mask that the library gives, in the image's own axes."""
    z, prompts = locate(click, image)
    sam = FakeSam()
    embedding = SliceEncoder(image, sam, Window.named(window), EmbeddingCache(0)).embedding(z)
    return on_slice(best_mask(sam.decode(embedding, prompts), prompts), z, image).voxels


def ask(client: Any, name: str, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What the panel does: an NRRD of bytes back. The client adds its id to the parameters."""
    sent = {"label": "liver", "result_extension": ".nrrd", "result_dtype": "uint8"} | params
    file, reply = client.infer(MODEL, name, sent)
    voxels, header = nrrd.read(file)
    assert header["type"] in ("uint8", "unsigned char", "uchar")
    return voxels, reply


def bright(image: Volume, k: int, number: int) -> Index:
    """A voxel of own slice `k` inside what the fake SAM finds."""
    places = np.argwhere(image.voxels[:, :, k] > 60)
    i, j = places[number * len(places) // 9]
    return int(i), int(j), k


def test_the_panel_lists_it(client: Any) -> None:
    models = client.info()["models"]
    assert next(name for name, model in models.items() if model["type"] in ("deepgrow", "deepedit")) == MODEL
    assert models[MODEL]["dimension"] == 2
    assert models[MODEL]["labels"] == []


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("k", [0, 4, 8])
def test_points_in_and_out(client: Any, images: Path, name: str, k: int) -> None:
    image = volume(images, name)
    inside, outside = bright(image, k, 2), bright(image, k, 7)
    mask, reply = ask(client, name, foreground=[inside], background=[], slice=k)
    np.testing.assert_array_equal(mask, expected(image, Click((inside,))))
    assert mask[inside] == 1
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == {k}, "the panel clears this slice and adds what came"
    assert reply["label_names"] == {"liver": 1}
    less, _ = ask(client, name, foreground=[inside], background=[outside], slice=k)
    np.testing.assert_array_equal(less, expected(image, Click((inside,), (outside,))))
    assert less[outside] == 0
    again, _ = ask(client, name, foreground=[inside], background=[], slice=k)
    np.testing.assert_array_equal(again, mask)


def test_on_slice_zero_the_panel_sends_the_points_of_all_slices(client: Any, images: Path) -> None:
    image = volume(images, "axial")
    here, there = bright(image, 0, 3), bright(image, 5, 3)
    mask, reply = ask(client, "axial", foreground=[here, there], background=[], slice=0)
    np.testing.assert_array_equal(mask, expected(image, Click((here,))))
    assert reply["axial_slice"] == 0


@pytest.mark.parametrize("name", IMAGES)
def test_an_unsorted_roi_with_an_offset_in_mm(client: Any, images: Path, name: str) -> None:
    image = volume(images, name)
    roi = [50, 12, 8, 40, 7, 1]
    masks = []
    for offset in (None, round(abs(float((image.affine @ [31, 24, 3, 1])[2])))):
        mask, reply = ask(client, name, foreground=[], background=[], roi=roi, slice=offset)
        assert mask.any()
        assert reply["axial_slice"] == (4 if offset is None else 3)
        np.testing.assert_array_equal(mask, expected(image, Click(roi=tuple(roi), slice_hint=offset)))
        masks.append(mask)
    tidy, _ = ask(client, name, foreground=[], background=[], roi=[12, 50, 8, 40, 1, 7], slice=None)
    np.testing.assert_array_equal(tidy, masks[0])


def test_another_window(client: Any, images: Path) -> None:
    image = volume(images, "axial")
    point = bright(image, 4, 4)
    mask, _ = ask(client, "axial", foreground=[point], background=[], slice=4, window="brain")
    np.testing.assert_array_equal(mask, expected(image, Click((point,)), "brain"))


def test_a_refusal_tells_the_panel_why(client: Any) -> None:
    with pytest.raises(client.infer.__globals__["MONAILabelClientException"]) as raised:
        ask(client, "axial", foreground=[[99, 0, 0]], background=[], slice=0)
    assert "Status: 422" in raised.value.msg
    assert "64x52x9" in json.loads(raised.value.msg.partition("Response: ")[2])["detail"]
