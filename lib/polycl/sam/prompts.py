"""A canonical slice as the image that SAM sees, and prompts on it.

SAM learned from upright photographs, so it gets an axial slice as a reader sees it: rows from anterior to posterior,
columns from the patient's right to left. This module alone knows how that image and the canonical in-plane axes (x
towards the right, y towards anterior) correspond.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polycl.errors import InputError
from polycl.volume import Volume
from polycl.window import Window

LOW_SIDE = 256
"""Pixels a side of the masks that SAM takes and gives back at low resolution."""


def to_image(plane: NDArray[Any]) -> NDArray[Any]:
    """A canonical plane [X, Y] as an image [H, W] = [Y, X]; a view, so writing into it fills the plane."""
    return plane[::-1, ::-1].T


def from_image(image: NDArray[Any]) -> NDArray[Any]:
    """An image [H, W] as a canonical plane [X, Y] = [W, H]; a view. The inverse of `to_image`."""
    return image.T[::-1, ::-1]


def to_pixels(xy: ArrayLike, shape: tuple[int, int]) -> NDArray[Any]:
    """Canonical in-plane indices [..., 2] of a plane of `shape` (X, Y) as (column, row). Keeps integers integers."""
    return np.array([shape[0] - 1, shape[1] - 1]) - np.asarray(xy)


def to_xy(pixels: ArrayLike, shape: tuple[int, int]) -> NDArray[Any]:
    """Image (column, row) [..., 2] as canonical in-plane indices of a plane of `shape` (X, Y)."""
    return to_pixels(pixels, shape)  # two flips: its own inverse


def slice_image(volume: Volume, index: int, window: Window) -> NDArray[np.float32]:
    """Axial slice `index` of a canonical CT in HU through `window`: [H, W] in [0, 1], NaN as black.

    Raises InputError for a slice that is not there and for one without a single finite value.
    """
    import torch

    if not 0 <= index < volume.shape[2]:
        raise InputError(f"there is no slice {index}; slices are 0 to {volume.shape[2] - 1}")
    hu = np.array(to_image(volume.voxels[:, :, index]), dtype=np.float32, order="C")
    if np.isnan(hu).all():
        raise InputError(f"slice {index} holds no numbers, only NaN")
    seen: NDArray[np.float32] = window.apply(torch.from_numpy(hu)).numpy()
    return np.nan_to_num(seen, copy=False, nan=0.0)


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is asked about one object on one image.

    Attributes:
        points: float [N, 2], (column, row) of pixel centres, so (0, 0) is the centre of the first pixel.
        labels: int [N], 1 where the object is, 0 where it is not.
        box: float [4], columns and rows of two opposite corners: left, top, right, bottom.
        mask_logits: float32 [256, 256], a mask's logits at low resolution: `Masks.low` or `mask_prompt`.

    Raises InputError for shapes, labels or values that are none of those, and where there is no prompt at all.
    """

    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    box: NDArray[np.float64] | None = None
    mask_logits: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        points = _numbers(self.points, "points").reshape(-1, 2) if np.size(self.points) else np.zeros((0, 2))
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if len(points) != len(labels) or not np.isin(labels, (0, 1)).all():
            raise InputError("each point needs a label: 1 in the object, 0 outside it")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)
        if self.box is not None:
            box = _numbers(self.box, "the box")
            if box.shape != (4,):
                raise InputError("a box is four numbers: left, top, right, bottom")
            corners = box.reshape(2, 2)
            object.__setattr__(self, "box", np.concatenate([corners.min(axis=0), corners.max(axis=0)]))
        if self.mask_logits is not None:
            logits = _numbers(self.mask_logits, "the mask").astype(np.float32)
            if logits.shape != (LOW_SIDE, LOW_SIDE):
                raise InputError(f"a mask prompt has {LOW_SIDE} x {LOW_SIDE} logits, not {logits.shape}")
            object.__setattr__(self, "mask_logits", logits)
        if not len(points) and self.box is None and self.mask_logits is None:
            raise InputError("there is no prompt; give a point, a box or a mask")

    def require_inside(self, shape: tuple[int, int]) -> None:
        """InputError unless each point is on a pixel of an image of `shape` (H, W) and the box touches it."""
        far = np.array([shape[1], shape[0]]) - 0.5
        if ((self.points < -0.5) | (self.points > far)).any():
            raise InputError(f"a point is outside the image of {shape[1]} x {shape[0]} pixels")
        if self.box is not None and ((self.box[:2] > far).any() or (self.box[2:] < -0.5).any()):
            raise InputError(f"the box is outside the image of {shape[1]} x {shape[0]} pixels")

    @property
    def ambiguous(self) -> bool:
        """Whether SAM's authors would ask for several masks: a lone point or a lone box, and nothing else."""
        return self.mask_logits is None and len(self.points) + (self.box is not None) == 1


def mask_prompt(mask: NDArray[np.bool_], strength: float = 8.0) -> NDArray[np.float32]:
    """A mask [H, W] as SAM's mask prompt: logits of ±`strength` [256, 256], longest side 256, padded with "outside".

    For engines that keep the aspect ratio, which is all but MedSAM's, which takes no mask.
    """
    from PIL import Image

    height, width = resized(mask.shape[0], mask.shape[1], LOW_SIDE)
    small = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    logits = np.full((LOW_SIDE, LOW_SIDE), -strength, dtype=np.float32)
    logits[:height, :width] = (2 * np.asarray(small) - 1) * strength
    return logits


def resized(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width with the longest side at `longest`, rounded as SAM's ResizeLongestSide does."""
    scale = longest / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} must be numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{what} must be finite numbers")
    return array
