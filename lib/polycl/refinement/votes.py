"""What SAM and the coarse mask say of a label together, over all slices.

SAM is asked slice by slice, and its outlines jump from one slice to the next. So what it says is averaged through the
plane, and must outvote the coarse mask, the more the further from the coarse outline. How much that counts goes by how
even the coarse mask is through the plane, compared with SAM's: a model that learned much is even, one that learned
from few slices is as ragged as SAM itself. No reference is needed to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from polycl.refinement.parameters import RefineParameters
from polycl.refinement.pieces import Accepted, Spacing, edge_distance, touching
from polycl.sam.regions import Region

Mask = NDArray[np.bool_]
Odds = NDArray[np.float32]
SURE = 8.0
"""Log-odds beyond which nobody is surer."""
RAGGED = 0.4
"""From this share of SAM's raggedness on, a coarse mask counts nothing more beside SAM."""
TRUNCATE = 3.0
"""Standard deviations at which the average through the plane ends."""


def weight(how: RefineParameters, coarse: Mapping[int, Mask], accepted: Mapping[int, Sequence[Accepted]]) -> float:
    """Log-odds that each mm from the edge of the coarse mask counts for it."""
    return how.hold * max(0.0, 1 - raggedness(coarse, accepted) / RAGGED)


def count(
    coarse: Mapping[int, Mask],
    current: Mapping[int, Mask],
    accepted: Mapping[int, Sequence[Accepted]],
    spacing: tuple[float, float, float],
    hold: float,
    how: RefineParameters,
) -> dict[int, Odds]:
    """Log-odds [rows, columns] of each slice with accepted pieces.

    Args:
        coarse: the label's mask [rows, columns] on each slice that holds some of it.
        current: the same after the passes so far, which SAM was asked about.
        accepted: what SAM said of pieces, by slice.
        spacing: mm between rows, columns and slices.
        hold: see `weight`.
        how: the parameters.
    """
    averaged = _averaging(current, accepted, how.through_plane / spacing[2])
    return {z: _odds(coarse[z], current[z], some, averaged(z), spacing[:2], hold, how) for z, some in accepted.items()}


def _odds(
    coarse: Mask,
    current: Mask,
    accepted: Sequence[Accepted],
    averaged: Odds,
    spacing: Spacing,
    hold: float,
    how: RefineParameters,
) -> Odds:
    from_edge = edge_distance(coarse, spacing)
    asked = _said(current, accepted)[1]
    if how.band is not None:
        asked &= from_edge <= how.band
    odds = averaged + hold * np.where(coarse, from_edge, -from_edge).astype(np.float32)
    odds[~asked] = np.where(current, np.float32(SURE), np.float32(-SURE))[~asked]
    odds[(odds > 0) & ~touching(odds > 0, current)] = -SURE
    return odds


def raggedness(coarse: Mapping[int, Mask], accepted: Mapping[int, Sequence[Accepted]]) -> float:
    """How often the coarse mask jumps from slice to slice, as a share of how often SAM's does.

    Over accepted pieces with accepted ones on both slices beside them; 0 where there are none, or nothing jumps.
    """
    theirs = _jumps({z: _drawn(coarse[z], [(one.region, one.before) for one in some]) for z, some in accepted.items()})
    sams = _jumps({z: _drawn(coarse[z], [(one.region, one.mask) for one in some]) for z, some in accepted.items()})
    if not sams:
        return math.inf if theirs else 0.0
    return theirs / sams


def _jumps(masks: Mapping[int, Mask]) -> int:
    """Pixels that differ from the slices below and above, where these agree."""
    return sum(
        int(np.count_nonzero((masks[z - 1] == masks[z + 1]) & (here != masks[z + 1])))
        for z, here in masks.items()
        if z - 1 in masks and z + 1 in masks
    )


def _drawn(like: Mask, parts: Iterable[tuple[Region, Mask]]) -> Mask:
    mask = np.zeros_like(like)
    for region, part in parts:
        mask[region] |= part
    return mask


def _averaging(
    current: Mapping[int, Mask], accepted: Mapping[int, Sequence[Accepted]], deviation: float
) -> Callable[[int], Odds]:
    """Log-odds [rows, columns] of a slice, averaged over those beside it with a Gaussian of `deviation` slices.

    Slices that hold none of the label say nothing: where it ends is not for SAM to say.
    """
    reach = math.ceil(TRUNCATE * deviation)
    shares = {step: math.exp(-0.5 * (step / deviation) ** 2) if step else 1.0 for step in range(-reach, reach + 1)}

    @lru_cache(maxsize=2 * reach + 1)
    def said(z: int) -> Odds:
        return _said(current[z], accepted.get(z, ()))[0]

    def averaged(z: int) -> Odds:
        heard = {z + step: share for step, share in shares.items() if z + step in current}
        total = np.zeros_like(said(z))
        for other, share in heard.items():
            total += np.float32(share / sum(heard.values())) * said(other)
        return total

    return averaged


def _said(coarse: Mask, accepted: Sequence[Accepted]) -> tuple[Odds, Mask]:
    """Log-odds [rows, columns] of a slice by SAM, by the coarse mask where SAM has no say, and where SAM has one."""
    odds = np.where(coarse, np.float32(SURE), np.float32(-SURE))
    asked = np.zeros_like(coarse)
    for one in accepted:
        part, had, strength = odds[one.region], asked[one.region], np.clip(one.strength, -SURE, SURE)
        free = one.before | ~coarse[one.region]  # pieces that were kept stay
        part[free] = np.where(had, np.maximum(part, strength), strength)[free]
        had |= free
    return odds, asked
