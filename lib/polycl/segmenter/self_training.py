"""Self-training: a segmenter outlines slices that nobody outlined, and then learns from those too.

It is told which classes are in each slice, as PolyCL's strategies `organ` and `mixed` are: a bit a class, which costs a
person seconds where an outline costs minutes. A class that is not there is outlined nowhere; one that is there and was
not found stays unknown, so that no loss pulls at it (`polycl.segmenter.training.marginal`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.dataset import LabelledSlice
from polycl.devices import Device
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.network import STRIDE
from polycl.segmenter.training import NEVER, Report, Schedule, TrainingData, finetune
from polycl.slices import SliceGrid
from polycl.volume import Volume

THICKNESS = 1.0
"""A slice and what is seen with it have none; they need a number to be a volume, which nothing reads."""

OWN_WORTH = 10
"""What its own outlines weigh together, in labelled slices: their share falls as labels grow, which are better."""


def finetune_twice(
    header: Header,
    data: TrainingData,
    unlabelled: Sequence[LabelledSlice],
    output: Path,
    *,
    schedule: Schedule,
    augmentation: Augmentation,
    encoder: dict[str, torch.Tensor] | None = None,
    start: dict[str, torch.Tensor] | None = None,
    where: Device,
    report: Callable[[Report], None] = lambda _: None,
) -> float:
    """`finetune`, then outline `unlabelled`, and as many steps again on these and the labelled slices.

    Of the labels of `unlabelled` only which classes are in each slice is looked at. A run that was killed goes on where
    it was. `output` has the weights with the best Dice on `data.validation` of both rounds, and of the second where
    there is none. Returns that Dice.
    """
    first = output.with_suffix(".first.safetensors")
    if not first.is_file():
        part = output.with_suffix(".part.safetensors")
        finetune(
            header,
            data,
            part,
            schedule=schedule,
            augmentation=augmentation,
            encoder=encoder,
            start=start,
            where=where,
            report=_reporting(report, schedule.steps, 0),
        )
        part.rename(first)
    teacher = Segmenter.load(first, device=str(where.device), precision=where.precision)
    own = outlined(teacher, [(one, set(np.unique(one.classes).tolist()) - {0}) for one in unlabelled])
    best = finetune(
        header,
        replace(data, slices=[*data.slices] * max(1, len(own) // OWN_WORTH) + own),
        output,
        schedule=schedule,
        augmentation=augmentation,
        start=checkpoints.load(first)[1],
        where=where,
        report=_reporting(report, schedule.steps, schedule.steps),
    )
    before = checkpoints.load(first)[0].provenance.figures.get("validation_dice", 0.0)
    if before > best:
        first.replace(output)
        return before
    first.unlink()
    return best


def _reporting(report: Callable[[Report], None], steps: int, before: int) -> Callable[[Report], None]:
    """Tell of one round of `steps` as part of two, `before` steps having been done before it."""
    return lambda now: report(replace(now, step=now.step + before, steps=2 * steps))


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
    slices = np.stack([one.hu, *one.beside], axis=2)
    volume = Volume(slices, np.diag([*one.spacing, THICKNESS, 1.0]))
    grid = SliceGrid.of(volume, segmenter.header.preprocessing.spacing, STRIDE)
    logits = segmenter.logits(grid.read(volume, segmenter.window, 0, slices.shape[2]).movedim(0, 1))
    restored = grid.restore(logits)[0].index_fill(
        0, torch.tensor(absent, dtype=torch.long, device=logits.device), NEVER
    )
    classes = np.zeros(one.hu.shape, dtype=np.uint8)
    x0, x1, y0, y1 = grid.box
    classes[x0:x1, y0:y1] = restored.argmax(dim=0).cpu().numpy()
    return classes
