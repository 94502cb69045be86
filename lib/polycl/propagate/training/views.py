"""One view of a few slices: cut around the object, turned, scaled, windowed and made rough alike over the clip.

Views are laid out as frames are at run time: rows run from front to back and columns from the patient's right to left,
a value of 0 where the scan ends, three windows as channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polycl.propagate.header import FrameConfig
from polycl.propagate.training.store import Scan
from polycl.window import Window

SMALLEST_MM, LARGEST_MM = 80.0, 512.0


@dataclass(frozen=True)
class View:
    """The pixels of a frame, and how far a clip may stray from its scan.

    Attributes:
        size: pixels a side.
        frames: windows and norms of the channels, as at run time.
        play: how far the object may be off the centre, as a share of the side.
        narrow: chance that the HU are clipped to a soft-tissue window first, as in images stored with 8 bits.
    """

    size: int = 256
    frames: FrameConfig = field(default_factory=FrameConfig)
    play: float = 0.12
    rotation_degrees: float = 15.0
    anisotropy: float = 0.1
    brightness: float = 0.08
    contrast: tuple[float, float] = (0.75, 1.35)
    noise: float = 0.06
    blur: float = 0.25
    narrow: float = 0.25
    flip: tuple[float, float] = (0.15, 0.5)


@dataclass(frozen=True)
class DrawnView:
    """A view of one clip: `matrix` and `centre` map view coordinates in [-1, 1] (row, column) to mm (x, y)."""

    options: View
    matrix: NDArray[np.float64]
    centre: NDArray[np.float64]
    pixel_mm: float


def draw_view(
    scan: Scan,
    folder: Path,
    number: int,
    z: int,
    options: View,
    fill: tuple[float, float],
    random: np.random.Generator,
) -> DrawnView | None:
    """A view around the object in slice `z`; None where it is not in that slice."""
    layer, value, _, _, x0, x1, y0, y1 = scan.objects[number]
    shown = scan.ids(folder)[layer, z, x0:x1, y0:y1] == value
    if not shown.any():
        return None
    starts, extents = [], []
    for axis, begin, mm in ((1, x0, scan.spacing[1]), (0, y0, scan.spacing[2])):
        hits = np.flatnonzero(shown.any(axis=axis))
        starts.append((begin + hits[0]) * mm)
        extents.append((hits[-1] - hits[0] + 1) * mm)
    share = float(np.exp(random.uniform(*np.log(fill))))
    side = float(np.clip(max(extents) / share, SMALLEST_MM, LARGEST_MM))
    centre = np.array(starts) + np.array(extents) / 2 + random.uniform(-1, 1, 2) * options.play * side
    angle = np.deg2rad(random.uniform(-options.rotation_degrees, options.rotation_degrees))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(random.uniform(-1, 1, 2) * options.anisotropy)
    # rows fall from front to back (y), columns from the right to the left (x), both axes reversed
    axes = np.array([[0.0, -1.0], [-1.0, 0.0]])
    axes[1] *= -1 if random.random() < options.flip[0] else 1
    axes[0] *= -1 if random.random() < options.flip[1] else 1
    return DrawnView(options, turn @ axes * (side / 2 * stretch), centre, side / options.size)


class Look:
    """Some slices of a scan as one view shows them."""

    def __init__(self, scan: Scan, folder: Path, slices: NDArray[np.int64], view: DrawnView) -> None:
        self.scan, self.slices, self.view = scan, slices, view
        self._ids = scan.ids(folder)
        self._hu = scan.hu(folder)
        self._grid, self._part = _grid(scan, view)

    def images(self, random: np.random.Generator) -> torch.Tensor:
        """What the network sees, `[T, 3, S, S]`."""
        x, y = self._part
        options = self.view.options
        hu = torch.from_numpy(self._hu[self.slices, x, y].astype(np.float32))
        channels = _windowed(hu, options, random)
        reach = round(self.view.pixel_mm / self.scan.spacing[1]) // 2
        if reach > 0:  # fewer pixels than the scan has
            channels = F.avg_pool2d(channels, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
        return options.frames.normalised(_rough(self._sampled(channels), options, random))

    def masks(self, layer: int, value: int) -> torch.Tensor:
        """Where the object `value` of a layer is, bool `[T, S, S]`."""
        x, y = self._part
        inside = torch.from_numpy((self._ids[layer, self.slices, x, y] == value).astype(np.float32))[:, None]
        if self.scan.layers[layer].kind in ("threshold", "region", "merged"):
            inside = F.avg_pool2d(inside, 3, stride=1, padding=1)  # their outlines are ragged
        return self._sampled(inside)[:, 0] > 0.5

    def others(self, layer: int, least: int) -> list[int]:
        """Ids of the layer's objects that the first slice shows with at least so many pixels of the view."""
        x, y = self._part
        counts = np.bincount(self._ids[layer, self.slices[0], x, y].ravel())
        voxel_mm2 = self.scan.spacing[1] * self.scan.spacing[2]
        enough = counts * voxel_mm2 >= least * self.view.pixel_mm**2
        return [int(value) for value in np.flatnonzero(enough) if value]

    def _sampled(self, slices: torch.Tensor) -> torch.Tensor:
        grid = self._grid.expand(len(slices), -1, -1, -1)
        return F.grid_sample(slices, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grid(scan: Scan, view: DrawnView) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Where the view's pixels lie, for `grid_sample` on the part `[x, y]` of a slice that the view touches."""
    size = view.options.size
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    mm = np.stack([rows, columns], axis=-1) @ view.matrix.T + view.centre
    voxels = mm / np.array(scan.spacing[1:])
    box = []
    for axis in range(2):
        low = int(np.clip(np.floor(voxels[..., axis].min()) - 2, 0, scan.shape[1 + axis] - 1))
        high = int(np.clip(np.ceil(voxels[..., axis].max()) + 2, low + 1, scan.shape[1 + axis]))
        box.append(slice(low, high))
    # grid_sample takes (y, x) of [X, Y], -1 and 1 at the outer edges
    ends = [(voxels[..., axis] - box[axis].start) / (box[axis].stop - box[axis].start) * 2 - 1 for axis in (1, 0)]
    return torch.from_numpy(np.stack(ends, axis=-1).astype(np.float32))[None], (box[0], box[1])


def _windowed(hu: torch.Tensor, options: View, random: np.random.Generator) -> torch.Tensor:
    """HU `[T, X, Y]` to channels `[T, 3, X, Y]` in [0, 1], each window a little off."""
    if random.random() < options.narrow:
        soft = options.frames.windows[0]
        hu = hu.clamp(soft.low, soft.high)
    contrast = np.exp(random.uniform(*np.log(options.contrast)))
    shift = random.uniform(-options.brightness, options.brightness)
    seen = []
    for window in options.frames.windows:
        level = window.level + shift * window.width
        seen.append(Window(level=level, width=window.width / contrast).apply(hu))
    return torch.stack(seen, dim=1)


def _rough(images: torch.Tensor, options: View, random: np.random.Generator) -> torch.Tensor:
    """Blur, then noise (of pixels or of grains of a few pixels), stronger in the narrow window, as in a scan."""
    if random.random() < options.blur:
        images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    if random.random() < 0.5:
        strength = random.uniform(0, options.noise)
        coarse = int(random.integers(1, 4))
        side = -(-images.shape[-1] // coarse)
        grains = torch.from_numpy(random.standard_normal((len(images), 1, side, side)).astype(np.float32))
        if coarse > 1:
            grains = F.interpolate(grains, size=images.shape[-2:], mode="bilinear", align_corners=False)
        widths = torch.tensor([options.frames.windows[0].width / one.width for one in options.frames.windows])
        images = (images + grains * strength * widths[:, None, None]).clamp(0, 1)
    return images
