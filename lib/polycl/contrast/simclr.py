"""SimCLR's two views of a slice: a random crop, resized and flipped, other brightness and contrast, blurred.

After Chen, Kornblith, Norouzi and Hinton 2020, arXiv 2002.05709, appendix A, for images of one channel: contrast and
brightness stand for the colour distortion. A view depends on the generator it is given alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


@dataclass(frozen=True)
class SimclrViews:
    """How far a view may stray from its slice.

    Attributes:
        area: share of the slice that a crop covers. SimCLR's 0.08 to 1 leaves air alone in many a crop of CT.
        aspect: width to height of a crop.
        flip: chance of a flip of the first axis, left to right.
        strength: brightness and contrast change by up to this share.
        blur: chance of a Gaussian blur, `sigma` in pixels of a 224-pixel slice.
        noise: largest standard deviation of added noise, as a share of the window.
    """

    area: tuple[float, float] = (0.25, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    strength: float = 0.4
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.03

    def __call__(self, image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        """One view of a slice uint8 `[S, S]`, of the same size."""
        seen = self._crop(torch.from_numpy(image.astype(np.float32) / 255), random)
        contrast, brightness = 1 + random.uniform(-self.strength, self.strength, 2)
        seen = (seen - 0.5) * contrast + 0.5 * brightness
        if random.random() < self.blur:
            seen = _blurred(seen, random.uniform(*self.sigma) * image.shape[0] / 224)
        noise = random.standard_normal(image.shape, dtype=np.float32) * random.uniform(0, self.noise)
        return np.round(np.clip(seen.numpy() + noise, 0, 1) * 255).astype(np.uint8)

    def _crop(self, image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        area = random.uniform(*self.area)
        aspect = np.exp(random.uniform(*np.log(self.aspect)))
        half = np.minimum(1, np.sqrt(area * np.array([aspect, 1 / aspect])))
        x, y = random.uniform(half - 1, 1 - half)
        sign = -1 if random.random() < self.flip else 1
        # grid_sample's coordinates: last axis first, from -1 to 1
        theta = torch.tensor([[[half[1], 0, y], [0, sign * half[0], x]]], dtype=torch.float32)
        grid = F.affine_grid(theta, [1, 1, *image.shape], align_corners=False)
        return F.grid_sample(image[None, None], grid, padding_mode="border", align_corners=False)[0, 0]


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padded = F.pad(image[None, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]
