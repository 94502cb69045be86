"""Is the network learning, or has it collapsed? Measures on a batch of embeddings, and a warning from them.

A collapsed network gives every slice nearly the same embedding; its loss stays at what guessing gives. It happens at
once with instance norm before average pooling: the norm sets each channel's mean, and the pooling reads only that mean.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from polycl.contrast.loss import unit

logger = logging.getLogger(__name__)

SPREAD_BOUND = 0.1
"""Collapsed below this share of the largest spread there can be."""
CHANCE_MARGIN = 0.01
"""A loss within this share of what guessing gives has learnt nothing."""
PATIENCE = 10
"""So many looks at the loss before it may count as stuck."""
DECAY = 0.8
"""Weight of the past in the smoothed loss."""


def spread(embeddings: torch.Tensor) -> float:
    """Standard deviation over the batch of embeddings `[B, E]` of length 1, the mean over their numbers.

    0 when all are the same; at most `1 / sqrt(E)`, when they are even over the sphere.
    """
    return float(unit(embeddings.detach().float()).std(dim=0, correction=0).mean())


def effective_rank(embeddings: torch.Tensor) -> float:
    """How many directions embeddings `[B, E]` of length 1 fill, between 1 and min(B, E).

    The exponential of the entropy of the singular values as shares of their sum: Roy and Vetterli, EUSIPCO 2007; as
    a measure of learnt representations: Garrido, Balestriero, Najman and LeCun 2023, arXiv 2210.02885.
    """
    values = torch.linalg.svdvals(unit(embeddings.detach().float()))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


@dataclass(frozen=True)
class Health:
    """What a look at the embeddings found; `warning` is a sentence when they have collapsed."""

    spread: float
    rank: float
    warning: str | None = None

    @property
    def collapsed(self) -> bool:
        return self.warning is not None


@dataclass
class Monitor:
    """Looks at loss and embeddings from time to time; logs when they collapse, and when they recover.

    `smoothed` and `looks` are its memory, for a run that is resumed. A `quiet` one does not log.
    """

    quiet: bool = False
    smoothed: float = 0.0
    looks: int = 0
    _warned: bool = False

    def look(self, embeddings: torch.Tensor, loss: float, chance: float) -> Health:
        """Judge a batch.

        Args:
            embeddings: `[B, E]`, B at least 2.
            loss: the loss now, the mean over the steps since the last look.
            chance: the loss of a network that gives every slice the same embedding, ln 2 for one negative.
        """
        share = loss / chance if chance > 0 else math.inf
        self.smoothed = share if not self.looks else DECAY * self.smoothed + (1 - DECAY) * share
        self.looks += 1
        width = spread(embeddings)
        health = Health(width, effective_rank(embeddings), self._warning(width, embeddings.shape[1], chance))
        if health.collapsed != self._warned:
            if not self.quiet:
                logger.warning("%s", health.warning or "the embeddings have recovered from their collapse")
            self._warned = health.collapsed
        return health

    def _warning(self, width: float, size: int, chance: float) -> str | None:
        advice = "try --norm batch, --pool max or grid, or a smaller learning rate"
        if not width >= SPREAD_BOUND / math.sqrt(size):
            return f"collapse: embeddings differ by only {width:.4f} (1/sqrt({size}) is healthy); {advice}"
        if self.looks >= PATIENCE and abs(self.smoothed - 1) < CHANCE_MARGIN:
            return f"no learning: the loss stays at {chance:.3f}, what guessing gives; {advice}"
        return None
