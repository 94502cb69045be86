"""Series acquired in unusual directions: OHIF paints the organ where it lies in the patient, by its own geometry."""

import base64
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from processes import SLICE_MM, Pacs
from scipy.spatial.transform import Rotation
from viewer import PLANES, Viewer, segment_voxels

from polycl.phantom import liver_mask, make_phantom, write_dicom_series
from polycl.volume import Volume

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Array = NDArray[Any]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xz", [14, 9], degrees=True).as_matrix()
ACQUIRED = {"feet first": ("RPI", np.eye(4)), "coronal": ("LIP", np.eye(4)), "oblique": ("LPS", TURNED)}
"""Directions of columns, rows and slices, and how the patient lies."""
GEOMETRY = """() => {
    const service = services.segmentationService;
    const id = service.getActiveSegmentation(services.viewportGridService.getActiveViewportId()).segmentationId;
    const image = cornerstone.cache.getVolume(
        cornerstone.getRenderingEngines()[0].getViewport('mpr-axial').getAllVolumeIds()[0]);
    const corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]];
    const places = ({ imageData }) => corners.map(corner => [...imageData.indexToWorld(corner)]);
    const bytes = new Uint8Array(Float32Array.from(image.voxelManager.getCompleteScalarDataArray()).buffer);
    let text = '';
    for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return { image: places(image), labelmap: places(service.getLabelmapVolume(id)), hu: btoa(text) };
}"""


def matrix(places: list[list[float]]) -> Array:
    """Voxels to RAS+ mm, from where the viewer has voxel (0, 0, 0) and its three neighbours (LPS+)."""
    origin, *ends = np.array(places)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (np.array(ends) - origin).T, origin
    return np.asarray(LPS_TO_RAS @ affine)


def at(places: Array, volume: Volume) -> Array:
    """The values of `volume` at places [..., 3] in RAS+ mm."""
    index = places @ np.linalg.inv(volume.affine)[:3, :3].T + np.linalg.inv(volume.affine)[:3, 3]
    i, j, k = np.moveaxis(index.round().astype(int), -1, 0)
    return np.asarray(volume.voxels[i, j, k])


def dice(a: Array, b: Array) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("name", ACQUIRED)
def test_the_organ_is_painted_where_it_lies(viewer: Viewer, readers_pacs: Pacs, tmp_path: Path, name: str) -> None:
    axes, turn = ACQUIRED[name]
    seed = 50 + list(ACQUIRED).index(name)
    phantom = make_phantom(seed, shape=(96, 80, 40), spacing=(4.2, 4.2, SLICE_MM))
    image = Volume(phantom.image.voxels, turn @ phantom.image.affine)
    liver = Volume(liver_mask(phantom.labels).voxels, turn @ phantom.labels.affine)
    straight = nibabel.Nifti1Image(phantom.image.voxels, phantom.image.affine)
    wanted = nibabel.orientations.axcodes2ornt(axes)
    stored = straight.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(straight.affine), wanted)
    )
    series = Volume(np.asfortranarray(stored.dataobj), turn @ stored.affine)
    for file in write_dicom_series(series, tmp_path, seed=seed, decreasing=name == "oblique"):
        readers_pacs.store(file)
    viewer.open_study(f"PHANTOM, SEED{seed}")
    viewer.connect()
    viewer.choose("Segmentation", "polycl-liver")
    assert viewer.run("Segmentation").status == 200
    viewer.keep(f"11-{name.replace(' ', '-')}")
    held = viewer.page.evaluate(GEOMETRY)
    mask, affine = segment_voxels(viewer, "liver"), matrix(held["labelmap"])
    np.testing.assert_allclose(affine, matrix(held["image"]), atol=1e-3)
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    hu = np.frombuffer(base64.b64decode(held["hu"]), np.float32).reshape(mask.shape, order="F")
    np.testing.assert_array_equal(hu, at(world, image).clip(-1024))
    truth = at(world, liver) > 0
    assert dice(mask, truth) > 0.8
    for axis in range(3):
        assert dice(np.flip(mask, axis), truth) < 0.6
    is_on_the_screen(viewer, mask, world, np.linalg.inv(affine)[:3, :3])


def is_on_the_screen(viewer: Viewer, mask: Array, world: Array, to_voxels: Array) -> None:
    """Each view has the patient the usual way round, and colour where the mask lies in its plane."""
    pixels = viewer.pixels()
    right, back, down = np.array([1.0, 0, 0]), np.array([0, -1.0, 0]), np.array([0, 0, -1.0])
    for plane, (leftwards, downwards) in {
        "axial": (right, back),
        "sagittal": (-back, down),
        "coronal": (right, down),
    }.items():
        canvas = viewer.canvas(plane)
        steps = np.array(canvas.steps) - canvas.origin
        assert (to_voxels @ leftwards @ steps)[0] < 0, plane
        assert (to_voxels @ downwards @ steps)[1] > 0, plane
        normal = PLANES[plane]
        focus = world[tuple(canvas.shown)][normal]
        shown = np.argwhere(mask & (abs(world[..., normal] - focus) < 1))
        assert len(shown) > 5, plane
        assert (np.ptp(canvas.colours(shown, pixels), axis=1) > 10).mean() > 0.9, plane
