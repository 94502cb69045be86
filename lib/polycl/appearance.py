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
PER_MM = 0.6
"""Log-odds that each mm from an outline counts for it, beside HU."""
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
        """Of the HU within and around, of any shape; of few voxels they tell little.

        Both histograms are mixed with the same even one, by as much as the smaller sample would be if each bin counted
        one more: HU that neither has tell nothing.
        """
        even = BINS / (BINS + min(within.size, around.size))
        inside, outside = ((1 - even) * _histogram(values) + even / BINS for values in (within, around))
        by_bin = np.clip(np.log(inside / outside), -SURE, SURE)
        return cls(by_bin, float(np.minimum(inside, outside).sum()))

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
    deviations: list[float],
) -> NDArray[np.float64]:
    """`odds` of HU and those of an outline together, averaged with a Gaussian.

    Args:
        odds: of each voxel.
        inside: mm of each voxel within to the nearest one outside; 0 for others.
        outside: mm of each voxel outside to the nearest one within; 0 for others.
        half: mm from the middle of a voxel to its edge.
        deviations: of the Gaussian along each axis, in voxels.
    """
    together = odds + PER_MM * (np.maximum(inside - half, 0) - np.maximum(outside - half, 0))
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(together, deviations)
    return smooth


def _bins(values: NDArray[Any]) -> NDArray[np.intp]:
    place = (np.asarray(values, dtype=np.float32) - LOWEST) / BIN
    bins: NDArray[np.intp] = np.clip(place, 0, BINS - 1).astype(np.intp)
    return bins


def _histogram(values: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each bin. There must be values."""
    smooth = ndimage.gaussian_filter1d(np.bincount(_bins(values).ravel(), minlength=BINS).astype(float), 1.0)
    shares: NDArray[np.float64] = smooth / smooth.sum()
    return shares
