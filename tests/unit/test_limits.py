"""Unusual sizes that must work: one slice, very many slices in bounded memory, a whole-body field of view."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.volume import Volume

pytestmark = pytest.mark.unit

# Run apart, so that the peak is of this alone: segments N slices and prints how many bytes that added to the process.
MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from polycl.segmenter import Segmenter
from polycl.volume import Volume, read_volume, write_volume
torch.set_num_threads(1)
slices, checkpoint, folder = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
segmenter = Segmenter.load(checkpoint, device="cpu", precision="fp32")
write_volume(segmenter.segment(read_volume(folder / "small.nii")), folder / "out.nii")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
volume = read_volume(folder / "ct.nii")
write_volume(segmenter.segment(volume), folder / "out.nii")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


def tiled(volume: Volume, slices: int) -> Volume:
    voxels = np.empty((*volume.shape[:2], slices), dtype=volume.voxels.dtype, order="F")
    for z in range(slices):
        voxels[:, :, z] = volume.voxels[:, :, z % volume.shape[2]]
    return Volume(voxels, volume.affine)


@pytest.mark.slow
def test_two_thousand_slices_take_the_volume_and_its_mask_and_little_more(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from polycl.volume import write_volume

    phantom = make_phantom(0, shape=(160, 160, 4), spacing=(2.4, 2.4, 40.0)).image
    slices = 2000
    write_volume(tiled(phantom, 8), tmp_path / "small.nii")
    write_volume(tiled(phantom, slices), tmp_path / "ct.nii")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(slices), str(tiny_checkpoint), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    voxels = 160 * 160 * slices
    assert int(done.stdout) < 1.5 * (2 + 1) * voxels


def test_one_slice_works(tiny_checkpoint: Path) -> None:
    one = make_phantom(0, shape=(40, 40, 1), spacing=(9.0, 9.0, 5.0)).image
    assert Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32").segment(one).shape == (40, 40, 1)


def test_a_whole_body_field_of_view_gives_the_same_organs(tiny_checkpoint: Path) -> None:
    segmenter = Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")
    near = make_phantom(0, shape=(120, 120, 3), spacing=(4.0, 4.0, 50.0)).image
    voxels = np.full((216, 216, 3), -1024, dtype=np.int16)
    voxels[48:168, 48:168] = near.voxels
    affine = near.affine.copy()
    affine[:3, 3] -= affine[:3, :2] @ np.array([48, 48])
    far = Volume(voxels, affine)
    np.testing.assert_array_equal(segmenter.segment(far).voxels[48:168, 48:168], segmenter.segment(near).voxels)
