"""Volumes at the spacing that a corrector sees, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.slices import resize
from polycl.window import Window

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]


def shape_at(shape: tuple[int, ...], spacing: Triple, wanted: Triple) -> Shape:
    """Voxels of a volume of `shape` and `spacing` once it has the spacing `wanted`, both in mm."""
    x, y, z = (max(1, round(count * mm / to)) for count, mm, to in zip(shape, spacing, wanted, strict=True))
    return x, y, z


def resampled(volumes: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Linear resampling of `[C, X, Y, Z]` to `[C, *shape]` over the same extent, antialiased where it shrinks."""
    flat = resize(volumes.permute(3, 0, 1, 2), shape[:2])  # [Z, C, X', Y']
    upright = flat.permute(1, 2, 3, 0).flatten(1, 2)[:, None]  # [C, 1, X' Y', Z]
    return resize(upright, (upright.shape[2], shape[2])).reshape(len(volumes), *shape)


def seen_through(hu: NDArray[Any], windows: tuple[Window, ...]) -> torch.Tensor:
    """HU `[X, Y, Z]` through each window, `[windows, X, Y, Z]` from -1 to 1; NaN as black."""
    image = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))
    return torch.nan_to_num(torch.stack([window.apply(image) for window in windows]), nan=0.0) * 2 - 1


def annotated_at(slices: Mapping[int, NDArray[np.bool_]], depth: int, shape: Shape) -> torch.Tensor:
    """Annotated slices as the network is shown them, `[1, *shape]`; see `CorrectorNetwork`.

    Args:
        slices: masks [X, Y] by slice of the volume.
        depth: slices of the volume.
        shape: voxels that the network sees of it.
    """
    shown = torch.zeros(1, *shape)
    places = {z: (z + 0.5) * shape[2] / depth for z in slices}
    last_counts = sorted(slices, key=lambda z: (-abs(places[z] % 1 - 0.5), z))  # the nearest to a voxel's middle
    for z in last_counts:
        covered = resize(torch.from_numpy(slices[z])[None, None].float(), shape[:2])[0, 0]
        least = min(0.5, 0.99 * float(covered.max()))  # what is too small for a voxel is where it covers most
        shown[0, :, :, min(shape[2] - 1, int(places[z]))] = torch.where(covered > least, 1.0, -1.0)
    return shown
