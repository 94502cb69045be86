"""Axial slices of a canonical volume on a network's pixel grid, and back.

A network sees slices at a fixed in-plane spacing, with the air around the body cropped away. `SliceGrid` holds that
mapping for one volume; it touches a batch of slices at a time, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.neighbours import neighbours
from polycl.volume import Volume
from polycl.window import Window

SOFT_TISSUE_HU = -100
"""Above this HU a voxel counts as body (or table) when the air is cropped away."""
MARGIN_MM = 8.0
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class SliceGrid:
    """In-plane mapping between a canonical volume and a network's input.

    Attributes:
        box: x0, x1, y0, y1 of the cropped region, in voxels of the canonical volume.
        size: pixels (X, Y) of that region at the network's spacing.
        padded: `size` rounded up to the network's stride.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, volume: Volume, spacing: float, stride: int, *, crop: bool = True) -> SliceGrid:
        """The grid for a canonical `volume` at `spacing` mm a pixel; without `crop` the air around the body stays."""
        x0, x1, y0, y1 = body_box(volume) if crop else (0, volume.shape[0], 0, volume.shape[1])
        size = tuple(
            max(1, round(n * mm / spacing)) for n, mm in zip((x1 - x0, y1 - y0), volume.spacing[:2], strict=True)
        )
        if max(size) > LARGEST_SIDE:
            raise InputError(
                f"a slice is {size[0] * spacing:.0f} x {size[1] * spacing:.0f} mm; "
                f"at most {LARGEST_SIDE * spacing:.0f} mm a side are accepted: is the spacing right?"
            )
        padded = tuple(-(-side // stride) * stride for side in size)
        return cls((x0, x1, y0, y1), (size[0], size[1]), (padded[0], padded[1]))

    def read(self, volume: Volume, window: Window, start: int, stop: int, beside: Sequence[float] = ()) -> torch.Tensor:
        """Slices `start` to `stop` as the network sees them: windowed, `[B, C, *padded]`, zeros at the far ends.

        Channels are each slice and what lies so many mm `beside` it, see `polycl.neighbours`. The window comes first:
        else air, padding at -3024 HU or metal would smear into the tissue beside it.
        """
        x0, x1, y0, y1 = self.box
        wanted = np.array([neighbours(z, volume, beside) for z in range(start, stop)])
        different, channels = np.unique(wanted, return_inverse=True)
        slices = np.moveaxis(volume.voxels[x0:x1, y0:y1][:, :, different], 2, 0)
        hu = torch.from_numpy(np.array(slices, dtype=np.float32, order="C"))[:, None]
        seen = resize(window.apply(hu), self.size)[:, 0]
        shown = F.pad(seen, (0, self.padded[1] - self.size[1], 0, self.padded[0] - self.size[0]))
        return shown[torch.from_numpy(channels.reshape(wanted.shape))]

    def restore(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C, *padded]` to float32 `[B, C, x1 - x0, y1 - y0]` in the volume's own pixels of the box."""
        x0, x1, y0, y1 = self.box
        return resize(logits[..., : self.size[0], : self.size[1]].float(), (x1 - x0, y1 - y0))


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resampling of `[B, C, X, Y]` over the same extent, antialiased when it shrinks."""
    if tuple(images.shape[-2:]) == size:
        return images
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def body_box(volume: Volume) -> tuple[int, int, int, int]:
    """x0, x1, y0, y1 around all but the air of a canonical CT, with a margin; the whole slice if all is air."""
    step = 4
    tissue = np.zeros(volume.shape[:2], dtype=bool)[::step, ::step]
    for z in range(volume.shape[2]):
        tissue |= volume.voxels[::step, ::step, z] > SOFT_TISSUE_HU
    whole = volume.shape[0], volume.shape[1]
    return tissue_box(tissue, (volume.spacing[0], volume.spacing[1]), whole, step)


def tissue_box(
    tissue: NDArray[np.bool_], spacing: tuple[float, float], whole: tuple[int, int] | None = None, step: int = 1
) -> tuple[int, int, int, int]:
    """x0, x1, y0, y1 around what is set in `tissue` `[X, Y]`, with a margin; all of it if nothing is.

    `tissue` may hold each `step`-th pixel of a slice of `whole` pixels, to which the result then belongs.
    """
    whole = whole or (tissue.shape[0], tissue.shape[1])
    return (
        *_extent(tissue.any(axis=1), step, whole[0], spacing[0]),
        *_extent(tissue.any(axis=0), step, whole[1], spacing[1]),
    )


def _extent(occupied: NDArray[np.bool_], step: int, length: int, spacing: float) -> tuple[int, int]:
    hits = np.flatnonzero(occupied) * step
    if not len(hits):
        return 0, length
    margin = step + round(MARGIN_MM / spacing)
    return max(0, int(hits[0]) - margin), min(length, int(hits[-1]) + step + margin)
