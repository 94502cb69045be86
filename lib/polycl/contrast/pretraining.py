"""Pre-training: triplets or pairs of slices in, an encoder out.

One loop on Lightning Fabric for every method: a CPU, a GPU or several processes run the same code on the same data.
Every few steps the state is written atomically beside the checkpoint; a run that was killed continues from there, and
ends with the weights that it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.contrast.health import Health, Monitor
from polycl.contrast.launch import fabric_for, gathered, share_buffers
from polycl.contrast.local import LocalHead, LocalViews, local_loss
from polycl.contrast.objective import Recipe, objective
from polycl.contrast.resume import State, fingerprint
from polycl.contrast.tracking import OpenTracker, Tracker
from polycl.contrast.views import Batch, Batches, Views
from polycl.devices import Device
from polycl.errors import InputError
from polycl.segmenter.network import ProjectionHead, build_encoder
from polycl.segmenter.transfer import DECODER

REPORT_EVERY = 10
"""Steps between two reports."""


class ContrastiveNetwork(nn.Module):
    """Slices `[B, 1, X, Y]` in [0, 1] to embeddings `[B, E]`; those of `local` to one a pixel, `[L, E', X, Y]`."""

    def __init__(self, header: Header, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = build_encoder(header.network)
        self.head = ProjectionHead(self.encoder.widths[-1], recipe.embedding, recipe.pooling)
        self.local = LocalHead(self.encoder.widths, header.network) if recipe.local else None

    def forward(
        self, slices: torch.Tensor, local: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.local is None or local is None:
            return self.head(self.encoder(slices)), None
        count = len(slices)
        features = self.encoder(torch.cat([slices, local]))  # one batch, so one batch norm
        return self.head([features[-1][:count]]), self.local([level[count:] for level in features])

    def learnt(self) -> dict[str, torch.Tensor]:
        """The encoder's weights, and the decoder's with `decoder.` before them if it was trained, on the CPU."""
        kept = dict(self.encoder.state_dict())
        if self.local is not None:
            decoder = self.local.decoder.state_dict(prefix=DECODER)
            kept |= {name: one for name, one in decoder.items() if not name.startswith(f"{DECODER}head.")}
        return {name: one.detach().cpu().clone(memory_format=torch.contiguous_format) for name, one in kept.items()}


@dataclass(frozen=True)
class Report:
    """What the loop tells about every `REPORT_EVERY` steps; `loss` and the speed are means since the last report.

    `share` is the speed in FLOP/s over the machine's peak, None where that is not known.
    """

    step: int
    steps: int
    loss: float
    slices_per_second: float
    share: float | None
    health: Health

    def figures(self) -> dict[str, float]:
        """What trackers are given."""
        figures = {
            "loss": self.loss,
            "spread": self.health.spread,
            "rank": self.health.rank,
            "slices_per_second": self.slices_per_second,
        }
        return figures if self.share is None else {**figures, "share_of_peak": self.share}


@dataclass(frozen=True)
class Outcome:
    """What was learnt (see `ContrastiveNetwork.learnt`; the same in every process) and the last figures."""

    encoder: dict[str, torch.Tensor]
    figures: dict[str, float]


def pretrain(
    header: Header,
    views: Views,
    output: Path,
    *,
    recipe: Recipe,
    where: Device,
    processes: int | None = None,
    peak: float | None = None,
    trackers: Sequence[OpenTracker] = (),
    report: Callable[[Report], None] = lambda _: None,
) -> Outcome:
    """Train an encoder by contrast and write it to `output`, with its projection head left out.

    Args:
        header: network, preprocessing and provenance of the checkpoint to be; its kind is made `encoder`.
        processes: how many share the work; those that `torchrun` started if None, one otherwise.
        peak: FLOP/s that this machine could do at most.
        trackers, report: opened and called in the first process only.

    Raises InputError where the processes cannot share the batch, another run's state lies beside `output`, or the loss
    is no longer finite.
    """
    fabric = fabric_for(where, processes, recipe.batch)
    fabric.seed_everything(recipe.seed, verbose=False)
    network = ContrastiveNetwork(header, recipe).to(memory_format=torch.channels_last)
    cost = step_cost(header, recipe)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in cost.unreached)
    if fabric.world_size > 1 and where.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    model, optimiser = fabric.setup(network, recipe.optimiser_for(network))
    monitor = Monitor(quiet=not fabric.is_global_zero)
    state = State(
        output.with_suffix(".resume"), fingerprint(header, recipe, views), fabric, network, optimiser, monitor
    )
    state.restore()
    with ExitStack() as opened:
        logs = [opened.enter_context(closing(start())) for start in trackers if fabric.is_global_zero]
        watch = _Watch(fabric, recipe, cost.flop_per_slice * views.count * recipe.batch, peak, logs, report)
        for step, batch in enumerate(_loader(fabric, views, recipe, state.step), start=state.step):
            recipe.prepare(optimiser, step, fabric.global_rank)
            loss, embeddings, chance = _compared(fabric, model, recipe, batch)
            fabric.backward(loss)
            if recipe.clip is not None:
                fabric.clip_gradients(model, optimiser, max_norm=recipe.clip)
            optimiser.step()
            optimiser.zero_grad()
            state.step = step + 1
            watch.add(loss)
            keep = state.step % recipe.save_every == 0
            if keep or state.step % REPORT_EVERY == 0 or state.step == recipe.steps:
                watch.look(state, embeddings, chance)
            if keep:
                state.keep()
    return _finish(fabric, network, header, output, state)


def _compared(
    fabric: Fabric, model: nn.Module, recipe: Recipe, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The loss of a batch of B items with V views, its embeddings `[B, V, E]`, and the loss if all were the same."""
    count = batch["images"].shape[1]
    images = _slices(batch["images"])
    local = LocalViews.of(images[::count]) if recipe.local else None
    embeddings, maps = model(images, None if local is None else torch.cat([local.first, local.second]))
    embeddings = embeddings.float().unflatten(0, (-1, count))
    loss, chance = objective(fabric, recipe, embeddings, batch)
    if local is not None:
        loss = loss + recipe.local * local_loss(maps, local, recipe.temperature)
    return loss, embeddings, float(chance)


