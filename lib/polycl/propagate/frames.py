"""Axial slices as the frames that SAM 2 sees, and its logits back on the slices. Training and propagation share this.

A frame shows a square region of the slice at a fixed number of pixels, upright as a reader sees it (rows from anterior
to posterior, columns from the patient's right to left, as `polycl.sam.prompts` has it). The region is chosen once for
a whole propagation, so that a memory of one slice lies on the same tissue in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from polycl.propagate.header import FrameConfig
from polycl.sam.prompts import from_image, to_image
from polycl.slices import body_box, resize
from polycl.volume import Volume

Box = tuple[int, int, int, int]
"""x0, x1, y0, y1 in voxels of a canonical volume, the ends left out."""


@dataclass(frozen=True)
class Region:
    """A rectangle of the axial plane, square in millimetres. It may reach beyond the volume, which is air there.

    Attributes:
        x, y: its lowest voxel, in canonical indices; may be negative.
        width, height: voxels along x and y.
    """

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def square(cls, volume: Volume, centre: tuple[float, float], side_mm: float) -> Region:
        """The square of `side_mm` around `centre` (canonical x, y), moved into the volume as far as it fits in."""
        starts, lengths = [], []
        for middle, count, mm in zip(centre, volume.shape[:2], volume.spacing[:2], strict=True):
            length = max(1, round(side_mm / mm))
            start = round(middle + 0.5 - length / 2)
            low, high = sorted((0, count - length))
            starts.append(min(max(start, low), high))
            lengths.append(length)
        return cls(starts[0], starts[1], lengths[0], lengths[1])

    @classmethod
    def around(cls, volume: Volume, box: Box, config: FrameConfig) -> Region:
        """The region for objects that lie within `box` on their seed slices.

        It leaves `coverage` times their extent, as they grow and drift from slice to slice, and never less than
        `least_mm`, for context; nor more than the longer side of the slice. What grows out of it needs a larger one:
        see `larger` and `FrameGrid.rim`.
        """
        return cls._around(volume, box, max(config.coverage * longest(box, volume), config.least_mm))

    @classmethod
    def whole(cls, volume: Volume) -> Region:
        """The square around the whole body."""
        return cls.over(volume, body_box(volume))

    @classmethod
    def over(cls, volume: Volume, box: Box) -> Region:
        """The smallest square that shows all of `box`."""
        return cls._around(volume, box, longest(box, volume))

    def larger(self, volume: Volume, box: Box, factor: float, config: FrameConfig) -> Region:
        """The region for an object that grew out of this one and is now known to reach over `box`."""
        side = max(factor * self.side(volume), config.coverage * longest(box, volume))
        return self._around(volume, box, side)

    def side(self, volume: Volume) -> float:
        """Millimetres a side."""
        return max(self.width * volume.spacing[0], self.height * volume.spacing[1])

    @classmethod
    def _around(cls, volume: Volume, box: Box, side: float) -> Region:
        x0, x1, y0, y1 = box
        most = longest((0, volume.shape[0], 0, volume.shape[1]), volume)
        return cls.square(volume, ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), min(side, most))

    def inside(self, shape: tuple[int, ...]) -> Box:
        """Its part within planes of `shape` (X, Y, ...)."""
        x1, y1 = min(self.x + self.width, shape[0]), min(self.y + self.height, shape[1])
        return max(0, self.x), x1, max(0, self.y), y1

    def holds(self, other: Region, shape: tuple[int, ...]) -> bool:
        """Whether all that `other` shows of planes of `shape` is shown."""
        return self.contains(other.inside(shape))

    def contains(self, box: Box) -> bool:
        """Whether all of `box` lies in it."""
        x0, x1, y0, y1 = box
        return self.x <= x0 and self.y <= y0 and x1 <= self.x + self.width and y1 <= self.y + self.height


def longest(box: Box, volume: Volume) -> float:
    """The longer side of a box, mm."""
    return max((box[1] - box[0]) * volume.spacing[0], (box[3] - box[2]) * volume.spacing[1])


@dataclass(frozen=True)
class FrameGrid:
    """The mapping between the planes of a canonical volume and frames of `size` x `size` pixels.

    Attributes:
        region: what a frame shows.
        size: pixels a side.
        shape: (X, Y) of a plane.
    """

    region: Region
    size: int
    shape: tuple[int, int]

    @property
    def box(self) -> Box:
        """The part of a plane that frames show."""
        return self.region.inside(self.shape)

    def read(self, volume: Volume, indices: list[int], config: FrameConfig) -> torch.Tensor:
        """Slices `indices` of a canonical CT in HU as frames [B, 3, size, size].

        The window comes first: else air, padding at -3024 HU or metal would smear into the tissue beside it.
        """
        x0, x1, y0, y1 = self.box
        hu = np.stack([to_image(volume.voxels[x0:x1, y0:y1, index]) for index in indices]).astype(np.float32)
        seen = self._pad(config.channels(torch.from_numpy(hu)))
        return config.normalised(resize(seen, (self.size, self.size)))

    def masks(self, planes: NDArray[Any]) -> torch.Tensor:
        """Masks [B, X, Y] of whole planes as float32 [B, 1, size, size] of 0 and 1, inside where half covered."""
        x0, x1, y0, y1 = self.box
        images = np.stack([to_image(plane[x0:x1, y0:y1]) for plane in planes]).astype(np.float32)
        shrunk = resize(self._pad(torch.from_numpy(images)[:, None]), (self.size, self.size))
        return (shrunk >= 0.5).float()

    def shown(self, plane: NDArray[Any], outside: float) -> NDArray[np.float32]:
        """A whole plane [X, Y] of any values as float32 [size, size]; `outside` is what is beyond it."""
        x0, x1, y0, y1 = self.box
        image = torch.from_numpy(to_image(plane[x0:x1, y0:y1]).astype(np.float32))[None, None]
        padded = F.pad(image, self._padding(), value=outside)
        result: NDArray[np.float32] = resize(padded, (self.size, self.size))[0, 0].numpy()
        return result

    def values(self, volume: Volume, index: int) -> NDArray[np.float32]:
        """HU of slice `index` of a canonical CT at the pixels of a frame [size, size]; NaN beyond the slice."""
        steps = (np.arange(self.size) + 0.5) / self.size
        x = self.region.x + self.region.width - 1 - (steps * self.region.width).astype(int)
        y = self.region.y + self.region.height - 1 - (steps * self.region.height).astype(int)
        inside = ((y >= 0) & (y < self.shape[1]))[:, None] & ((x >= 0) & (x < self.shape[0]))
        columns, rows = x.clip(0, self.shape[0] - 1), y.clip(0, self.shape[1] - 1)
        seen = volume.voxels[columns[None], rows[:, None], index].astype(np.float32)
        return np.where(inside, seen, np.float32(np.nan))

    def points(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Canonical in-plane indices [..., 2] as (column, row) of frame pixels, centres on centres."""
        sides = np.array([self.region.width, self.region.height])
        far = np.array([self.region.x, self.region.y]) + sides - 1
        result: NDArray[np.float64] = (far - np.asarray(xy, dtype=np.float64) + 0.5) * (self.size / sides) - 0.5
        return result

    def restore(self, logits: torch.Tensor) -> NDArray[np.float32]:
        """Logits [B, s, s] over a frame as float32 [B, x1 - x0, y1 - y0] in the plane's own voxels of `box`."""
        x0, x1, y0, y1 = self.box
        full = F.interpolate(
            logits.float()[:, None], (self.region.height, self.region.width), mode="bilinear", align_corners=False
        )[:, 0]
        left, right, top, bottom = self._padding()
        inner = full[:, top : full.shape[1] - bottom, left : full.shape[2] - right].cpu().numpy()
        planes = np.empty((len(inner), x1 - x0, y1 - y0), dtype=np.float32)
        for plane, image in zip(planes, inner, strict=True):
            plane[...] = from_image(image)
        return planes

    def rim(self, side: int) -> NDArray[np.bool_]:
        """Of a mask [side, side] over a frame, the pixels beside a border that the slice goes on behind."""
        left, right, top, bottom = (
            self.region.x + self.region.width < self.shape[0],
            self.region.x > 0,
            self.region.y + self.region.height < self.shape[1],
            self.region.y > 0,
        )
        rim = np.zeros((side, side), dtype=bool)
        rim[:, 0] |= left
        rim[:, -1] |= right
        rim[0] |= top
        rim[-1] |= bottom
        return rim

    def extent(self, mask: NDArray[np.bool_]) -> Box | None:
        """The voxels that a mask [s, s] over a frame reaches within the plane; None if it reaches none."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        region, side = self.region, len(mask)
        # Frames run against the canonical axes, so the last column is the lowest x.
        x0 = region.x + region.width * (side - 1 - columns[-1]) // side
        x1 = region.x - (-region.width * (side - columns[0]) // side)
        y0 = region.y + region.height * (side - 1 - rows[-1]) // side
        y1 = region.y - (-region.height * (side - rows[0]) // side)
        inner = self.box
        box = (max(x0, inner[0]), min(x1, inner[1]), max(y0, inner[2]), min(y1, inner[3]))
        return (int(box[0]), int(box[1]), int(box[2]), int(box[3])) if box[0] < box[1] and box[2] < box[3] else None

    def _padding(self) -> tuple[int, int, int, int]:
        """Pixels of the region beyond the plane: left, right, top, bottom of the image."""
        x0, x1, y0, y1 = self.box
        region = self.region
        return region.x + region.width - x1, x0 - region.x, region.y + region.height - y1, y0 - region.y

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        padding = self._padding()
        return F.pad(images, padding) if any(padding) else images
