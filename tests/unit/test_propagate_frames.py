"""Slices as frames, and masks, points and logits between the two."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polycl.errors import InputError
from polycl.propagate.frames import FrameGrid, Region
from polycl.propagate.header import FrameConfig
from polycl.volume import Volume
from polycl.window import Window

pytestmark = pytest.mark.unit

PLAIN = FrameConfig(windows=(Window(level=50, width=100),), mean=(0, 0, 0), std=(1, 1, 1), least_mm=10)


def volume(shape: tuple[int, int, int] = (40, 30, 3), spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> Volume:
    return Volume(np.zeros(shape, np.int16), np.diag([*spacing, 1.0]))


class TestRegion:
    def test_it_leaves_room_around_the_seed(self) -> None:
        region = Region.around(volume(), (10, 16, 12, 15), PLAIN)
        assert (region.width, region.height) == (12, 12)
        assert region.contains((10, 16, 12, 15))
        assert abs(region.x + 6 - 13) <= 1

    def test_it_is_square_in_millimetres(self) -> None:
        region = Region.around(volume(spacing=(0.5, 2.0, 3.0)), (10, 20, 12, 15), PLAIN)
        assert (region.width * 0.5, region.height * 2.0) == (12.0, 12.0)

    def test_it_is_never_shorter_than_the_least_nor_longer_than_the_slice(self) -> None:
        assert Region.around(volume(), (10, 11, 12, 13), PLAIN).side(volume()) == 10
        assert Region.around(volume(), (0, 39, 0, 29), PLAIN).side(volume()) == 40

    def test_it_stays_within_the_slice_where_it_can(self) -> None:
        region = Region.around(volume(), (36, 40, 0, 3), PLAIN)
        assert region.inside((40, 30)) == (region.x, region.x + region.width, region.y, region.y + region.height)

    def test_growing_never_stops_before_the_whole_slice(self) -> None:
        image, region = volume(), Region.around(volume(), (4, 8, 4, 8), PLAIN)
        for _ in range(10):
            if not FrameGrid(region, 64, (40, 30)).rim(16).any():
                break
            region = region.larger(image, (0, 4, 4, 8), 1.5, PLAIN)
        assert region.inside((40, 30)) == (0, 40, 0, 30)

    def test_the_rim_is_where_the_slice_goes_on(self) -> None:
        rim = FrameGrid(Region(0, 10, 20, 20), 64, (40, 30)).rim(16)
        # x starts at the volume's border, which is the frame's right; y ends at it, which is the frame's top.
        assert rim[:, 0].all()
        assert rim[-1].all()
        assert not rim[:-1, 1:].any()


class TestFrameGrid:
    def test_a_frame_is_upright(self) -> None:
        image = volume()
        image.voxels[30:, :, 0] = 100  # the patient's left is the high x, and the reader's right
        frame = FrameGrid(Region(0, 0, 40, 40), 40, (40, 30)).read(image, [0], PLAIN)[0]
        assert frame.shape == (3, 40, 40)
        assert frame[0, 35, :10].min() == 1
        assert frame[0, 35, 10:].max() == 0
        image.voxels[...] = 0
        image.voxels[:, 25:, 0] = 100  # anterior is the high y, and up
        frame = FrameGrid(Region(0, -10, 40, 40), 40, (40, 30)).read(image, [0], PLAIN)[0]
        assert frame[0, :5].min() == 1
        assert frame[0, 5:].max() == 0

    def test_beyond_the_volume_is_air_after_the_window(self) -> None:
        image = volume()
        image.voxels[...] = 100
        frame = FrameGrid(Region(-10, 0, 50, 50), 50, (40, 30)).read(image, [1], PLAIN)[0]
        assert frame[:, 20:, 40:].max() == 0
        assert frame[:, 20:, :40].min() == 1

    def test_three_windows_are_three_channels(self) -> None:
        windows = tuple(Window(level=level, width=100) for level in (50, 150, 250))
        config = PLAIN.model_copy(update={"windows": windows, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})
        image = volume()
        image.voxels[...] = 150
        frame = FrameGrid(Region(0, 0, 40, 40), 8, (40, 30)).read(image, [0], config)[0]
        assert frame[:, -1, 0].tolist() == pytest.approx([2.0, 0.0, -2.0], abs=1e-5)

    def test_two_windows_are_refused(self) -> None:
        with pytest.raises(InputError, match="2 windows were given; a frame takes 1 or 3"):
            FrameConfig(windows=(Window(level=0, width=1), Window(level=0, width=1)))

    def test_nan_is_black(self) -> None:
        image = Volume(np.full((8, 8, 1), np.nan, np.float32), np.eye(4))
        assert FrameGrid(Region(0, 0, 8, 8), 8, (8, 8)).read(image, [0], PLAIN).max() == 0

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(-12, 30),
        st.integers(-12, 20),
        st.integers(8, 50),
        st.integers(8, 50),
        st.sampled_from([32, 64]),
        st.data(),
    )
    def test_masks_and_logits_go_there_and_back(
        self, x: int, y: int, width: int, height: int, size: int, data: st.DataObject
    ) -> None:
        grid = FrameGrid(Region(x, y, width, height), size, (40, 30))
        x0, x1, y0, y1 = grid.box
        if x0 >= x1 or y0 >= y1:
            return
        mask = np.zeros((40, 30), bool)
        left, low = data.draw(st.integers(x0, x1 - 1)), data.draw(st.integers(y0, y1 - 1))
        mask[left : data.draw(st.integers(left + 1, x1)), low : data.draw(st.integers(low + 1, y1))] = True
        # At the frame's full size, so that only the mapping is tested: each voxel covers its share of a pixel.
        images = np.zeros((1, 40, 30), np.float32)
        images[0] = mask
        frame = grid.masks(images)[:, 0]
        back = grid.restore(frame * 2 - 1)[0] > 0
        if size >= 2 * max(width, height):  # pixels finer than voxels lose nothing
            assert np.array_equal(back, mask[x0:x1, y0:y1])
        extent = grid.extent(frame[0].numpy() > 0)
        if frame.any() and size >= 2 * max(width, height):
            inside = mask.nonzero()
            assert extent is not None
            assert extent[0] <= inside[0].min() < inside[0].max() + 1 <= extent[1]
            assert extent[2] <= inside[1].min() < inside[1].max() + 1 <= extent[3]

    def test_points_lie_on_the_pixels_of_their_voxels(self) -> None:
        grid = FrameGrid(Region(3, 5, 16, 16), 64, (40, 30))
        mask = np.zeros((1, 40, 30), bool)
        mask[0, 7, 11] = True
        rows, columns = np.nonzero(grid.masks(mask)[0, 0].numpy())
        column, row = grid.points([7, 11])
        assert (column, row) == (columns.mean(), rows.mean())

    def test_logits_of_any_size_are_restored(self) -> None:
        grid = FrameGrid(Region(-5, -5, 50, 50), 64, (40, 30))
        assert grid.restore(torch.ones(2, 16, 16)).shape == (2, 40, 30)


@given(x=st.integers(-6, 6), y=st.integers(-6, 6), side=st.integers(4, 20), size=st.sampled_from([4, 8, 32]))
def test_values_are_of_the_voxel_under_each_pixel(x: int, y: int, side: int, size: int) -> None:
    voxels = np.arange(20 * 16 * 2).reshape(20, 16, 2).astype(np.int16)
    ct = Volume(voxels, np.eye(4))
    grid = FrameGrid(Region(x, y, side, side), size, (20, 16))
    values = grid.values(ct, 1)
    for i, j in [(0, 0), (7, 5), (19, 15)]:
        column, row = np.floor(grid.points([i, j]) + 0.5).astype(int)
        if side <= size and 0 <= column < size and 0 <= row < size:
            assert values[row, column] == voxels[i, j, 1]
    assert set(values[np.isfinite(values)]) <= set(voxels[:, :, 1].ravel())
    covered = max(0, min(x + side, 20) - max(x, 0)) * max(0, min(y + side, 16) - max(y, 0))
    assert np.isnan(values).any() == (covered < side * side) or side > size
