"""Few labels: some of the labelled slices or scans, drawn by a seed.

A larger draw of the same seed holds the smaller one, as if more had been labelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polycl.dataset import LabelledSlice
from polycl.errors import InputError


def draw_slices(slices: Sequence[LabelledSlice], count: int, seed: int) -> list[LabelledSlice]:
    """`count` of the slices that hold a target, uniformly, in random order; InputError if there are not so many."""
    holding = [one for one in slices if one.classes.any()]
    return [holding[index] for index in _drawn(len(holding), count, seed, "slices")]


def draw_scans(slices: Sequence[LabelledSlice], count: int, seed: int) -> list[LabelledSlice]:
    """All slices of `count` of the scans that hold a target, uniformly; InputError if there are not so many."""
    holding = list(dict.fromkeys(one.case for one in slices if one.classes.any()))
    drawn = {holding[index] for index in _drawn(len(holding), count, seed, "scans")}
    return [one for one in slices if one.case in drawn]


def _drawn(available: int, count: int, seed: int, what: str) -> list[int]:
    if not 1 <= count <= available:
        raise InputError(f"{count} labelled {what} were asked for, and {available} hold a target")
    return [int(index) for index in np.random.default_rng(seed).permutation(available)[:count]]
