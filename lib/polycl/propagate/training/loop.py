"""Training of the small SAM 2: clips in, the averaged weights with the best validation Dice out.

One loop on Lightning Fabric. Every few steps the state is written atomically beside the checkpoint; a run that was
killed goes on from there, and ends with the weights that it would have had.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Subset

from polycl import checkpoints
from polycl.checkpoints import Provenance
from polycl.devices import Device
from polycl.errors import InputError
from polycl.files import write_atomically
from polycl.propagate.architecture import build
from polycl.propagate.header import Sam2Header
from polycl.propagate.training.clips import ClipBatch, Clips
from polycl.propagate.training.loss import clip_loss
from polycl.propagate.training.recipe import Recipe
from polycl.propagate.training.start import look_back_to_the_same_place, resize
from polycl.propagate.training.store import ObjectStore
from polycl.propagate.training.unroll import Unroll
from polycl.propagate.training.validation import Validation
from polycl.segmenter.training import MIXED, exponential_average

REPORT_EVERY = 10
SAM_PARTS = ("sam_mask_decoder.transformer", "sam_mask_decoder.output", "sam_mask_decoder.iou", "sam_prompt_encoder")


@dataclass(frozen=True)
class Report:
    """Means since the last report; `validation` where that was just taken."""

    step: int
    steps: int
    loss: float
    dice: float
    seconds: float
    parts: dict[str, float]
    validation: float | None = None


def train(
    store: ObjectStore,
    held_out: ObjectStore | None,
    output: Path,
    *,
    recipe: Recipe,
    where: Device,
    provenance: Provenance,
    start: dict[str, torch.Tensor] | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> float:
    """Train a network and keep in `output` the averaged weights that follow the objects of `held_out` best.

    Without `held_out`, the last weights are kept. `start` holds weights to begin with, None for new ones; it may be
    empty where the run goes on from its own state. Returns the best Dice, of frames of the last size.

    Raises InputError where another run's state lies beside `output`, or the loss is no longer finite.
    """
    fabric = Fabric(accelerator=where.device.type, devices=1, precision=MIXED[where.precision])
    fabric.seed_everything(recipe.seed, verbose=False)
    network = build(recipe.network).to(memory_format=torch.channels_last)
    if start:
        network.load_state_dict(start)
    elif start is None:
        look_back_to_the_same_place(network)
    average = AveragedModel(network, multi_avg_fn=exponential_average(recipe.average), use_buffers=True)
    unroll = Unroll(network.train(), previous_mask=recipe.network.previous_mask)
    optimiser: Any = fabric.setup_optimizers(torch.optim.AdamW(_groups(network, recipe, started=start is not None)))
    run = _Run(output, recipe, store, network, average, optimiser)
    run.restore(fabric.device)
    watch = _Watch(recipe, report)
    for step, clips in enumerate(_loader(store, recipe, run.step), start=run.step):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step) * group["share"]
        resize(network, recipe.stage(step).size)
        with fabric.autocast():
            steps = unroll(clips.to(fabric.device))
        loss = clip_loss(steps, clips.to(fabric.device), recipe.loss)
        fabric.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(network)
        run.step = step + 1
        watch.add(loss.total, loss.dice, loss.parts)
        score = None
        stage = recipe.stage(step)
        due = run.step % recipe.validate_every == 0 and stage.length > 1
        if due or run.step == recipe.steps:
            score = _score(held_out, average.module, recipe, stage.size, where)
            if run.beats(score, stage.size):
                _save(output, average.module, recipe, provenance, score, run.step)
        if score is not None or run.step % recipe.keep_every == 0:
            run.keep()
        watch.look(run.step, score)
    run.file.unlink(missing_ok=True)
    return run.best


def _score(held_out: ObjectStore | None, network: torch.nn.Module, recipe: Recipe, size: int, where: Device) -> float:
    """Validation Dice with frames of `size` pixels a side; 0 without scans to validate by."""
    if held_out is None:
        return 0.0
    return Validation(held_out, recipe.view(size)).score(network, recipe.network.at(size), where)


def _groups(network: torch.nn.Module, recipe: Recipe, *, started: bool) -> list[dict[str, Any]]:
    """Weights decay; biases and norms do not. What SAM learned on a billion masks moves gently where it is there."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, one in network.named_parameters():
        decay = recipe.weight_decay if one.ndim >= 2 else 0.0
        share = recipe.gentle if started and name.startswith(SAM_PARTS) else 1.0
        groups.setdefault((decay, share), []).append(one)
    return [{"params": ones, "weight_decay": decay, "share": share} for (decay, share), ones in groups.items()]


