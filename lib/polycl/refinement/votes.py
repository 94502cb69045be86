"""What SAM and the coarse mask say of a label together, over all slices.

SAM is asked slice by slice, and its outlines jump from one slice to the next. So what it says is averaged through the
plane, and must outvote the coarse mask, the more the further from the coarse outline. How much that counts goes by how
even the coarse mask is through the plane, compared with SAM's: a model that learned much is even, one that learned
from few slices is as ragged as SAM itself. No reference is needed to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.components import touching
from polycl.metrics import dice
from polycl.refinement.parameters import RefineParameters
from polycl.refinement.pieces import EIGHT_NEIGHBOURS, Accepted, edge_distance
from polycl.sam.regions import Region

Mask = NDArray[np.bool_]
Odds = NDArray[np.float32]
SURE = np.float32(8.0)
"""Log-odds beyond which nobody is surer."""
RAGGED = 0.4
"""From this share of SAM's raggedness on, a coarse mask counts nothing more beside SAM."""
SWAY = 0.02
"""Of what changes from slice to slice, more than this jumps forth and back in masks of few labels, less in others."""
STEADY = 0.88
"""Dice of a mask with itself one slice on: below, it is too thin or bent to tell jumps from its course."""
TRUNCATE = 3.0
"""Standard deviations at which the average through the plane ends."""


def hold_of(how: RefineParameters, coarse: Mapping[int, Mask], accepted: Mapping[int, Sequence[Accepted]]) -> float:
    """Log-odds that each mm from the edge of the coarse mask counts for it."""
    return how.hold * max(0.0, 1 - raggedness(coarse, accepted) / RAGGED)


def tally(
    coarse: Mapping[int, Mask],
    current: Mapping[int, Mask],
    accepted: Mapping[int, Sequence[Accepted]],
    spacing: tuple[float, float, float],
    hold: float,
    how: RefineParameters,
) -> Iterator[tuple[int, Odds]]:
    """Log-odds [rows, columns] of each slice with accepted pieces, infinite where nobody was asked.

    Args:
        coarse: the label's mask [rows, columns] on each slice that holds some of it.
        current: what SAM was last asked about there: the same, or what came of an earlier pass.
        accepted: what SAM said of pieces, by slice.
        spacing: mm between rows, columns and slices.
        hold: see `hold_of`.
        how: the parameters.
    """
    averaged = _averaging(current, accepted, how.through_plane / spacing[2])
    for z in sorted(accepted):
        from_edge = edge_distance(coarse[z], spacing[:2]).astype(np.float32)
        asked = _asked(current[z], accepted[z])
        if how.band is not None:
            asked &= from_edge <= how.band
        odds = averaged(z) + np.float32(hold) * np.where(coarse[z], from_edge, -from_edge)
        odds[~asked] = np.where(current[z], np.float32(np.inf), np.float32(-np.inf))[~asked]
        odds[(odds > 0) & ~touching(odds > 0, current[z])] = -SURE
        yield z, odds


def raggedness(coarse: Mapping[int, Mask], accepted: Mapping[int, Sequence[Accepted]]) -> float:
    """How often the coarse mask jumps from slice to slice, as a share of how often SAM's does.

    Over accepted pieces with accepted ones on both slices beside them; 0 where there are none, or nothing jumps.
    """
    theirs = _jumps({z: _drawn(coarse[z], [(one.region, one.before) for one in some]) for z, some in accepted.items()})
    sams = _jumps({z: _drawn(coarse[z], [(one.region, one.mask) for one in some]) for z, some in accepted.items()})
    if not sams:
        return math.inf if theirs else 0.0
    return theirs / sams


def is_ragged(mask: Mask, spacing: tuple[float, float, float], least_mm: float) -> bool:
    """Whether the outline of a mask [X, Y, Z] jumps forth and back from slice to slice, as one of few labels does.

    By `least_mm` or more, on average, and by much of what it changes by anyway: on thick slices the best outline of a
    round organ jumps some. What is another on each slice, as vertebrae are, is not ragged.
    """
    return (
        jump_mm(mask, spacing) > least_mm
        and share_of_change(mask) > SWAY
        and (dice(mask[:, :, :-1], mask[:, :, 1:]) or 0.0) > STEADY
    )


def jump_mm(mask: Mask, spacing: tuple[float, float, float]) -> float:
    """How far the outline of a mask [X, Y, Z] jumps forth and back from slice to slice, on average.

    The area that is other on a slice than on both beside it, for each mm of outline.
    """
    slices = {z: mask[:, :, z] for z in np.flatnonzero(mask.any(axis=(0, 1))).tolist()}
    outline = sum(
        int(np.count_nonzero(one & ~ndimage.binary_erosion(one, EIGHT_NEIGHBOURS))) for one in slices.values()
    )
    return _jumps(slices) / max(1, outline) * float(np.sqrt(spacing[0] * spacing[1]))


def share_of_change(mask: Mask) -> float:
    """Pixels that jump forth and back, as a share of those that differ between the slices below and above."""
    present = mask.any(axis=(0, 1))
    inner = np.flatnonzero(present[:-2] & present[1:-1] & present[2:]) + 1
    below, here, above = (mask[:, :, inner + step] for step in (-1, 0, 1))
    changed = below != above
    return int(np.count_nonzero(~changed & (here != above))) / max(1, int(np.count_nonzero(changed)))


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
    reach = min(math.ceil(TRUNCATE * deviation), max(current) - min(current))

    @lru_cache(maxsize=2 * reach + 1)
    def said(z: int) -> Odds:
        return _said(current[z], accepted.get(z, ()))

    def averaged(z: int) -> Odds:
        shares = {
            other: math.exp(-0.5 * ((other - z) / deviation) ** 2) if other != z else 1.0
            for other in range(z - reach, z + reach + 1)
            if other in current
        }
        whole = sum(shares.values())
        total = np.zeros_like(said(z))
        for other, share in shares.items():
            total += np.float32(share / whole) * said(other)
        return total

    return averaged


def _said(current: Mask, accepted: Sequence[Accepted]) -> Odds:
    """Log-odds [rows, columns] of a slice by SAM; as sure as can be of the mask as it is where SAM has no say."""
    odds = np.where(current, SURE, -SURE)
    asked = np.zeros_like(current)
    for one in accepted:
        part, had, strength = odds[one.region], asked[one.region], np.clip(one.strength, -SURE, SURE)
        free = _free(current, one)
        part[free] = np.where(had, np.maximum(part, strength), strength)[free]
        had |= free
    return odds


def _asked(current: Mask, accepted: Sequence[Accepted]) -> Mask:
    """Where SAM has a say on a slice."""
    return _drawn(current, [(one.region, _free(current, one)) for one in accepted])


def _free(current: Mask, one: Accepted) -> Mask:
    """Where in its region a piece may be: other pieces stay."""
    return one.before | ~current[one.region]
