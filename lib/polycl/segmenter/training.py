"""Fine-tuning: labelled slices in, the best checkpoint on whole validation volumes out.

One loop on Lightning Fabric, so that a CPU, a GPU or several run the same code. Every few steps the state is written
atomically beside the checkpoint; a run that was killed continues from there.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from monai.losses import DiceCELoss, DiceLoss
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.dataset import Case, LabelledSlice, Target
from polycl.devices import Device
from polycl.files import write_atomically
from polycl.metrics import dice
from polycl.segmenter.augment import Augmentation, TrainingCrops
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.network import SegmentationNetwork
from polycl.segmenter.transfer import start_from

MIXED: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
"""Lightning Fabric's names for our precisions."""


NEVER = -1e4
"""A logit whose probability is 0 in every precision, and its loss still finite."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, and by which loss; the encoder keeps its weights for the first `freeze` steps.

    In cross-entropy a background pixel counts `background` times another. With few steps and small organs a low number
    keeps an organ from being lost at once: the gradient of its Dice vanishes with its probability. But outlines become
    too wide by it, so it may grow, by equal factors, to 1 over the first `tighten` of the steps (0: it stays).

    What a run needs to go on is written with each validation and every `keep_every` steps; 0 for no more than that.
    """

    steps: int = 3000
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warm_up: int = 100
    average: float = 0.995
    validate_every: int = 500
    negative_share: float = 0.25
    seed: int = 0
    workers: int = 0
    loss: Literal["dice", "dice-ce"] = "dice-ce"
    background: float = 1.0
    tighten: float = 0.0
    freeze: int = 0
    keep_every: int = 0

    def criterion(self, classes: int, step: int = 0) -> nn.Module:
        """Loss at a step of logits `[B, classes, X, Y]` and class ids `[B, 1, X, Y]`."""
        if self.loss == "dice":
            return DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
        weight = torch.ones(classes)
        weight[0] = self.background_at(step)
        return DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True, weight=weight)

    def background_at(self, step: int) -> float:
        """What a background pixel counts at a step."""
        done = min(1.0, step / (self.tighten * self.steps)) if self.tighten else 0.0
        return self.background ** (1 - done)

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        return warm_cosine(step, self.steps, self.warm_up)


