"""A SAM without weights: it finds what is brighter than half the window, in the box or joined to the points."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from polycl.sam import Embedding, Engine, Masks, Prompts, load_engine
from polycl.settings import Settings

NAME = "mobile-sam"


class Unasked:
    """A SAM that must not be asked."""

    name, sha256, size = "unasked", "0" * 64, 64
    sight = None

    def encode(self, image: NDArray[np.floating]) -> Embedding:
        raise AssertionError

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        raise AssertionError

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        raise AssertionError


class FakeSam:
    """Deterministic, and counts what it encodes."""

    name, sha256, size = NAME, "f" * 64, 64
    sight = None

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: NDArray[np.floating]) -> Embedding:
        self.encoded += 1
        size = (image.shape[0], image.shape[1])
        return Embedding(np.array(image, np.float32)[None, None], size, size)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        prompts.require_inside(embedding.original)
        image = embedding.features[0, 0]
        wanted = np.zeros(image.shape, bool)
        if prompts.box is not None:
            left, top, right, bottom = prompts.box.round().astype(int)
            wanted[max(0, top) : bottom + 1, max(0, left) : right + 1] = True
            wanted &= image > 0.5
        else:
            components, _ = ndimage.label(image > 0.5)
            for column, row in prompts.points[prompts.labels == 1].astype(int):
                wanted |= (components == components[row, column]) & (components > 0)
                wanted[row, column] = True
        for column, row in prompts.points[prompts.labels == 0].astype(int):
            wanted[row, column] = False
        logits = np.where(wanted, 4.0, -4.0).astype(np.float32)
        return Masks(logits[None], np.array([0.9], np.float32), np.zeros((1, 256, 256), np.float32))

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        return [self.decode(embedding, one) for one in prompts]


def nothing_left_ahead() -> None:
    """Return when the running app has embedded all that it wanted to ahead of requests."""
    from monailabel.interfaces.utils.app import app_instance

    cache = app_instance().runtime.engines.cache
    assert cache.prefetch([], lambda key: None).wait(20)


def installed() -> Iterator[FakeSam]:
    """The app finds the weights of this engine alone, for as long as this generator is not resumed."""
    engine = FakeSam()

    def load(name: str, settings: Settings) -> Engine:
        return engine if name == NAME else load_engine(name, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polycl.monailabel.engines.load_engine", load)
        patch.setattr("polycl.monailabel.engines.default_engine", lambda settings: NAME)
        yield engine


def install() -> None:
    """The same for as long as the process runs."""
    _kept.append(installed())
    next(_kept[0])


_kept: list[Iterator[FakeSam]] = []
