"""Training of a corrector: patients in, the averaged weights that follow held-out ones best out.

Every few steps the state is written atomically beside the checkpoint; a run that was killed goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from monai.losses import DiceCELoss
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset

from polycl import checkpoints
from polycl.corrector.examples import Examples, Patient
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.corrector.network import CorrectorNetwork
from polycl.devices import Device
from polycl.errors import InputError
from polycl.metrics import dice
from polycl.segmenter.inference import keep_largest
from polycl.segmenter.training import MIXED, TrainingState, exponential_average, warm_cosine

REPORT_EVERY = 20
ANNOTATED = ((0.5,), (0.25, 0.75))
"""Where slices are annotated of those that are held out, in shares of a structure's length."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; `size` is the side of an example, voxels, a multiple of 16."""

    steps: int = 6000
    batch: int = 2
    size: int = 48
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    warm_up: int = 100
    clip_norm: float = 3.0
    average: float = 0.998
    validate_every: int = 500
    keep_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """The mean loss since the last report; `dice` is the validation figure where one was just taken."""

    step: int
    steps: int
    loss: float
    seconds: float
    dice: float | None = None


def train(
    header: CorrectorHeader,
    patients: Sequence[Patient],
    held_out: Sequence[Patient],
    output: Path,
    *,
    recipe: Recipe,
    where: Device,
    start: dict[str, torch.Tensor] | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> float:
    """Train a corrector and keep in `output` the weights with the best `score` on `held_out`, which it returns.

    Without `held_out` the last weights are kept. `start` holds weights to begin with. Raises InputError if the loss is
    no longer finite.
    """
    fabric = Fabric(accelerator=where.device.type, devices=1, precision=MIXED[where.precision])
    fabric.seed_everything(recipe.seed, verbose=False)
    network = CorrectorNetwork(header)
    if start is not None:
        network.load_state_dict(start)
    network = network.to(memory_format=torch.channels_last_3d)
    weights = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    model, optimiser = fabric.setup(network, weights)
    average = AveragedModel(network, multi_avg_fn=exponential_average(recipe.average))
    state = TrainingState(output.with_suffix(".resume"), network, average, optimiser)
    state.restore(fabric.device)
    criterion, losses, began = DiceCELoss(sigmoid=True), [], time.perf_counter()
    for step, (seen, masks) in enumerate(_loader(patients, header, recipe, state.step), start=state.step):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm_cosine(step, recipe.steps, recipe.warm_up)
        loss = criterion(model(seen.to(fabric.device)).float(), masks.to(fabric.device))
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        state.step, found = step + 1, None
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is not finite at step {state.step}; use a smaller learning rate, or fp32")
        if state.step % recipe.validate_every == 0 or state.step == recipe.steps:
            found = score(_as_it_is(header, average, where), held_out)
            if found >= state.best:
                state.best = found
                _save(output, average.module, header, found, state.step)
        if found is not None or state.step % recipe.keep_every == 0:
            state.keep()
        if found is not None or state.step % REPORT_EVERY == 0:
            seconds = (time.perf_counter() - began) / len(losses)
            report(Report(state.step, recipe.steps, sum(losses) / len(losses), seconds, found))
            losses, began = [], time.perf_counter()
    state.file.unlink(missing_ok=True)
    return state.best


def _as_it_is(header: CorrectorHeader, average: AveragedModel, where: Device) -> Corrector:
    """A corrector with a copy of the averaged weights."""
    network = CorrectorNetwork(header)
    network.load_state_dict(average.module.state_dict())
    return Corrector(header, network, where)


def score(corrector: Corrector, patients: Sequence[Patient]) -> float:
    """Mean Dice of structures in 3D, each with its middle slice annotated, and with two; 0 without patients."""
    scores = []
    for patient in patients:
        for label, mask in patient.masks.items():
            there = np.flatnonzero(mask.any(axis=(0, 1)))
            for shares in ANNOTATED:
                slices = {int(z): mask[:, :, z] for z in there[[int(len(there) * share) for share in shares]]}
                found = corrector.corrected(patient.image, patient.found[label], slices) > 0
                for z, drawn in slices.items():
                    found[:, :, z] = drawn
                kept = found.astype(np.uint8)
                keep_largest(kept, 1, 1)
                scores.append(dice(kept > 0, mask) or 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def _loader(
    patients: Sequence[Patient], header: CorrectorHeader, recipe: Recipe, first: int
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Batches from step `first` on: those that an uninterrupted run would have had."""
    items = recipe.steps * recipe.batch
    examples = Examples(patients, header, size=recipe.size, items=items, seed=recipe.seed)
    return DataLoader(Subset(examples, range(first * recipe.batch, items)), batch_size=recipe.batch)


def _save(output: Path, network: torch.nn.Module, header: CorrectorHeader, found: float, step: int) -> None:
    figures = {"validation_dice": round(found, 4), "step": step}
    provenance = header.provenance.model_copy(update={"figures": figures})
    halves = {name: one.half() for name, one in network.state_dict().items()}
    checkpoints.save(output, halves, header.model_copy(update={"provenance": provenance}))
