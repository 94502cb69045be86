"""What runs found of an object, put together into one result for each slice."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable

import numpy as np
import torch
from scipy import ndimage

from polycl.metrics import dice
from polycl.propagate.ending import one_object
from polycl.propagate.engine import LARGEST
from polycl.propagate.runs import Run
from polycl.propagate.sweep import Found

TAPERED, REGROWN = 0.2, 1.5
"""A mask of under this share of the largest area before has all but ended; so many times that is something else."""


def blend(runs: Iterable[tuple[Run, Found]]) -> Found:
    """One result for each slice: of the run that visited it, or of both, each weighing less the nearer its end is.

    Where only one of two runs that visited a slice found the object there, it is weighed against "absent".
    """
    blended: Found = {}
    visits: dict[int, list[tuple[int, torch.Tensor | None]]] = defaultdict(list)
    for run, found in runs:
        for z in run.slices if run.bounded else found:
            visits[z].append((abs(run.end - z), found.get(z)))
    for z, parts in visits.items():
        if len(parts) == 1 and parts[0][1] is not None:
            blended[z] = parts[0][1].float()
            continue
        there = [(weight, part.float().clamp(-LARGEST, LARGEST)) for weight, part in parts if part is not None]
        if there:
            absent = sum(weight for weight, part in parts if part is None)
            total = sum(weight for weight, _ in parts)
            blended[z] = (torch.stack([weight * part for weight, part in there]).sum(dim=0) - absent * LARGEST) / total
    return blended


def agreement(one: Found, other: Found, slices: Collection[int]) -> float:
    """Mean Dice of what two runs found on `slices`; 0 on those where either has nothing, and without any."""
    both = [((one[z] > 0).numpy(), (other[z] > 0).numpy()) for z in slices if z in one and z in other]
    return sum(dice(*masks) or 0.0 for masks in both) / max(1, len(slices))


def bridged(found: Found, stretches: Iterable[tuple[int, int]], longest: int, overlap: float) -> Found:
    """`found` without gaps of up to `longest` slices in `stretches`, from one slice that shows the object to another.

    A gap is filled by what lies on either side of it, each weighing less the further it is, if that is one object going
    on: of the smaller of the two masks the share `overlap` must lie in the other, too.
    """
    filled = dict(found)
    for first, last in stretches:
        there = [z for z in range(first, last + 1) if z in found and bool((found[z] > 0).any())]
        for before, after in itertools.pairwise(there):
            low, high = found[before].float(), found[after].float()
            if 1 < after - before <= longest + 1 and one_object((low > 0).numpy(), (high > 0).numpy(), overlap):
                gap = range(before + 1, after)
                filled |= {z: torch.lerp(low, high, (z - before) / (after - before)) for z in gap}
    return filled


def keep_connected(found: Found, seeds: Collection[int], reach: int) -> Found:
    """`found` without what is not connected, in 3D, to the object on one of the slices `seeds`.

    Pixels up to `reach` apart in the plane count as connected: cross-sections of an oblique tube may not touch.
    """
    if not found:
        return found
    low, high = min(found), max(found)
    side = next(iter(found.values())).shape[-1]
    inside = np.zeros((high - low + 1, side, side), dtype=bool)
    for z, logits in found.items():
        inside[z - low] = (logits > 0).numpy()
    wide = ndimage.binary_dilation(inside, np.ones((1, 3, 3), bool), iterations=reach) if reach else inside
    components, count = ndimage.label(wide, np.ones((3, 3, 3), bool))
    kept = np.zeros(count + 1, dtype=bool)
    for z in seeds:
        if z in found:
            kept[components[z - low][inside[z - low]]] = True
    if kept[1:].all():
        return found
    result: Found = {}
    for z, logits in found.items():
        dropped = inside[z - low] & ~kept[components[z - low]]
        result[z] = logits.masked_fill(torch.from_numpy(dropped), -LARGEST) if dropped.any() else logits
    return result


def without_regrown(found: Found, first: int, last: int, steps: Collection[int] = (-1, 1)) -> Found:
    """`found` without what grows again where the object had all but ended: that is something which it touches.

    Looked for below the slice `first` (step -1) and above `last` (1), the outermost that are annotated, if `steps` has
    it. What is found beyond the other one counts for nothing; what is between them does.
    """
    areas, kept = {z: int((logits > 0).sum()) for z, logits in found.items()}, dict(found)
    between = max((areas.get(z, 0) for z in range(first, last + 1)), default=0)
    for step in steps:
        largest, least, ended = between, between, None
        start = first if step < 0 else last
        for z in itertools.takewhile(lambda z: areas.get(z, 0) > 0, itertools.count(start + step, step)):
            largest = max(largest, areas[z])
            if areas[z] <= min(least, TAPERED * largest):
                least, ended = areas[z], z
            elif ended is not None and areas[z] > REGROWN * least:
                kept = {other: logits for other, logits in kept.items() if (other - ended) * step <= 0}
                break
    return kept