def _slices(images: torch.Tensor) -> torch.Tensor:
    """uint8 `[B, V, S, S]` to what the network sees, `[B * V, 1, S, S]` in [0, 1]: one batch, so one batch norm."""
    return (images.flatten(0, 1)[:, None].float() / 255).contiguous(memory_format=torch.channels_last)


def _loader(fabric: Fabric, views: Views, recipe: Recipe, first: int) -> DataLoader[Batch]:
    batches = Batches(first, recipe.steps, recipe.batch, rank=fabric.global_rank, processes=fabric.world_size)
    loader: DataLoader[Batch] = DataLoader(
        views,
        batch_sampler=batches,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # the views come as a batch
        num_workers=recipe.workers,
        pin_memory=fabric.device.type == "cuda",
    )
    return cast(DataLoader[Batch], fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _finish(fabric: Fabric, network: ContrastiveNetwork, header: Header, output: Path, state: State) -> Outcome:
    share_buffers(fabric, network)
    weights = network.learnt()
    if fabric.is_global_zero:
        provenance = header.provenance.model_copy(update={"figures": state.figures})
        checkpoints.save(output, weights, header.model_copy(update={"kind": "encoder", "provenance": provenance}))
        state.file.unlink(missing_ok=True)
    fabric.barrier()
    return Outcome(weights, state.figures)


@dataclass(frozen=True)
class Cost:
    """FLOP (2 x multiply-add) of a training step for each slice of the items, local views counted to the slices.

    `unreached` are parameters that no gradient reaches.
    """

    flop_per_slice: float
    unreached: frozenset[str]


def step_cost(header: Header, recipe: Recipe) -> Cost:
    """Counted on a network without memory behind it, so it costs no time on a large one.

    What no gradient reaches (the ResNet's full-resolution stem, which only a decoder reads) keeps its first weights.
    """
    from torch.utils.flop_counter import FlopCounterMode

    side = header.preprocessing.size
    with torch.device("meta"):
        network = ContrastiveNetwork(header, recipe)
        slices = torch.zeros(2 if recipe.strategy == "simclr" else 3, 1, side, side)
        with FlopCounterMode(display=False) as counter:
            embeddings, maps = network(slices, slices[:2] if recipe.local else None)
            (embeddings.sum() + (0 if maps is None else maps.sum())).backward()
    unreached = frozenset(name for name, one in network.named_parameters() if one.grad is None)
    return Cost(counter.get_total_flops() / len(slices), unreached)


class _Watch:
    """Loss and speed since the last look, and who is told of them."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        flop: float,
        peak: float | None,
        logs: Sequence[Tracker],
        report: Callable[[Report], None],
    ) -> None:
        self.fabric, self.recipe = fabric, recipe
        # processes on a CPU share its peak, each GPU brings its own
        machines = fabric.world_size if fabric.device.type == "cuda" else 1
        self.steps_per_second_at_peak = peak * machines / flop if peak else None
        self.logs, self.report = logs, report
        self._restart()

    def _restart(self) -> None:
        self._loss = torch.zeros((), device=self.fabric.device)
        self._steps = 0
        self._start = time.perf_counter()

    def add(self, loss: torch.Tensor) -> None:
        self._loss += loss.detach()
        self._steps += 1

    def look(self, state: State, embeddings: torch.Tensor, chance: float) -> None:
        """Judge the last step's `embeddings` `[B, V, E]`, tell the figures and leave them in `state`."""
        mean = cast(torch.Tensor, self.fabric.all_reduce(self._loss / self._steps))
        loss = float(mean)  # waits for the device
        rate = self._steps / (time.perf_counter() - self._start)
        if not math.isfinite(loss):
            raise InputError(f"the loss is not finite at step {state.step}; use a smaller learning rate, or fp32")
        seen = gathered(self.fabric, embeddings.detach()).flatten(0, 1)
        now = Report(
            state.step,
            self.recipe.steps,
            loss,
            slices_per_second=rate * self.recipe.batch * embeddings.shape[1],
            share=rate / self.steps_per_second_at_peak if self.steps_per_second_at_peak else None,
            health=state.monitor.look(seen, loss, chance),
        )
        named = {"loss": loss, "spread": now.health.spread, "rank": now.health.rank}
        state.figures = {**{name: round(value, 5) for name, value in named.items()}, "step": now.step}
        if self.fabric.is_global_zero:
            for log in self.logs:
                log.log(now.step, now.figures())
            self.report(now)
        self._restart()