def _loader(store: ObjectStore, recipe: Recipe, first: int) -> DataLoader[ClipBatch]:
    """Batches from step `first` on: those an uninterrupted run would have had."""
    stages = [
        Clips(
            store, recipe.rules(one), recipe.view(one.size), batches=one.steps, batch=one.batch, seed=(recipe.seed, n)
        )
        for n, one in enumerate(recipe.stages)
    ]
    whole: ConcatDataset[ClipBatch] = ConcatDataset(stages)
    rest = Subset(whole, range(first, recipe.steps))
    return DataLoader(rest, batch_size=None, num_workers=recipe.workers)


def _save(
    output: Path, network: torch.nn.Module, recipe: Recipe, provenance: Provenance, score: float, step: int
) -> None:
    figures = {"validation_dice": round(score, 4), "step": step}
    header = Sam2Header(
        network=recipe.network,
        frames=recipe.frames,
        provenance=provenance.model_copy(update={"figures": figures}),
    )
    halves = {name: one.half() if one.is_floating_point() else one for name, one in network.state_dict().items()}
    checkpoints.save(output, halves, header)


@dataclass
class _Run:
    """What a run must remember to go on after it was interrupted."""

    output: Path
    recipe: Recipe
    store: ObjectStore
    network: torch.nn.Module
    average: AveragedModel
    optimiser: Any
    step: int = 0
    best: float = 0.0
    size: int = 0

    def beats(self, score: float, size: int) -> bool:
        """Whether a score is the best so far at this size of frames, and note it. Larger frames start anew."""
        if size == self.size and score < self.best:
            return False
        self.size, self.best = size, score
        return True

    @property
    def file(self) -> Path:
        return self.output.with_suffix(".resume")

    @property
    def mark(self) -> str:
        """The same for two runs that would give the same weights."""
        made_of = [self.recipe.decides(), [scan.key for scan in self.store.scans]]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()

    def restore(self, device: torch.device) -> None:
        """Take over what an interrupted run left, if it left anything."""
        if not self.file.is_file():
            return
        try:
            kept = torch.load(self.file, weights_only=True, map_location=device)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(f"{self.file} is damaged; remove it to start anew") from None
        if kept.get("mark") != self.mark:
            raise InputError(f"{self.file.name} was left by a run with other options or data; give those or remove it")
        for name in ("network", "average", "optimiser"):
            getattr(self, name).load_state_dict(kept[name])
        self.step, self.best, self.size = int(kept["step"]), float(kept["best"]), int(kept["size"])

    def keep(self) -> None:
        """Write the state, atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        buffer = io.BytesIO()
        torch.save({**parts, "mark": self.mark, "step": self.step, "best": self.best, "size": self.size}, buffer)
        write_atomically(self.file, buffer.getvalue())


class _Watch:
    """Figures since the last report."""

    def __init__(self, recipe: Recipe, report: Callable[[Report], None]) -> None:
        self.recipe, self.report = recipe, report
        self._restart()

    def _restart(self) -> None:
        self._figures: list[dict[str, torch.Tensor]] = []
        self._start = time.perf_counter()

    def add(self, loss: torch.Tensor, dice: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        self._figures.append({"loss": loss.detach(), "overlap": dice, **parts})

    def look(self, step: int, validation: float | None) -> None:
        """Report every few steps, and after a validation; InputError if the loss is not finite."""
        if validation is None and step % REPORT_EVERY:
            return
        means = {name: float(torch.stack([one[name] for one in self._figures]).mean()) for name in self._figures[0]}
        if not math.isfinite(means["loss"]):
            raise InputError(f"the loss is not finite at step {step}; use a smaller learning rate, or fp32")
        seconds = (time.perf_counter() - self._start) / len(self._figures)
        loss, dice = means.pop("loss"), means.pop("overlap")
        self.report(Report(step, self.recipe.steps, loss, dice, seconds, means, validation))
        self._restart()
