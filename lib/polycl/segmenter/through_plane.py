"""What a network that sees one slice at a time gets of the third dimension: each slice averaged with its neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

REACH = 2.0
"""Standard deviations to either side that count."""
FLOOR = 1e-6
"""Smaller probabilities become this before their logarithm is taken."""
BLOCK = 16
"""Slices that are averaged at a time."""


def smoothed(parts: Iterable[torch.Tensor], sigma: float) -> Iterator[torch.Tensor]:
    """Logits `[B, C, X, Y]` of slices in order, in parts of any size, to log-probabilities averaged through the plane.

    The average is of probabilities: a slice on which the network is sure cannot outvote all others. Its weights are a
    Gaussian of standard deviation `sigma` slices, cut at `REACH`; at the ends of the volume those that are left.
    No more slices are held than that takes.
    """
    reach = math.ceil(REACH * sigma)
    window: list[torch.Tensor] = []
    first = given = 0  # the slice that window[0] holds, and how many slices were given back
    for part in itertools.chain(parts, (None,)):
        if part is not None:
            window.extend(part.float().softmax(dim=1))
        ready = first + len(window) - (reach if part is not None else 0)
        if ready - given < (BLOCK if part is not None else 1):
            continue
        yield _averaged(window, range(given - first, ready - first), sigma, reach).clamp_min(FLOOR).log()
        given = ready
        dropped = max(0, given - reach - first)
        del window[:dropped]
        first += dropped


def _averaged(window: Sequence[torch.Tensor], wanted: range, sigma: float, reach: int) -> torch.Tensor:
    """Means `[len(wanted), C, X, Y]` over the slices `[C, X, Y]` of `window` around each that is wanted."""
    slices = torch.stack(list(window))
    places = torch.arange(len(slices), device=slices.device)
    apart = (torch.arange(wanted.start, wanted.stop, device=slices.device)[:, None] - places).abs()
    weights = torch.exp(-0.5 * (apart / sigma) ** 2).masked_fill(apart > reach, 0.0)
    return torch.tensordot(weights / weights.sum(dim=1, keepdim=True), slices, dims=1)
