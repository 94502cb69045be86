"""What HU tell of a structure: how much likelier each is to be found within it than around it.

Both are counted where the structure is outlined, so that it need not be known what it is. How much that moves an
outline is weighed against how far a voxel lies from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AROUND_MM = 12.0
"""From an outline: so far reaches what a structure is compared with, and nothing further away joins it."""
SURE = 2.0
"""Log-odds that HU count at most."""
LOWEST, HIGHEST, BIN = -1000, 2000, 50
"""HU of a histogram, and of each of its bins; what is beyond either end is in the last one."""
BINS = (HIGHEST - LOWEST) // BIN


@dataclass(frozen=True, eq=False)
class Appearance:
    """How much likelier each bin of HU is within a structure than around it, log-odds.

    `shared` is what the two histograms have in common: 0 if HU tell all, 1 if nothing.
    """

    by_bin: NDArray[np.float64]
    shared: float

    @classmethod
    def of(cls, within: NDArray[Any], around: NDArray[Any]) -> Appearance:
        """Of the HU within and around, of any shape; of few voxels they tell little."""
        inside, outside = _shares(_counts(within), _counts(around))
        return cls(_log_odds(inside, outside), float(np.minimum(inside, outside).sum()))

    def odds(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Log-odds of HU, of the same shape; 0 for NaN."""
        finite = np.isfinite(values)
        odds: NDArray[np.float64] = np.where(finite, self.by_bin[_bins(np.where(finite, values, 0))], 0.0)
        return odds


def moved(
    odds: NDArray[np.float64],
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    half: float,
    per_mm: float,
    deviations: list[float],
) -> NDArray[np.float64]:
    """`odds` of HU and those of an outline together, averaged with a Gaussian.

    Args:
        odds: of each voxel.
        inside: mm of each voxel within to the nearest one outside; 0 for others.
        outside: mm of each voxel outside to the nearest one within; 0 for others.
        half: mm from the middle of a voxel to its edge.
        per_mm: log-odds that each mm from the outline counts for it, beside HU.
        deviations: of the Gaussian along each axis, in voxels.
    """
    together = odds + per_mm * (np.maximum(inside - half, 0) - np.maximum(outside - half, 0))
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(together, deviations)
    return smooth


def odds_by_slice(
    values: NDArray[Any], within: NDArray[np.bool_], around: NDArray[np.bool_], deviation: float
) -> NDArray[np.float64]:
    """Log-odds of finite HU [X, Y, Z] by what the slices near each tell; what lies beside it differs along a structure.

    Args:
        values: the HU.
        within: where the structure is, of the same shape.
        around: what it is compared with, of the same shape.
        deviation: of the Gaussian by which slices near count, in slices, over 0; about 1 at its middle from 0.5 on.
    """
    near = [
        ndimage.gaussian_filter1d(
            np.stack([_counts(values[:, :, z][part[:, :, z]]) for z in range(values.shape[2])]),
            deviation,
            axis=0,
            mode="constant",
        )
        * (deviation * np.sqrt(2 * np.pi))
        for part in (within, around)
    ]
    by_bin = _log_odds(*_shares(near[0], near[1]))
    odds: NDArray[np.float64] = by_bin[np.arange(values.shape[2]), _bins(values)]
    return odds


def _bins(values: NDArray[Any]) -> NDArray[np.intp]:
    place = (np.asarray(values, dtype=np.float32) - LOWEST) / BIN
    bins: NDArray[np.intp] = np.clip(place, 0, BINS - 1).astype(np.intp)
    return bins


def _counts(values: NDArray[Any]) -> NDArray[np.float64]:
    """How many values are in each bin, smoothed over bins beside one another."""
    counts: NDArray[np.float64] = ndimage.gaussian_filter1d(
        np.bincount(_bins(values).ravel(), minlength=BINS).astype(float), 1.0
    )
    return counts


def _shares(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The shares of bins by their counts [..., BINS], of both samples.

    Both are mixed with the same even ones, by as much as the smaller sample would be if each bin counted one more: HU
    that neither has tell nothing.
    """
    even = BINS / (BINS + np.minimum(inside.sum(-1), outside.sum(-1)))[..., None]
    return tuple(
        (1 - even) * counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9) + even / BINS
        for counts in (inside, outside)
    )


def _log_odds(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> NDArray[np.float64]:
    odds: NDArray[np.float64] = np.clip(np.log(inside / outside), -SURE, SURE)
    return odds
