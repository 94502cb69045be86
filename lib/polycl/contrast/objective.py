"""How a run learns: method, loss and schedule, and the loss of one step under them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from polycl.contrast.launch import gathered
from polycl.contrast.loss import nt_xent, polycl_batch_loss, polycl_loss, qualifying_negatives
from polycl.contrast.views import Batch
from polycl.segmenter.network import Pooling
from polycl.segmenter.training import warm_cosine

Method = Literal["scan", "organ", "mixed", "simclr"]
"""PolyCL's strategies to select examples, and SimCLR."""


@dataclass(frozen=True)
class Recipe:
    """How examples are compared, and how long and how fast to train.

    Attributes:
        negatives: `one`, the drawn one, or `batch`, all slices of the batch that the strategy allows. SimCLR has always
            the whole batch.
        local: weight of the loss that compares places within a slice (`polycl.contrast.local`), which also trains the
            decoder; 0 for none.
        batch: items a step, over all processes together.
        clip: largest norm of the gradient, if there is to be one.
    """

    strategy: Method
    negatives: Literal["one", "batch"] = "one"
    temperature: float = 0.1
    pooling: Pooling = "average"
    embedding: int = 256
    local: float = 0.0
    steps: int = 2000
    batch: int = 32
    optimiser: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warm_up: int = 50
    clip: float | None = None
    save_every: int = 200
    seed: int = 0
    workers: int = 0

    def optimiser_for(self, network: nn.Module) -> torch.optim.Optimizer:
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def prepare(self, optimiser: torch.optim.Optimizer, step: int, rank: int) -> None:
        """Learning rate and random state of a step, the same after a resume."""
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate * warm_cosine(step, self.steps, self.warm_up)
        torch.manual_seed(hash((self.seed, step, rank)) % 2**63)


def objective(
    fabric: Fabric, recipe: Recipe, embeddings: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """The loss of this process's embeddings `[B, V, E]`, and what it is when all embeddings are the same.

    Where negatives come from the batch, embeddings of all processes are gathered, gradients included, and each computes
    the loss of the whole batch: the mean of their gradients is then that of one process with all items.
    """
    if recipe.strategy != "simclr" and recipe.negatives == "one":
        anchor, positive, negative = embeddings.unbind(1)
        return polycl_loss(anchor, positive, negative, recipe.temperature), math.log(2)
    embeddings = gathered(fabric, embeddings, gradients=True)
    if recipe.strategy == "simclr":
        first, second = embeddings.unbind(1)
        return nt_xent(first, second, recipe.temperature), math.log(max(1, 2 * len(first) - 1))
    scan, present = gathered(fabric, batch["scan"]), gathered(fabric, batch["present"])
    allowed = qualifying_negatives(recipe.strategy, scan[:, 0], present[:, 0], scan.flatten(), present.flatten())
    loss = polycl_batch_loss(embeddings[:, 0], embeddings[:, 1], embeddings.flatten(0, 1), allowed, recipe.temperature)
    return loss, allowed.sum(dim=1).add(1).log().mean()
