"""What our script adds to OHIF: painting, propagation of painted slices, and saving, to be found again in the PACS."""

import io
import json
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from playwright.sync_api import BrowserContext, Route
from processes import HTTP, SLICE_MM, Pacs, Patient, Server
from scipy import ndimage
from viewer import SLOW_MS, Viewer, opened, segment_voxels

from polycl.segmenter import Segmenter
from polycl.volume import read_series, read_volume

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

FIRST, SECOND, THIRD = "PHANTOM, SEED40", "PHANTOM, SEED41", "PHANTOM, SEED42"


def stored(server: Server, uid: str, folder: Path) -> np.ndarray:
    """The label that the server keeps, in the order of the series."""
    query = {"label": uid, "tag": "final"}
    reply = httpx.get(f"{server.address}/datastore/label", params=query, timeout=60)
    assert reply.status_code == 200, reply.text
    suffix = ".nrrd" if reply.content.startswith(b"NRRD") else ".nii.gz"
    (folder / f"kept{suffix}").write_bytes(reply.content)
    return read_volume(folder / f"kept{suffix}", kind="label").voxels


def segs(pacs: Pacs, uid: str) -> list[pydicom.Dataset]:
    """The DICOM SEG of a series that are in the PACS, waiting a while for the first."""
    for _ in range(60):
        found = []
        for series in HTTP.get(f"{pacs.root}/series?expand").json():
            for instance in series["Instances"] if series["MainDicomTags"]["Modality"] == "SEG" else ():
                data = pydicom.dcmread(io.BytesIO(HTTP.get(f"{pacs.root}/instances/{instance}/file").content))
                if data.ReferencedSeriesSequence[0].SeriesInstanceUID == uid:
                    found.append(data)
        if found:
            return found
        time.sleep(0.5)
    return []


def seg_frames(seg: pydicom.Dataset, image_folder: Path, number: int) -> np.ndarray:
    """The voxels [column, row, slice] of a segment, each frame at the image that it refers to, highest last."""
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(image_folder.iterdir())]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    index = {image.SOPInstanceUID: at for at, image in enumerate(images)}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found = np.zeros((seg.Columns, seg.Rows, len(images)), bool)
    for frame, about in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if about.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            source = about.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            found[..., index[source]] = frame.T > 0
    return found


def brush(viewer: Viewer, dx: float = 0.0) -> None:
    """Draw a short stroke with the mouse beside the middle of the axial view."""
    if viewer.page.get_attribute("#polycl-brush", "aria-pressed") != "true":
        viewer.page.click("#polycl-brush")
    viewer.page.locator("#polycl-brush[aria-pressed=true]").wait_for()
    canvas = viewer.canvas("axial")
    i, j, k = canvas.shown
    (x, y), *_ = canvas.places(np.array([[i, j, k]]))
    viewer.page.mouse.move(x + dx, y)
    viewer.page.mouse.down()
    viewer.page.mouse.move(x + dx + 12, y + 5, steps=5)
    viewer.page.mouse.up()
    viewer.page.wait_for_timeout(800)


