"""Two bright cylinders, coarse labels of them, a SAM that finds what is bright, and plain parameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.refinement import RefineParameters
from polycl.sam import Embedding, Masks, Prompts
from polycl.volume import Volume

SHAPE = (40, 36, 9)
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, 12], [0, 0, 4.0, 50], [0, 0, 0, 1]])
PLAIN = {
    "window": "soft-tissue",
    "asks": ["box+point+mask"],
    "passes": 1,
    "min_area": 60.0,
    "min_depth": 0.0,
    "max_pixel": 100.0,
    "box_margin": 2.0,
    "reach": 2.0,
    "crop_margin": None,
    "tiles": 1,
    "min_agreement": 0.85,
    "min_score": 0.75,
    "min_consent": 0.0,
    "band": 4.0,
    "stride": 4,
    "through_plane": 0.0,
    "hold": 0.0,
}
"""One question a component, on whole slices: the defaults may change, what they mean does not."""


def like(**changes: Any) -> RefineParameters:
    return RefineParameters(**(PLAIN | changes))


ALWAYS = like(stride=1, band=None)


class Threshold:
    """A SAM that finds what is brighter than half the window inside the box, however the image is turned."""

    name, sha256, size = "threshold", "0" * 64, 64
    sight = None

    def __init__(self, score: float = 0.9, bias: float = 0.0) -> None:
        self.score, self.bias = score, bias
        self.encoded: list[NDArray[np.floating]] = []
        self.prompts: list[Prompts] = []

    def encode(self, image: NDArray[np.floating]) -> Embedding:
        self.encoded.append(image)
        size = (image.shape[0], image.shape[1])
        return Embedding(np.asarray(image, np.float32)[None, None], size, size)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        self.prompts.append(prompts)
        prompts.require_inside(embedding.original)
        image = embedding.features[0, 0]
        logits = np.full_like(image, -5.0)
        assert prompts.box is not None
        left, top, right, bottom = prompts.box.round().astype(int)
        inside = (slice(max(0, top), bottom + 1), slice(max(0, left), right + 1))
        logits[inside] = (image[inside] - 0.5) * 10 + self.bias
        return Masks(logits[None], np.array([self.score], np.float32), np.zeros((1, 256, 256), np.float32))

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        return [self.decode(embedding, one) for one in prompts]


def scene() -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """HU with two bright cylinders on slices 1 to 7, their labels 1 and 2, and the labels moved by a pixel."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    truth = np.zeros(SHAPE, np.uint8)
    truth[(x - 12) ** 2 / 81 + (y - 17) ** 2 / 100 < 1, 1:8] = 1
    truth[(x - 29) ** 2 / 49 + (y - 15) ** 2 / 64 < 1, 1:8] = 2
    coarse = np.roll(truth, 1, axis=0)
    return np.where(truth > 0, 120, -60).astype(np.int16), truth, coarse


def volumes() -> tuple[Volume, Volume, NDArray[np.uint8]]:
    hu, truth, coarse = scene()
    return Volume(hu, AFFINE), Volume(coarse, AFFINE), truth
