"""A small CT with a liver and a spleen, stored as no canonical volume is."""

import numpy as np
from numpy.typing import NDArray

from polycl.volume import Volume

SHAPE = (48, 40, 24)
# L-P-S, slices first: nothing about it is canonical.
AFFINE = np.array([[0, -1.0, 0, 20], [0, 0, -1.0, 30], [2.0, 0, 0, -50], [0, 0, 0, 1]])


def stored(canonical: NDArray[np.generic]) -> Volume:
    """A canonical array, as the file has it."""
    return Volume(np.ascontiguousarray(canonical.transpose(2, 0, 1)[:, ::-1, ::-1]), AFFINE)


def ball(centre: tuple[int, int, int], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    parts = [((axis - middle) / radius) ** 2 for axis, middle, radius in zip(grid, centre, radii, strict=True)]
    found: NDArray[np.bool_] = parts[0] + parts[1] + parts[2] < 1
    return found


LIVER, SPLEEN = ball((14, 20, 12), (10, 11, 8)), ball((38, 20, 12), (6, 9, 6))


def ct() -> Volume:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:-2, 2:-2] = -60
    hu[LIVER | SPLEEN] = 100
    return stored(hu)
