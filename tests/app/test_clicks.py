"""The click task as 3D Slicer and OHIF use it: points and boxes in the image's own voxel axes, one slice back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monailabel.interfaces.utils.app import app_instance
from replies import refused, reply
from starlette.testclient import TestClient
from tiny_images import AFFINES

import fake_sam
from fake_sam import FakeSam, nothing_left_ahead
from polycl.monailabel.click import ClickRequest, ClickTask
from polycl.volume import Volume, from_canonical_index, read_volume, to_canonical_index, write_volume
from polycl.window import Window
from turning import turned

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam")]

IMAGES = list(AFFINES)
MODEL = "polycl-click"


def click(client: TestClient, image: str, query: dict[str, str] | None = None, **params: Any) -> Any:
    body = {"result_extension": ".nii.gz", "result_dtype": "uint8", "label": "liver"} | params
    return client.post(f"/infer/{MODEL}", params={"image": image} | (query or {}), data={"params": json.dumps(body)})


def load(studies: Path, name: str) -> Volume:
    return read_volume(studies / f"{name}.nii.gz")


def tissue_index(image: Volume, z: int, number: int = 0) -> list[int]:
    """Own voxel index of a pixel of canonical slice `z` that the fake SAM finds bright, with its neighbours."""
    bright = image.canonical().voxels[:, :, z] > 40
    joined = bright[1:-1, 1:-1] & bright[2:, 1:-1] & bright[1:-1, 2:]
    x, y = (int(part) + 1 for part in np.argwhere(joined)[number * len(np.argwhere(joined)) // 7])
    own: list[int] = from_canonical_index([x, y, z], image.shape, image.affine).tolist()
    return own


def canonical_slices(mask: np.ndarray, image: Volume) -> list[int]:
    points = to_canonical_index(np.argwhere(mask), image.shape, image.affine)
    return sorted(set(points[:, 2].tolist()))


def test_it_is_offered_as_2d_point_prompts(client: TestClient) -> None:
    model = client.get("/info/").json()["models"][MODEL]
    assert (model["type"], model["dimension"], model["labels"]) == ("deepgrow", 2, [])
    assert model["config"] == {"window": ["soft-tissue", "lung", "bone", "brain", "header"]}


def test_a_sam2_has_the_windows_it_was_trained_with(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycl.monailabel.engines.default_engine", lambda settings: "polycl-sam2-ct")
    assert ClickTask(app_instance().runtime).info()["config"] == {}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("part", [0.25, 0.5, 0.8])
def test_a_click_outlines_what_is_under_it_on_its_slice(
    client: TestClient, studies: Path, name: str, part: float
) -> None:
    image = load(studies, name)
    z = int(image.canonical().shape[2] * part)
    point = tissue_index(image, z)
    params, mask = reply(click(client, name, foreground=[point], background=[], slice=point[2]))
    assert mask.shape == image.shape
    assert set(np.unique(mask)) == {0, 1}
    assert mask[tuple(point)] == 1
    assert canonical_slices(mask, image) == [z]
    assert params["axial_slice"] == z
    assert params["label_names"] == {"liver": 1}
    assert (image.voxels[mask > 0] > 40).all()


@pytest.mark.parametrize("name", IMAGES)
def test_a_box_in_any_order_of_its_ends(client: TestClient, studies: Path, name: str) -> None:
    image = load(studies, name)
    low, high = ([int(n * part) for n in image.canonical().shape] for part in (0.25, 0.75))
    ends = from_canonical_index([low, high], image.shape, image.affine)
    sides = [sorted(side) for side in ends.T.tolist()]
    middle, masks = (low[2] + high[2]) // 2, []
    for order in ([0, 1], [1, 0]):
        roi = [side[end] for side in sides for end in order]
        params, mask = reply(click(client, name, foreground=[], background=[], roi=roi, slice=None))
        assert params["axial_slice"] == middle
        masks.append(mask)
    np.testing.assert_array_equal(*masks)
    inside = image.canonical().voxels[low[0] : high[0] + 1, low[1] : high[1] + 1, middle] > 40
    assert masks[0].sum() == inside.sum() > 0


def test_slicers_offset_in_mm_picks_the_slice_of_a_box(client: TestClient, studies: Path) -> None:
    image = load(studies, "lps")
    height = image.affine[2] @ [0, 0, 5, 1]  # mm of own slice 5
    params, _ = reply(click(client, "lps", foreground=[], background=[], roi=[4, 30, 4, 24, 0, 6], slice=round(height)))
    assert params["axial_slice"] == 5
    params, _ = reply(click(client, "lps", foreground=[], background=[], roi=[4, 30, 4, 24, 1, 3], slice=0))
    assert params["axial_slice"] == 2


def test_more_points_change_it_and_sending_fewer_undoes(client: TestClient, studies: Path) -> None:
    image = load(studies, "lps")
    first, second = tissue_index(image, 3, 1), tissue_index(image, 3, 5)
    _, one = reply(click(client, "lps", foreground=[first], background=[]))
    _, both = reply(click(client, "lps", foreground=[first], background=[second]))
    _, again = reply(click(client, "lps", foreground=[first], background=[]))
    assert both[tuple(second)] == 0
    assert both[tuple(first)] == 1
    np.testing.assert_array_equal(one, again)


def test_slice_zero_with_all_points_as_slicer_sends_them(client: TestClient, studies: Path) -> None:
    image = load(studies, "lps")
    there, here = tissue_index(image, 4), tissue_index(image, 0)
    params, mask = reply(click(client, "lps", foreground=[here, there], background=[], slice=0))
    assert params["axial_slice"] == 0
    assert canonical_slices(mask, image) == [0]
    params, _ = reply(click(client, "lps", foreground=[here, there], background=[]))
    assert params["axial_slice"] == 4


def test_a_box_left_on_another_slice_does_not_count(client: TestClient, studies: Path) -> None:
    image = load(studies, "lps")
    point = tissue_index(image, 5)
    _, alone = reply(click(client, "lps", foreground=[point], background=[]))
    _, with_box = reply(click(client, "lps", foreground=[point], background=[], roi=[1, 3, 1, 3, 0, 2]))
    np.testing.assert_array_equal(alone, with_box)


def test_ohif_gets_raw_nrrd(client: TestClient, studies: Path) -> None:
    point = tissue_index(load(studies, "lps"), 3)
    response = click(
        client, "lps", {"output": "image"}, foreground=[point], result_extension=".nrrd", result_compress=False
    )
    assert response.status_code == 200
    voxels = np.frombuffer(response.content[response.content.index(b"\n\n") + 2 :], np.uint8)
    assert voxels.size == 36 * 28 * 7
    assert voxels.reshape((36, 28, 7), order="F")[tuple(point)] == 1


def test_a_slice_is_encoded_once_and_its_neighbours_ahead(client: TestClient, studies: Path, sam: FakeSam) -> None:
    image = read_volume(studies / "as_nrrd.nrrd")
    first, _ = reply(click(client, "as_nrrd", foreground=[tissue_index(image, 3)], window="bone"))
    nothing_left_ahead()
    before = sam.encoded
    again, _ = reply(click(client, "as_nrrd", foreground=[tissue_index(image, 3, 4)], window=[400, 1800]))
    beside, _ = reply(click(client, "as_nrrd", foreground=[tissue_index(image, 4)], window="bone"))
    assert (first["cached"], again["cached"], beside["cached"]) == (False, True, True)
    assert sam.encoded == before


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({}, 422, ["nothing to outline"]),
        ({"foreground": [], "background": []}, 422, ["nothing to outline"]),
        ({"background": [[5, 5, 3]]}, 422, ["nothing to outline"]),
        ({"foreground": [[36, 5, 3]]}, 422, ["[36, 5, 3]", "36x28x7"]),
        ({"foreground": [[5, -1, 3]]}, 422, ["outside"]),
        ({"foreground": [[5, 5]]}, 422, ["foreground", "[i, j, k]"]),
        ({"foreground": "5,5,3"}, 422, ["foreground"]),
        ({"foreground": [[5, float("nan"), 3]]}, 400, ["JSON"]),
        ({"foreground": [[5, 5, 1e300]]}, 422, ["whole number"]),
        ({"foreground": [[5, None, 3]]}, 422, ["whole number"]),
        ({"roi": [4, 4, 2, 9, 0, 3]}, 422, ["no volume"]),
        ({"roi": [4, 9, 2, 9, 0]}, 422, ["six"]),
        ({"roi": [40, 50, 2, 9, 0, 3]}, 422, ["outside"]),
        ({"foreground": [[5, 5, 3]], "slice": "red"}, 422, ["slice"]),
        ({"foreground": [[5, 5, 3]], "window": "liver"}, 422, ["soft-tissue"]),
        ({"foreground": [[5, 5, 3]], "window": [40, -1]}, 422, ["width"]),
        ({"foreground": [[5, 5, 3]], "label": 3}, 422, ["label"]),
        ({"foreground": [[5, 5, 3]], "result_extension": ".png"}, 422, ["result_extension"]),
    ],
)
def test_what_cannot_be_used_is_refused(
    client: TestClient, params: dict[str, Any], status: int, words: list[str]
) -> None:
    refused(click(client, "lps", **params), status, *words)
    assert client.get("/info/").status_code == 200


def test_an_unknown_image(client: TestClient) -> None:
    refused(click(client, "nowhere", foreground=[[1, 1, 1]]), 404, "nowhere")


def test_points_are_rounded_to_voxels(tmp_path: Path) -> None:
    image = tmp_path / "a.nii.gz"
    image.touch()
    parsed = ClickRequest.parse({"image": str(image), "foreground": [[1.6, 2.2, 3.0]], "roi": [], "slice": None})
    assert parsed.click.inside == ((2, 2, 3),)
    assert parsed.click.roi is None
    assert parsed.label == "object"


def test_a_window_that_the_header_does_not_have(client: TestClient) -> None:
    refused(click(client, "lps", foreground=[[18, 14, 3]], window="header"), 422, "header", "soft-tissue")
    refused(infer_tiny(client, refine=fake_sam.NAME, window="header"), 422, "header")


def infer_tiny(client: TestClient, **params: Any) -> Any:
    return client.post("/infer/tiny", params={"image": "lps"}, data={"params": json.dumps(params)})


def test_the_window_of_the_header(client: TestClient, studies: Path) -> None:
    image = load(studies, "las_down")
    write_volume(replace(image, window=Window(level=0, width=60)), studies / "windowed.nii.gz")
    session = {"session_id": open_session(client, studies / "windowed.nii.gz")}
    point = tissue_index(image, 3)
    for level, window in ((0, "header"), (40, None)):
        _, mask = reply(click(client, "", session, foreground=[point], window=window))
        assert mask[tuple(point)] == 1
        assert image.voxels[mask > 0].min() > level
        assert (image.voxels[mask > 0].min() < 40) == (window == "header")


def open_session(client: TestClient, file: Path) -> str:
    with file.open("rb") as stream:
        response = client.put("/session/", files={"files": (file.name, stream)})
    assert response.status_code == 200, response.text
    return str(response.json()["session_id"])


@pytest.mark.parametrize("voxels", ["one", "slice", "all"])
def test_an_image_with_values_that_are_no_numbers(client: TestClient, studies: Path, voxels: str) -> None:
    hu = load(studies, "lps").voxels.astype(np.float32)
    hu[{"one": (3, 4, 5), "slice": (..., 3), "all": ...}[voxels]] = np.nan
    file = studies / f"nan_{voxels}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu, AFFINES["lps"]), file)
    session = {"session_id": open_session(client, file)}
    for any_values in (False, True):
        answer = click(client, "", session, foreground=[[18, 14, 3]], allow_any_values=any_values)
        refused(answer, 422, "finite")


ORDERS = [((0, 1, 2), (0, 0, 0)), ((1, 2, 0), (1, 0, 1)), ((2, 0, 1), (0, 1, 1)), ((1, 0, 2), (1, 1, 0))]


@pytest.mark.parametrize(("axes", "flips"), ORDERS[1:])
def test_any_axis_order_of_an_image_gives_the_same_mask(
    client: TestClient, studies: Path, tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    straight = load(studies, "oblique")
    other = turned(straight, axes, flips)
    file = tmp_path / "turned.nii.gz"
    write_volume(other, file)
    session = {"session_id": open_session(client, file)}
    own = [tissue_index(straight, 3, number) for number in (1, 5)]
    same = from_canonical_index(
        to_canonical_index(np.array(own), straight.shape, straight.affine), other.shape, other.affine
    ).tolist()
    for prompts in ("points", "roi"):
        masks = []
        for volume, (first, second), where in ((straight, own, {}), (other, same, session)):
            ask = (
                {"foreground": [first], "background": [second]} if prompts == "points" else {"roi": box(first, second)}
            )
            _, mask = reply(click(client, "" if where else "oblique", where, **ask))
            masks.append(volume.with_voxels(mask).canonical().voxels)
        np.testing.assert_array_equal(*masks)
        assert masks[0].any()


def box(first: list[int], second: list[int]) -> list[int]:
    """Two corners as a roi."""
    return [end for ends in zip(first, second, strict=True) for end in ends]
