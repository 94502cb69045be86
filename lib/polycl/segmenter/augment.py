"""Training crops: one random view of a labelled slice, on the network's pixel grid.

Rotation, scale, shift and resampling to the network's spacing are one interpolation. Intensities then vary as they do
between scanners and contrast phases: brightness and contrast in HU, noise, blur, coarse pixels (MONAI's transforms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Compose, RandGaussianNoise, RandGaussianSmooth, RandSimulateLowResolution
from torch.utils.data import Dataset

from polycl.checkpoints import Preprocessing
from polycl.dataset import LabelledSlice
from polycl.segmenter.removal import without_one
from polycl.segmenter.unenhanced import unenhanced
from polycl.slices import SOFT_TISSUE_HU, tissue_box

LEAST_PLAY = 0.15
"""How far a crop's centre may lie from the middle of a body that is smaller than the crop, in half crops."""


@dataclass(frozen=True)
class Augmentation:
    """How far a view may stray from the slice.

    A share `unenhanced` of views looks as without contrast medium; from a share `removed` of those that show several
    organs one is taken out.
    """

    rotation_degrees: float = 15.0
    scale: tuple[float, float] = (0.75, 1.35)
    anisotropy: float = 0.1
    brightness_hu: float = 30.0
    contrast: tuple[float, float] = (0.8, 1.25)
    noise: float = 0.04
    blur_pixels: float = 1.2
    coarse: tuple[float, float] = (0.35, 1.0)
    unenhanced: float = 0.0
    removed: float = 0.0


def _rough(augmentation: Augmentation) -> Compose:
    blur = (0.3, augmentation.blur_pixels)
    return Compose(
        [
            RandSimulateLowResolution(
                prob=0.3, downsample_mode="area", upsample_mode="bilinear", zoom_range=augmentation.coarse
            ),
            RandGaussianSmooth(sigma_x=blur, sigma_y=blur, prob=0.2),
            RandGaussianNoise(prob=0.4, std=augmentation.noise),
        ]
    )


class TrainingCrops(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Item i is a view drawn from (seed, i) alone: the same whatever the number of workers, and after a resume.

    A `negative_share` of the items comes from `negatives`, pools of slices without any of the classes, each as often.
    Items are a windowed image `[channels, size, size]`, class ids `[1, size, size]`, and which classes are known,
    `[classes]`.
    """

    def __init__(
        self,
        slices: Sequence[LabelledSlice],
        negatives: Sequence[Sequence[LabelledSlice]],
        preprocessing: Preprocessing,
        *,
        items: int,
        seed: int,
        negative_share: float = 0.25,
        augmentation: Augmentation = Augmentation(),
        classes: int = 256,
    ) -> None:
        self.slices, self.negatives = slices, [pool for pool in negatives if pool]
        self.preprocessing = preprocessing
        self.items, self.seed = items, seed
        self.negative_share = negative_share if self.negatives else 0.0
        self.augmentation = augmentation
        self._rough = _rough(augmentation)
        self.classes = classes

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        random = np.random.default_rng((self.seed, item))
        negative = random.random() < self.negative_share
        pool = self.negatives[random.integers(len(self.negatives))] if negative else self.slices
        chosen = pool[random.integers(len(pool))]
        if self.augmentation.removed and random.random() < self.augmentation.removed:
            chosen = without_one(chosen, random)
        hu = np.stack([chosen.hu, *chosen.beside]).astype(np.float32)
        if self.augmentation.unenhanced and random.random() < self.augmentation.unenhanced:
            hu = unenhanced(hu, chosen.classes, random)
        seen = self._windowed(torch.from_numpy(hu), random)
        image, classes = spatial_view(seen, chosen, self.preprocessing, self.augmentation, random)
        self._rough.set_random_state(seed=int(random.integers(2**31)))
        return torch.as_tensor(self._rough(image)).clamp(0, 1), classes, self._known(chosen)

    def _known(self, chosen: LabelledSlice) -> torch.Tensor:
        known = torch.full((self.classes,), chosen.known is None)
        known[[0, *(chosen.known or ())]] = True
        return known

    def _windowed(self, hu: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        options, window = self.augmentation, self.preprocessing.window
        brightness = random.uniform(-options.brightness_hu, options.brightness_hu)
        contrast = np.exp(random.uniform(*np.log(options.contrast)))
        return window.apply((hu - window.level) * contrast + window.level + brightness)


def spatial_view(
    seen: torch.Tensor,
    chosen: LabelledSlice,
    preprocessing: Preprocessing,
    options: Augmentation,
    random: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rotated, scaled, shifted crop of a windowed slice `[C, X, Y]`, and of its classes, `[1, size, size]`."""
    size, mm = preprocessing.size, preprocessing.spacing
    angle = np.deg2rad(random.uniform(-options.rotation_degrees, options.rotation_degrees))
    scale = np.exp(random.uniform(*np.log(options.scale))) * np.exp(random.uniform(-1, 1, 2) * options.anisotropy)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    extent = np.array(chosen.hu.shape) * chosen.spacing
    # millimetres of the slice that half the crop covers, and the play its centre has to stay over the body
    half = size * mm / 2 / scale
    x0, x1, y0, y1 = tissue_box(chosen.hu > SOFT_TISSUE_HU, chosen.spacing)
    low, high = np.array([x0, y0]) * chosen.spacing, np.array([x1, y1]) * chosen.spacing
    play = np.maximum((high - low) / 2 - half * 0.6, half * LEAST_PLAY)
    centre = (low + high - extent) / 2 + random.uniform(-play, play)
    # grid_sample wants normalised coordinates, last axis first: (y, x) of the [X, Y] slice
    matrix = (rotation * half) / (extent / 2)[:, None]
    theta = np.concatenate([matrix, (centre / (extent / 2))[:, None]], axis=1)[::-1][:, [1, 0, 2]]
    grid = F.affine_grid(torch.from_numpy(theta.copy()).float()[None], [1, 1, size, size], align_corners=False)
    image = F.grid_sample(seen[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    count = int(chosen.classes.max()) + 1
    one_hot = F.one_hot(torch.from_numpy(chosen.classes.astype(np.int64)), count).movedim(-1, 0)[None, 1:].float()
    if count == 1:
        return image[0], torch.zeros_like(image[0][:1], dtype=torch.long)
    share = F.grid_sample(one_hot, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    background = 1 - share.sum(dim=0, keepdim=True)
    return image[0], torch.cat([background, share]).argmax(dim=0, keepdim=True)
