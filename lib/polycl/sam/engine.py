"""What every SAM engine does: encode a slice once, then decode any number of prompts on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polycl.errors import InputError
from polycl.sam.prompts import Prompts, resized
from polycl.window import Window

# Of ImageNet's photographs in 8 bits, as SAM was trained.
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Embedding:
    """What an encoder made of one image.

    Attributes:
        features: float32 [1, 256, size / 16, size / 16].
        original: height and width of the image.
        resized: height and width it had inside the encoder's square, at the top left.
        fine: finer features of networks that have some: float32 [1, C, size / 4, size / 4] and [.., size / 8, ..].
    """

    features: NDArray[np.float32]
    original: tuple[int, int]
    resized: tuple[int, int]
    fine: tuple[NDArray[np.float32], ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.features, *self.fine))


@dataclass(frozen=True, eq=False)
class Masks:
    """Candidates for one object.

    Attributes:
        logits: float32 [M, H, W] in the image's own pixels; above 0 is inside.
        scores: float32 [M], the IoU that SAM expects of each.
        low: float32 [M, 256, 256], the same logits at low resolution, for the next prompt.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    low: NDArray[np.float32]

    def part(self, region: tuple[slice, slice]) -> Masks:
        """The same candidates on a region (rows, columns) of the image."""
        return Masks(self.logits[:, *region], self.scores, self.low)

    @property
    def best(self) -> int:
        """The candidate with the highest score."""
        return int(self.scores.argmax())


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint was trained to see images, and which of its masks count.

    Attributes:
        photographic: 8-bit values less `MEAN` over `STD` (SAM); as they are in [0, 1] otherwise (MedSAM).
        keep_aspect: longest side to the encoder's size and padding (SAM); stretched to the square otherwise (MedSAM).
        several: three masks for an ambiguous prompt (SAM); always the one for clear prompts otherwise (MedSAM).
    """

    photographic: bool = True
    keep_aspect: bool = True
    several: bool = True

    def size_of(self, image: tuple[int, int], size: int) -> tuple[int, int]:
        """Height and width of an image of that height and width inside the encoder's square."""
        return resized(*image, size) if self.keep_aspect else (size, size)

    def prepare(self, image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """The encoder's input [1, 3, size, size] of a grey image [H, W] in [0, 1].

        Resized in 8 bits, as SAM's own predictor does, so that the numbers are the same.
        """
        grey = check_image(image)
        height, width = self.size_of((grey.shape[0], grey.shape[1]), size)
        eight = Image.fromarray((grey * 255 + 0.5).astype(np.uint8))
        pixels = np.asarray(eight.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
        result = np.zeros((1, 3, size, size), dtype=np.float32)
        if self.photographic:
            result[0, :, :height, :width] = (pixels - MEAN[:, None, None]) / STD[:, None, None]
        else:
            result[0, :, :height, :width] = pixels / 255
        return result

    def scale(self, pixels: NDArray[np.float64], embedding: Embedding) -> NDArray[np.float64]:
        """(column, row) [..., 2] of the image, in the encoder's square."""
        (height, width), (inner_height, inner_width) = embedding.original, embedding.resized
        return pixels * np.array([inner_width / width, inner_height / height])


@dataclass(frozen=True)
class Sight:
    """What a network sees of a slice, if it was trained on parts of slices rather than on whole ones. Lengths in mm.

    Attributes:
        windows: one for each channel, whatever window is asked for.
        coverage: side of the part for one of the object's.
        least: shortest side.
        guess: side where nothing is known of the object but points.
    """

    windows: tuple[Window, ...]
    coverage: float
    least: float
    guess: float


class Engine(Protocol):
    """A SAM checkpoint. Calls may come from several threads; masks are decoded while another thread encodes.

    `sight` is None for a network that sees whole slices, through any window.
    """

    name: str
    sha256: str
    size: int

    @property
    def sight(self) -> Sight | None: ...

    def encode(self, image: NDArray[np.float32]) -> Embedding:
        """The embedding of an image in [0, 1]: grey [H, W], or [H, W, channels] as `sight` says.

        InputError for anything else.
        """
        ...

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """One object's masks; InputError for prompts outside the image."""
        ...

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        """`decode` for each of `prompts`, in batches where the engine can."""
        ...


def check_image(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """`image` as float32; InputError unless it is [H, W], not empty, and in [0, 1]."""
    if image.ndim != 2 or not image.size:
        raise InputError(f"an image of shape {image.shape} cannot be encoded; [H, W] is needed")
    grey = np.asarray(image, dtype=np.float32)
    if not (grey.min() >= 0 and grey.max() <= 1):  # NaN fails too
        raise InputError("the image must be windowed to [0, 1] before it is encoded")
    return grey