def warm_cosine(step: int, steps: int, warm_up: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to nothing."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@dataclass(frozen=True)
class TrainingData:
    """Slices with labels, pools of slices known to hold none of them, and whole cases to score by."""

    slices: Sequence[LabelledSlice]
    negatives: Sequence[Sequence[LabelledSlice]]
    validation: Sequence[tuple[Case, Sequence[Target]]]


@dataclass(frozen=True)
class Report:
    """What the loop tells about: `dice` is the validation figure where one was just taken."""

    step: int
    steps: int
    loss: float
    slices_per_second: float
    dice: float | None = None


def finetune(
    header: Header,
    data: TrainingData,
    output: Path,
    *,
    schedule: Schedule,
    augmentation: Augmentation,
    encoder: dict[str, torch.Tensor] | None = None,
    start: dict[str, torch.Tensor] | None = None,
    judge: Callable[[Segmenter], float] | None = None,
    where: Device,
    report: Callable[[Report], None] = lambda _: None,
) -> float:
    """Train a segmenter and keep in `output` the weights with the best mean Dice on `data.validation`.

    Args:
        header: the network, preprocessing and labels of the checkpoint to be.
        encoder: weights to start the encoder from (and the decoder, see `transfer`); ModelError if they do not fit.
        start: weights to start the whole network from.
        judge: what chooses the best weights instead of `evaluate` on `data.validation`; higher is better.
        report: called every ten steps and after each validation.

    Returns that best Dice.
    """
    fabric = Fabric(accelerator=where.device.type, devices=1, precision=MIXED[where.precision])
    fabric.seed_everything(schedule.seed, verbose=False)
    network = _network(header, encoder, start)
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    model, optimiser = fabric.setup(network, optimiser)
    average = AveragedModel(network, multi_avg_fn=exponential_average(schedule.average), use_buffers=True)
    judge = judge or (lambda segmenter: evaluate(segmenter, data.validation))
    state = TrainingState(output.with_suffix(".resume"), network, average, optimiser)
    state.restore(fabric.device)
    first, began = state.step, time.perf_counter()
    loader = fabric.setup_dataloaders(_loader(header, data, schedule, augmentation, first))
    for step, (images, classes, known) in enumerate(loader, start=first):
        _prepare(network, optimiser, schedule, step)
        logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        criterion = schedule.criterion(header.network.classes, step).to(fabric.device)
        loss = criterion(marginal(logits, known), classes)
        fabric.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(network)
        state.step = step + 1
        score = None
        if state.step % schedule.validate_every == 0 or state.step == schedule.steps:
            score = judge(Segmenter(header, copy.deepcopy(average.module), where))
            if score >= state.best:
                state.best = score
                checkpoints.save(output, average.module.state_dict(), _with_figure(header, score, state.step))
        if score is not None or (schedule.keep_every and state.step % schedule.keep_every == 0):
            state.keep()
        if score is not None or state.step % 10 == 0:
            speed = (state.step - first) * schedule.batch / (time.perf_counter() - began)
            report(Report(state.step, schedule.steps, loss.item(), speed, score))
    state.file.unlink(missing_ok=True)
    return state.best


def _network(
    header: Header, encoder: dict[str, torch.Tensor] | None, start: dict[str, torch.Tensor] | None
) -> SegmentationNetwork:
    network = SegmentationNetwork(header.network).to(memory_format=torch.channels_last)
    if encoder is not None:
        start_from(network, encoder)
    if start is not None:
        network.load_state_dict(start)
    return network


def marginal(logits: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Logits `[B, C, X, Y]` with the classes that are not `known` (bool `[B, C]`) merged into the background.

    Where a label tells nothing of a class, its background may be that class: any share between the two is as good, so
    that no loss pulls at it. As the marginal loss of Shi et al., "Marginal loss and exclusion loss for partially
    supervised multi-organ segmentation", Medical Image Analysis 70 (2021).
    """
    if bool(known.all()):
        return logits
    unknown, merged = ~known[:, :, None, None], ~known[:, :, None, None]
    merged[:, 0] = True
    background = logits.masked_fill(~merged, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits.masked_fill(unknown, NEVER)[:, 1:]], dim=1)


def _prepare(network: SegmentationNetwork, optimiser: Optimizer, schedule: Schedule, step: int) -> None:
    """Set the learning rate of a step, and keep or free the encoder's weights and the running means of its norms."""
    for group in optimiser.param_groups:
        group["lr"] = schedule.learning_rate * schedule.rate(step)
    if schedule.freeze:
        network.encoder.requires_grad_(step >= schedule.freeze)
        network.encoder.train(step >= schedule.freeze)


def _loader(
    header: Header, data: TrainingData, schedule: Schedule, augmentation: Augmentation, first: int
) -> DataLoader[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches from step `first` on: the same as those an uninterrupted run would have drawn there."""
    crops = TrainingCrops(
        data.slices,
        data.negatives,
        header.preprocessing,
        items=schedule.steps * schedule.batch,
        seed=schedule.seed,
        negative_share=schedule.negative_share,
        augmentation=augmentation,
        classes=header.network.classes,
    )
    rest = Subset(crops, range(first * schedule.batch, len(crops)))
    return DataLoader(rest, batch_size=schedule.batch, num_workers=schedule.workers)


Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def exponential_average(decay: float) -> Callable[[Tensors, Tensors, torch.Tensor | int], None]:
    """An update for `AveragedModel` that forgets the first, poor weights: its decay rises to `decay` with the steps."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        weight = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        for kept, new in zip(averaged, current, strict=True):
            if kept.is_floating_point():
                kept.lerp_(new.to(kept.dtype), weight)
            else:
                kept.copy_(new)

    return update


def evaluate(segmenter: Segmenter, validation: Sequence[tuple[Case, Sequence[Target]]]) -> float:
    """Mean over cases and targets of the Dice of whole volumes; 0 if there is nothing to score."""
    scores = []
    for case, targets in validation:
        image, label = case.read()
        if label is None:
            continue
        predicted = segmenter.segment(image).voxels
        for target in targets:
            reference = torch.isin(torch.from_numpy(label.voxels.astype("uint8")), torch.tensor(target.ids)).numpy()
            score = dice(predicted == segmenter.header.labels[target.name], reference)
            if score is not None:
                scores.append(score)
    return sum(scores) / len(scores) if scores else 0.0


def _with_figure(header: Header, score: float, step: int) -> Header:
    figures = {"validation_dice": round(score, 4), "step": step}
    return header.model_copy(update={"provenance": header.provenance.model_copy(update={"figures": figures})})


@dataclass
class TrainingState:
    """What a run must remember to go on after it was interrupted."""

    file: Path
    network: nn.Module
    average: AveragedModel
    optimiser: Optimizer
    step: int = 0
    best: float = 0.0

    def restore(self, device: torch.device) -> None:
        """Take over what an interrupted run left, if it left anything."""
        if not self.file.is_file():
            return
        kept = torch.load(self.file, weights_only=True, map_location=device)
        for name in ("network", "average", "optimiser"):
            getattr(self, name).load_state_dict(kept[name])
        self.step, self.best = int(kept["step"]), float(kept["best"])

    def keep(self) -> None:
        """Write the state, atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        buffer = io.BytesIO()
        torch.save({**parts, "step": self.step, "best": self.best}, buffer)
        write_atomically(self.file, buffer.getvalue())
