"""Slices on a network's grid, and back."""

import numpy as np
import pytest
import torch

from polycl.errors import InputError
from polycl.slices import SliceGrid, body_box, resize
from polycl.volume import Volume
from polycl.window import Window

pytestmark = pytest.mark.unit

WINDOW = Window(level=40, width=400)


def body(shape: tuple[int, int, int] = (60, 40, 3), spacing: tuple[float, float, float] = (2.0, 3.0, 5.0)) -> Volume:
    voxels = np.full(shape, -1000, dtype=np.int16)
    voxels[20:44, 12:24] = 40
    return Volume(voxels, np.diag([*spacing, 1.0]))


def test_the_box_holds_the_body_and_leaves_air() -> None:
    x0, x1, y0, y1 = body_box(body())
    assert x0 <= 20
    assert x1 >= 44
    assert y0 <= 12
    assert y1 >= 24
    assert (x1 - x0) * (y1 - y0) < 60 * 40


def test_a_volume_of_air_is_not_cropped() -> None:
    air = Volume(np.full((8, 9, 2), -1000, dtype=np.int16), np.eye(4))
    assert body_box(air) == (0, 8, 0, 9)


def test_pixels_have_the_networks_spacing_and_sides_fit_its_stride() -> None:
    grid = SliceGrid.of(body(), spacing=1.5, stride=16, crop=False)
    assert grid.size == (80, 80)
    assert grid.padded == (80, 80)
    slices = grid.read(body(), WINDOW, 1, 3)
    assert slices.shape == (2, 1, 80, 80)
    padded = SliceGrid.of(body(), spacing=1.4, stride=16, crop=False)
    seen = padded.read(body(), WINDOW, 0, 1)
    assert seen.shape[-2:] == padded.padded
    assert not seen[..., padded.size[0] :, :].any()
    assert all(side % 16 == 0 for side in padded.padded)


def test_positions_survive_the_way_there_and_back() -> None:
    volume = body()
    grid = SliceGrid.of(volume, spacing=1.5, stride=16)
    seen = grid.read(volume, WINDOW, 0, 3)
    x0, x1, y0, y1 = grid.box
    back = grid.restore(seen)[:, 0].numpy() > 0.25
    expected = np.moveaxis(volume.voxels[x0:x1, y0:y1] > -480, 2, 0)
    assert (back == expected).mean() > 0.98


def test_shrinking_averages_and_growing_interpolates() -> None:
    checkerboard = torch.tensor(np.indices((8, 8)).sum(axis=0) % 2, dtype=torch.float32)[None, None]
    assert resize(checkerboard, (2, 2)).std() < 0.1
    assert resize(checkerboard, (8, 8)) is checkerboard


def test_a_slice_of_metres_is_refused() -> None:
    with pytest.raises(InputError, match="is the spacing right"):
        SliceGrid.of(body(spacing=(200.0, 3.0, 5.0)), spacing=1.5, stride=16, crop=False)
