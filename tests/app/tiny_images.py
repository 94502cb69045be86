"""Images of a few thousand voxels in many orientations."""

import numpy as np

SHAPE = (36, 28, 7)


def rotation(degrees: float, axis: int) -> np.ndarray:
    """4x4 rotation about one axis."""
    turn = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cos, -sin, sin, cos
    return turn


def scaled(x: float, y: float, z: float) -> np.ndarray:
    """A diagonal affine away from the origin."""
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 3] = (-40.0, 25.0, 300.0)
    return affine


SWAPPED = scaled(4.0, 4.0, 5.0) @ np.eye(4)[:, [2, 0, 1, 3]]
AFFINES = {
    "ras": scaled(4.0, 4.0, 5.0),
    "lps": scaled(-4.0, -4.0, 5.0),
    "las_down": scaled(-4.0, 4.0, -5.0),
    "swapped": SWAPPED,
    "oblique": rotation(20, 0) @ rotation(12, 2) @ scaled(-4.0, -4.0, 5.0),
}


def ct(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """An ellipsoid of soft tissue with a gradient and noise, in air, int16 HU."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 1.2
    tissue = 60 + 120 * grid[0] - 80 * grid[1] + np.random.default_rng(seed).normal(0, 40, shape)
    return np.where(inside, tissue, -1000).astype(np.int16)
