"""Which norm and pooling let embeddings collapse: a short pre-training with each, and what its monitor saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.contrast.objective import Recipe
from polycl.contrast.pretraining import Report, pretrain
from polycl.contrast.views import Views
from polycl.devices import Device
from polycl.segmenter.network import Pooling

Norm = Literal["instance", "batch"]


@dataclass(frozen=True)
class Outcome:
    """The last figures of one run, and the first step at which it was called collapsed, if it was at the end.

    `spread` is a share of the largest there can be.
    """

    norm: Norm
    pooling: Pooling
    loss: float
    spread: float
    rank: float
    collapsed_at: int | None


def compare(
    preprocessing: Preprocessing,
    views: Views,
    recipe: Recipe,
    where: Device,
    scratch: Path,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Pre-train with each norm and pooling on the same examples; files that are made on the way go into `scratch`."""
    choices = list(product(get_args(Norm), get_args(Pooling)))
    outcomes = []
    for done, (norm, pooling) in enumerate(choices):
        told(done, len(choices))
        header = Header(network=NetworkConfig(norm=norm), preprocessing=preprocessing)
        seen: list[Report] = []
        file = scratch / f"{norm}-{pooling}.safetensors"
        pretrain(header, views, file, recipe=replace(recipe, pooling=pooling), where=where, report=seen.append)
        outcomes.append(outcome(norm, pooling, seen, recipe.embedding))
    told(len(choices), len(choices))
    return outcomes


def outcome(norm: Norm, pooling: Pooling, seen: Sequence[Report], embedding: int) -> Outcome:
    """What the reports of a run, in order, come to."""
    last = seen[-1]
    sound = [one.step for one in seen if not one.health.collapsed]
    since = next((one.step for one in seen if not sound or one.step > sound[-1]), None)
    return Outcome(norm, pooling, last.loss, last.health.spread * math.sqrt(embedding), last.health.rank, since)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row a run, as Markdown."""
    lines = ["| norm | pooling | loss | spread | rank | collapsed |", "|---|---|---|---|---|---|"]
    for one in outcomes:
        end = f"from step {one.collapsed_at} on" if one.collapsed_at is not None else "no"
        lines.append(f"| {one.norm} | {one.pooling} | {one.loss:.3f} | {one.spread:.3f} | {one.rank:.1f} | {end} |")
    return "\n".join(lines)
