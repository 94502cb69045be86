"""OHIF in Chromium over Orthanc, as a reader uses it: from the list of studies to organs on the screen."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import BrowserContext
from processes import Patient, Server
from scipy import ndimage
from viewer import PLANES, SLOW_MS, Canvas, Viewer, opened, segment_voxels

from polycl.phantom import LABELS, liver_mask
from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_series

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

FIRST, SECOND, THIRD = "PHANTOM, SEED40", "PHANTOM, SEED41", "PHANTOM, SEED42"
RAW = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
INFER = """async uid => {
    const reply = await fetch(`/infer/tiny?image=${uid}`, { method: 'POST' });
    return [reply.status, await reply.json()];
}"""


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")


def truth(patient: Patient, image: Volume) -> np.ndarray:
    """The phantom's labels in the voxel order of the series as it is read."""
    labels = patient.phantom.labels
    to_labels = np.linalg.inv(labels.affine) @ image.affine
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1) @ to_labels[:3, :3].T
    i, j, k = np.moveaxis((index + to_labels[:3, 3]).round().astype(int), -1, 0)
    return labels.voxels[i, j, k]


def asked(viewer: Viewer, model: str, patient: Patient, params: dict[str, object]) -> np.ndarray:
    """The server's own mask [column, row, slice], without a browser between."""
    query, data = {"image": patient.uid, "output": "image"}, {"params": json.dumps(RAW | params)}
    reply = httpx.post(f"{viewer.address}/infer/{model}", params=query, data=data, timeout=120)
    assert reply.status_code == 200, reply.text
    raw = np.frombuffer(reply.content[reply.content.index(b"\n\n") + 2 :], np.uint8)
    return raw.reshape(patient.phantom.image.shape, order="F")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def on_plane(mask: np.ndarray, canvas: Canvas, plane: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [n, 3] of the plane that is shown, well within `mask`, and well outside."""
    axis = PLANES[plane]
    flat = np.take(mask, canvas.shown[axis], axis=axis)
    parts = []
    for part in (ndimage.binary_erosion(flat), ~ndimage.binary_dilation(flat, iterations=2)):
        found = np.argwhere(part)
        parts.append(np.insert(found, axis, canvas.shown[axis], axis=1))
    return parts[0], parts[1]


def test_from_the_list_of_studies_to_the_organ_in_three_planes(viewer: Viewer, patients: dict[str, Patient]) -> None:
    viewer.open_study(FIRST)
    viewer.keep("1-study")
    assert viewer.page.input_value("#monailabelServerURL") == f"{viewer.address}/"
    viewer.connect()
    before, views = viewer.pixels(), {plane: viewer.canvas(plane) for plane in PLANES}
    viewer.choose("Segmentation", "polycl-liver")
    assert viewer.run("Segmentation").status == 200
    viewer.keep("2-liver")
    after = viewer.pixels()
    mask = segment_voxels(viewer, "liver")
    image = read_series(patients[FIRST].folder)
    np.testing.assert_array_equal(mask, asked(viewer, "polycl-liver", patients[FIRST], {}) == 1)
    liver = liver_mask(Volume(truth(patients[FIRST], image), image.affine)).voxels > 0
    assert dice(mask, liver) > 0.8
    for name, other in {
        "mirrored": liver[::-1],
        "front to back": liver[:, ::-1],
        "head down": liver[..., ::-1],
    }.items():
        assert dice(mask, other) < 0.6, name
    for plane, view in views.items():
        canvas = viewer.canvas(plane)
        inside, outside = on_plane(mask, canvas, plane)
        assert len(inside) >= 15, plane
        changed = np.abs(canvas.colours(inside, after) - view.colours(inside, before)).max(axis=1)
        same = np.abs(canvas.colours(outside, after) - view.colours(outside, before)).max(axis=1)
        assert (changed > 20).mean() > 0.98, plane
        assert (same == 0).mean() > 0.98, plane
    for plane in ("axial", "coronal"):  # the patient's right is on the left of the screen
        canvas = viewer.canvas(plane)
        inside, _ = on_plane(mask, canvas, plane)
        middle = canvas.places(np.array([image.shape]) / 2)[0, 0]
        assert canvas.places(inside)[:, 0].mean() < middle - 10, plane


def test_slices_that_are_numbered_downwards_are_painted_alike(
    viewer: Viewer, patients: dict[str, Patient], tiny: Segmenter
) -> None:
    viewer.open_study(SECOND)
    viewer.connect()
    viewer.choose("Segmentation", "tiny")
    assert viewer.run("Segmentation").status == 200
    mask = tiny.segment(read_series(patients[SECOND].folder)).voxels
    for name, index in tiny.header.labels.items():
        np.testing.assert_array_equal(segment_voxels(viewer, name), mask == index)


def test_class_prompts_paint_what_was_asked_for(viewer: Viewer, patients: dict[str, Patient], tiny: Segmenter) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    viewer.tab("Class Prompts")
    viewer.choose("Segmentation VISTA", "tiny")
    viewer.page.locator(".tab-content:visible tr", has_text="spleen").locator("input").check()
    assert viewer.run("Segmentation VISTA").status == 200
    viewer.keep("3-class-prompt")
    expected = tiny.segment(read_series(patients[FIRST].folder), labels=("spleen",)).voxels == 2
    assert expected.any()
    np.testing.assert_array_equal(segment_voxels(viewer, "spleen"), expected)
    assert not segment_voxels(viewer, "liver").any()
    shown = viewer.page.locator("#polycl-segment option:checked").text_content()
    assert shown == "spleen", "what a brush would go on with"


def kidney(patient: Patient, image: Volume, shown: int) -> tuple[int, int, int]:
    """A voxel deep within a kidney, on the slice that is shown or as near to it as there is one."""
    organ = truth(patient, image) == LABELS["left kidney"]
    slices = np.flatnonzero(organ.any(axis=(0, 1)))
    nearest = int(slices[np.abs(slices - shown).argmin()])
    depth = ndimage.distance_transform_edt(organ[..., nearest])
    i, j = np.unravel_index(depth.argmax(), depth.shape)
    return int(i), int(j), nearest


def test_a_point_outlines_what_lies_under_it(viewer: Viewer, patients: dict[str, Patient]) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    image = read_series(patients[FIRST].folder)
    voxel = kidney(patients[FIRST], image, viewer.canvas("axial").shown[2])
    click_on(viewer, voxel, "polycl-click")
    assert viewer.run("PointPrompts").status == 200
    viewer.keep("4-point")
    found = segment_voxels(viewer, "liver")
    assert found[voxel]
    assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == [voxel[2]]
    assert image.voxels[found].min() > 40  # where the fake SAM's window is more than half full
    points = {"foreground": [list(voxel)], "background": []}
    np.testing.assert_array_equal(found, asked(viewer, "polycl-click", patients[FIRST], points) == 1)


def click_on(viewer: Viewer, voxel: tuple[int, int, int], model: str) -> None:
    """Choose model and segment, and click. In this order: the panel drops its points with a change of the model."""
    viewer.tab("Point Prompts")
    viewer.choose("PointPrompts", model)
    viewer.page.locator(".clickable-row", has_text="liver").click()
    viewer.scroll_to("axial", voxel[2])
    viewer.page.mouse.click(*viewer.canvas("axial").places(np.array([voxel]))[0])
    viewer.page.wait_for_timeout(500)


def test_points_are_carried_through_the_volume(viewer: Viewer, patients: dict[str, Patient]) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    image = read_series(patients[FIRST].folder)
    voxel = kidney(patients[FIRST], image, viewer.canvas("axial").shown[2])
    click_on(viewer, voxel, "polycl-propagate")
    assert viewer.run("PointPrompts").status == 200
    viewer.keep("10-propagated-point")
    mask = segment_voxels(viewer, "liver")
    assert mask[voxel]
    assert mask.any(axis=(0, 1)).sum() > 2
    points = {"foreground": [list(voxel)], "background": []}
    np.testing.assert_array_equal(mask, asked(viewer, "polycl-propagate", patients[FIRST], points) == 1)


def test_next_study(viewer: Viewer) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    viewer.tab("Active Learning")
    viewer.page.on("dialog", lambda dialog: dialog.accept())
    # The panel's choice of a strategy does nothing: it always asks for this one.
    with viewer.page.expect_response(lambda reply: "/activelearning/random" in reply.url, timeout=SLOW_MS) as offered:
        viewer.page.get_by_role("button", name="Next Sample").click()
    study = offered.value.json()["StudyInstanceUID"]
    with viewer.page.expect_navigation(url=f"**/monai-label?StudyInstanceUIDs={study}", timeout=SLOW_MS):
        viewer.page.get_by_role("button", name="OK", exact=True).click()
    viewer.wait_until_loaded()
    viewer.keep("5-next-study")
    shown = viewer.page.evaluate("services.displaySetService.getActiveDisplaySets()[0].StudyInstanceUID")
    assert shown == study


def test_a_window_closed_during_inference(
    windows: BrowserContext, readers_server: Server, patients: dict[str, Patient]
) -> None:
    with opened(windows, readers_server.address) as viewer:
        viewer.open_study(THIRD)
        viewer.connect()
        with viewer.page.expect_request(lambda request: "/infer/" in request.url):
            viewer.page.locator("button[title='Run Segmentation']").click()
    assert httpx.get(f"{readers_server.address}/info/", timeout=30).status_code == 200
    query = {"image": patients[THIRD].uid, "output": "json"}
    again = httpx.post(f"{readers_server.address}/infer/tiny", params=query, data={"params": "{}"}, timeout=60)
    assert again.status_code == 200, again.text


@pytest.mark.parametrize("uid", ["undefined", "1.2.3"])
def test_what_the_viewer_may_ask_for_by_mistake(viewer: Viewer, uid: str) -> None:
    viewer.page.goto(f"{viewer.address}/ohif/")
    status, answer = viewer.page.evaluate(INFER, uid)
    assert status == 404
    assert uid in answer["detail"]


def test_a_study_that_is_not_there(viewer: Viewer) -> None:
    """The viewer may draw its panel for a moment; then it says what is wrong, and leads back to the list."""
    viewer.page.goto(f"{viewer.address}/ohif/monai-label?StudyInstanceUIDs=1.2.3")
    viewer.page.get_by_text("One or more of the requested studies are not available").wait_for(timeout=SLOW_MS)
    assert viewer.page.locator("canvas.cornerstone-canvas").count() == 0
    viewer.page.get_by_role("link", name="study list").click()
    viewer.page.get_by_text(FIRST).first.wait_for(timeout=SLOW_MS)
