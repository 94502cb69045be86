"""MobileSAM on real CT: a noisy liver mask must not get worse, and SAM need not see every slice."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from polycl.metrics import dice
from polycl.propagate.loading import follower
from polycl.refinement import RefineParameters, refine
from polycl.sam import load_engine
from polycl.sam.sam2_image import Sam2ImageEngine
from polycl.settings import Settings
from polycl.volume import Volume, read_volume

FIRST, LAST = 30, 40
"""Axial slices of chaos_03 through the middle of its liver."""


def noisy(liver: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """The mask with its edge moved in and out by a few pixels, smoothly and differently on each slice."""
    rng = np.random.default_rng(seed)
    moved = np.zeros_like(liver)
    for z in range(liver.shape[2]):
        plane = liver[:, :, z]
        distance = ndimage.distance_transform_edt(plane) - ndimage.distance_transform_edt(~plane)
        field = ndimage.gaussian_filter(rng.normal(size=plane.shape), 12)
        moved[:, :, z] = distance + 5 * field / field.std() > 0
    return moved


def middle(real_data: Path) -> tuple[Volume, NDArray[np.bool_]]:
    """Slices `FIRST` to `LAST` of chaos_03, and its liver on them."""
    image, reference = (
        read_volume(real_data / "chaos" / folder / "chaos_03.nii.gz", kind=sort).canonical()
        for folder, sort in (("images", "ct"), ("labels", "label"))
    )
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * FIRST
    return Volume(image.voxels[:, :, FIRST:LAST], affine), reference.voxels[:, :, FIRST:LAST] == 1


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "eroded", "dilated"])
def test_a_liver_mask_off_by_some_pixels(real_data: Path, tmp_path: Path, kind: str) -> None:
    weights = real_data.parent / "weights"
    if not (weights / "mobile_sam").is_dir():
        pytest.skip("needs the weights of MobileSAM in ../shared/weights/mobile_sam")
    engine = load_engine("mobile-sam", Settings(state=tmp_path, weights=weights, device="cpu"))
    part, liver = middle(real_data)
    disk = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 3)[:, :, None]
    change = {
        "noise": lambda mask: noisy(mask, 0),
        "eroded": ndimage.binary_erosion,
        "dilated": ndimage.binary_dilation,
    }
    coarse = change[kind](liver) if kind == "noise" else change[kind](liver, disk)
    refined, report = refine(part, part.with_voxels(coarse.astype(np.uint8)), engine)
    before, after = dice(coarse, liver), dice(refined.voxels == 1, liver)
    assert before is not None
    assert after is not None
    assert report.accepted > 0
    if kind != "dilated":
        assert after > before
    assert report.slices == LAST - FIRST
    assert after >= before - 0.005


@pytest.mark.data
@pytest.mark.slow
def test_a_ragged_liver_mask_is_followed_and_the_reference_is_not(real_data: Path, tmp_path: Path) -> None:
    part, liver = middle(real_data)
    sam2 = follower(Settings(state=tmp_path, device="cpu"))
    assert sam2 is not None
    how = RefineParameters(max_pixel=0.1)  # the SAM that looks at slices is not asked
    asked = Sam2ImageEngine(sam2)
    asked.sight = None
    coarse = noisy(liver, 0)
    refined, report = refine(part, part.with_voxels(coarse.astype(np.uint8)), asked, None, how, follower=sam2)
    assert (report.followed, report.accepted) == (1, 0)
    assert (dice(refined.voxels == 1, liver) or 0) > (dice(coarse, liver) or 0) + 0.01
    same, report = refine(part, part.with_voxels(liver.astype(np.uint8)), asked, None, how, follower=sam2)
    assert report.followed == 0
    np.testing.assert_array_equal(same.voxels == 1, liver)