def test_what_is_saved_is_what_is_on_the_screen_and_in_the_pacs(
    viewer: Viewer,
    readers_server: Server,
    readers_pacs: Pacs,
    patients: dict[str, Patient],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    patient = patients[SECOND]
    viewer.open_study(SECOND)
    viewer.connect()
    viewer.choose("Segmentation", "tiny")
    assert viewer.run("Segmentation").status == 200
    brush(viewer)
    said = viewer.press("save")
    viewer.keep("6-saved")
    assert said.startswith("Saved liver, spleen as version 1"), said
    tiny = Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")
    mask = tiny.segment(read_series(patient.folder)).voxels
    shown = {name: segment_voxels(viewer, name) for name in tiny.header.labels}
    changed = (shown["liver"] != (mask == 1)) | (shown["spleen"] != (mask == 2))
    assert 0 < changed.sum() < 0.01 * changed.size  # the stroke
    kept = stored(readers_server, patient.uid, tmp_path)
    for name, value in tiny.header.labels.items():
        np.testing.assert_array_equal(kept == value, shown[name])
    seg = segs(readers_pacs, patient.uid)[0]
    for segment in seg.SegmentSequence:
        frames = seg_frames(seg, patient.folder, segment.SegmentNumber)
        np.testing.assert_array_equal(frames, shown[segment.SegmentLabel.lower()])
    viewer.page.reload()
    viewer.wait_until_loaded()
    viewer.connect()
    assert viewer.press("load") == "Loaded version 1: liver, spleen."
    viewer.keep("7-loaded")
    for name, voxels in shown.items():
        np.testing.assert_array_equal(segment_voxels(viewer, name), voxels)
    viewer.page.reload()
    viewer.wait_until_loaded()
    viewer.listed_segs().first.wait_for(timeout=SLOW_MS)
    viewer.open_seg(SECOND)
    seg_lies_over_the_images(viewer, patient.folder, shown)


def seg_lies_over_the_images(viewer: Viewer, folder: Path, shown: dict[str, np.ndarray]) -> None:
    """In the Basic Viewer, opened anew: what comes from the PACS has each voxel, at its place on the screen."""
    counts = {name.lower(): count for name, count in viewer.page.evaluate(SEGMENTS)}
    assert counts == {name: int(mask.sum()) for name, mask in shown.items()}
    painted = np.logical_or.reduce(list(shown.values()))
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    deep = [ndimage.binary_erosion(painted[..., k]) for k in range(len(images))]
    k = int(np.argmax([part.sum() for part in deep]))
    viewer.show_image(viewer.page.evaluate(NUMBER, images[k].SOPInstanceUID))
    viewer.keep("9-seg-of-the-pacs")
    pixels = viewer.pixels()
    for part, colourful in ((deep[k], True), (~ndimage.binary_dilation(painted[..., k]), False)):
        i, j = np.nonzero(part)
        assert len(i) > 20
        row, column = np.array(images[k].ImageOrientationPatient, float).reshape(2, 3)
        down, across = map(float, images[k].PixelSpacing)
        world = np.array(images[k].ImagePositionPatient, float) + np.outer(i * across, row) + np.outer(j * down, column)
        x, y = np.array(viewer.page.evaluate(PLACES, world.tolist())).round().astype(int).T
        assert ((np.ptp(pixels[y, x], axis=1) > 10) == colourful).mean() > 0.98


NUMBER = """uid => cornerstone.getRenderingEngines()[0].getViewports()[0].getImageIds()
    .findIndex(id => id.includes(`/instances/${uid}/`))"""
PLACES = """worlds => {
    const viewport = cornerstone.getRenderingEngines()[0].getViewports()[0];
    const { left, top } = viewport.canvas.getBoundingClientRect();
    return worlds.map(world => viewport.worldToCanvas(world)).map(([x, y]) => [x + left, y + top]);
}"""
SEGMENTS = """() => {
    const segmentation = services.segmentationService.getSegmentations()[0];
    const { imageIds } = cornerstoneTools.segmentation.state.getSegmentation(segmentation.segmentationId)
        .representationData.Labelmap;
    const counts = {};
    for (const id of imageIds)
        for (const value of cornerstone.cache.getImage(id).getPixelData()) counts[value] = (counts[value] ?? 0) + 1;
    return Object.values(segmentation.segments).filter(Boolean).map(one => [one.label, counts[one.segmentIndex] ?? 0]);
}"""


def test_two_readers_save_one_study_at_once(
    windows: BrowserContext, readers_server: Server, readers_pacs: Pacs, patients: dict[str, Patient]
) -> None:
    """Both are kept, here and in the PACS, and the one that came later is what is loaded."""
    uid = patients[THIRD].uid
    with opened(windows, readers_server.address) as ann, opened(windows, readers_server.address) as bob:
        for reader, dx in ((ann, 0.0), (bob, -40.0)):
            reader.page.bring_to_front()
            reader.open_study(THIRD)
            reader.connect()
            brush(reader, dx)
        drawn = [segment_voxels(reader, "liver") for reader in (ann, bob)]
        assert (drawn[0] != drawn[1]).any()
        for reader in (ann, bob):
            reader.page.click("#polycl-save", no_wait_after=True)
        said = [reader.done() for reader in (ann, bob)]
        versions = [int(re.match(r"Saved liver as version (\d+)\.", one)[1]) for one in said]  # type: ignore[index]
        assert sorted(versions) == [1, 2], said
        later = int(np.argmax(versions))
        assert "Version 1 was saved elsewhere; it is kept." in said[later]
        assert "elsewhere" not in said[1 - later]
        ann.page.on("dialog", lambda dialog: dialog.accept())
        ann.page.bring_to_front()
        assert ann.press("load") == "Loaded version 2: liver."
        np.testing.assert_array_equal(segment_voxels(ann, "liver"), drawn[later])
        assert ann.errors == bob.errors == []
    for _ in range(60):
        if len(found := segs(readers_pacs, uid)) == 2:
            break
        time.sleep(0.5)
    sent = [seg_frames(seg, patients[THIRD].folder, 1) for seg in sorted(found, key=lambda seg: seg.SeriesNumber)]
    for version, frames in zip((1, 2), sent, strict=True):
        np.testing.assert_array_equal(frames, drawn[versions.index(version)])


def test_a_painted_slice_is_propagated(viewer: Viewer, patients: dict[str, Patient]) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    brush(viewer)
    painted = segment_voxels(viewer, "liver")
    slices = np.flatnonzero(painted.any(axis=(0, 1)))
    assert slices.tolist() == [viewer.canvas("axial").shown[2]]
    viewer.page.route("**/infer/**", lambda route: route.continue_())  # or the request would be told without its body
    with viewer.page.expect_request(lambda request: "/infer/" in request.url) as asked:
        said = viewer.press("propagate")
    assert re.fullmatch(r"Propagated liver: \d+ slices changed\.", said)
    assert f"image={patients[FIRST].uid}" in asked.value.url
    body = asked.value.post_data_buffer or b""
    assert b'name="label"; filename="label.nrrd"' in body
    assert b'"selected_label_name":"liver"' in body
    found = segment_voxels(viewer, "liver")
    np.testing.assert_array_equal(found[..., slices[0]], painted[..., slices[0]])
    assert found.any(axis=(0, 1)).sum() > 1
    viewer.keep("8-propagated")


def test_propagation_leaves_what_it_was_not_asked_for(viewer: Viewer, patients: dict[str, Patient]) -> None:
    """Other segments, and, where a segmentation was corrected on one slice, what is more than 20 mm away from it."""
    viewer.open_study(FIRST)
    viewer.connect()
    viewer.choose("Segmentation", "polycl-liver")
    assert viewer.run("Segmentation").status == 200
    assert viewer.press("propagate").startswith("Propagated liver: nothing changed")
    viewer.page.select_option("#polycl-segment", label="spleen")
    brush(viewer)
    liver, spleen = segment_voxels(viewer, "liver"), segment_voxels(viewer, "spleen")
    assert viewer.press("propagate").startswith("Propagated spleen: ")
    np.testing.assert_array_equal(segment_voxels(viewer, "liver"), liver)
    grown, shown = segment_voxels(viewer, "spleen"), viewer.canvas("axial").shown[2]
    np.testing.assert_array_equal(grown[..., shown], spleen[..., shown])
    assert grown.any(axis=(0, 1)).sum() > 1
    viewer.page.select_option("#polycl-segment", label="liver")
    brush(viewer, dx=-60)
    mended, other = segment_voxels(viewer, "liver"), segment_voxels(viewer, "spleen")
    assert (mended != liver).any()
    assert viewer.press("propagate").startswith("Propagated liver: ")
    found = segment_voxels(viewer, "liver")
    near = np.abs(np.arange(found.shape[2]) - shown) * SLICE_MM <= 20
    np.testing.assert_array_equal(found[..., ~near], mended[..., ~near])
    np.testing.assert_array_equal(found[..., shown], mended[..., shown])
    np.testing.assert_array_equal(segment_voxels(viewer, "spleen"), other)


def test_the_suggested_slice_is_shown(viewer: Viewer, readers_server: Server, patients: dict[str, Patient]) -> None:
    viewer.open_study(FIRST)  # which no test here labels: then no slice is suggested
    viewer.connect()
    viewer.choose("Segmentation", "tiny")
    assert viewer.run("Segmentation").status == 200  # the server has the series from now on, and scores it
    asked = {"url": f"{readers_server.address}/polycl/api/slice", "params": {"image": patients[FIRST].uid}}
    for _ in range(120):
        if (reply := httpx.get(**asked, timeout=60)).status_code == 200:
            break
        assert "not scored yet" in reply.text
        time.sleep(0.5)
    wanted = reply.json()["slice"]
    before = viewer.canvas("axial").shown
    place = wanted["of"] - wanted["number"]
    assert viewer.press("suggest") == f"Slice {place} of {wanted['of']}, from the head, is worth most."
    assert viewer.page.get_by_text(f"({place}/{wanted['of']})").is_visible(), "as the viewer itself counts"
    assert viewer.canvas("axial").shown == [*before[:2], wanted["index"]]
    assert viewer.canvas("sagittal").shown[0] == before[0]
    viewer.keep("10-suggested")


def test_the_buttons_say_what_is_missing(viewer: Viewer) -> None:
    viewer.open_study(FIRST)
    viewer.connect()
    viewer.page.focus("#polycl-save")
    viewer.page.keyboard.press("Enter")
    viewer.page.wait_for_function("document.getElementById('polycl-status').textContent.startsWith('Not done')")
    assert viewer.page.inner_text("#polycl-status") == "Not done: nothing is painted yet"
    assert viewer.press("propagate") == "Not done: paint liver on a slice first"
    viewer.page.route("**/datastore/label?**", lambda route: route.abort())
    brush(viewer)
    assert viewer.press("save") == "Not done: the server cannot be reached; try again when it is up"
    viewer.page.unroute("**/datastore/label?**")


def test_propagation_is_offered_only_where_the_server_has_it(viewer: Viewer, readers_server: Server) -> None:
    def without(route: Route) -> None:
        info = httpx.get(f"{readers_server.address}/info/", timeout=60).json()
        models = info["models"].items()
        info["models"] = {name: model for name, model in models if not (model["config"] or {}).get("propagates")}
        route.fulfill(body=json.dumps(info), content_type="application/json")

    viewer.page.route("**/info/", without)
    viewer.open_study(THIRD)
    viewer.connect()
    assert viewer.page.is_visible("#polycl-save")
    assert not viewer.page.is_visible("#polycl-propagate")
