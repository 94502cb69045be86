"""Self-training: a segmenter outlines slices that nobody outlined, and then learns from those too.

It is told which classes are in each slice, as PolyCL's strategies `organ` and `mixed` are: a bit a class, which costs a
person seconds where an outline costs minutes. A class that is not there is outlined nowhere; one that is there and was
not found stays unknown, so that no loss pulls at it (`polycl.segmenter.training.marginal`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.dataset import LabelledSlice
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.network import STRIDE
from polycl.segmenter.training import NEVER
from polycl.slices import SliceGrid
from polycl.volume import Volume

THICKNESS = 1.0
"""A slice by itself has none; it needs a number to be a volume, which nothing reads."""


def outlined(segmenter: Segmenter, slices: Iterable[tuple[LabelledSlice, Collection[int]]]) -> list[LabelledSlice]:
    """The slices with the segmenter's outlines for labels; their own are not looked at.

    Args:
        segmenter: a 2D one, whose classes are those of the slices.
        slices: each with the classes that are known to be in it.
    """
    return [_outlined(segmenter, one, set(present)) for one, present in slices]


def _outlined(segmenter: Segmenter, one: LabelledSlice, present: set[int]) -> LabelledSlice:
    classes = range(1, segmenter.header.network.classes)
    found = _classes(segmenter, one, [index for index in classes if index not in present])
    settled = set(np.unique(found).tolist()) | (set(classes) - present)
    return replace(one, classes=found, known=tuple(index for index in classes if index in settled))


def _classes(segmenter: Segmenter, one: LabelledSlice, absent: list[int]) -> NDArray[np.uint8]:
    """Class ids `[X, Y]`, none of them `absent`."""
    volume = Volume(one.hu[:, :, None], np.diag([*one.spacing, THICKNESS, 1.0]))
    grid = SliceGrid.of(volume, segmenter.header.preprocessing.spacing, STRIDE)
    logits = segmenter.logits(grid.read(volume, segmenter.window, 0, 1))
    restored = grid.restore(logits)[0].index_fill(
        0, torch.tensor(absent, dtype=torch.long, device=logits.device), NEVER
    )
    classes = np.zeros(one.hu.shape, dtype=np.uint8)
    x0, x1, y0, y1 = grid.box
    classes[x0:x1, y0:y1] = restored.argmax(dim=0).cpu().numpy()
    return classes
