"""Signed distances in mm, negative inside: the alphabet the phantom is written in.

All take arrays of coordinates that broadcast together and give float32. Distances are exact for capsules and
first-order for the rest (right near the surface, where blending needs them).
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Point = tuple[float, float, float]
Points = tuple[Array, Array, Array]

_TINY = np.float32(1e-4)


def f32(values: object) -> Array:
    """An array of float32."""
    return np.asarray(values, dtype=np.float32)


def ellipsoid(p: Points, centre: Point, radii: Point, turn: float = 0.0) -> Array:
    """Distance to an ellipsoid, `turn` radians about the z axis.

    Inigo Quilez's bound k0 (k0 - 1) / k1 with k0 = |q / r| and k1 = |q / r^2|.
    """
    x, y, z = (f32(a - np.float32(c)) for a, c in zip(p, centre, strict=True))
    if turn:
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        x, y = c * x + s * y, c * y - s * x
    u, v, w = (a / np.float32(r) for a, r in zip((x, y, z), radii, strict=True))
    k0 = np.sqrt(u * u + v * v + w * w) + _TINY
    u, v, w = (a / np.float32(r) for a, r in zip((u, v, w), radii, strict=True))
    k1 = np.sqrt(u * u + v * v + w * w) + _TINY / np.float32(max(radii))
    return f32(k0 * (k0 - 1) / k1)


def capsule(p: Points, a: Point, b: Point, ra: float, rb: float) -> Array:
    """Distance to a round rod from a (radius ra) to b (radius rb)."""
    axis = [np.float32(e - s) for s, e in zip(a, b, strict=True)]
    length2 = np.float32(sum(float(c) ** 2 for c in axis) + 1e-6)
    x, y, z = (q - np.float32(s) for q, s in zip(p, a, strict=True))
    h = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / length2, 0, 1)
    x, y, z = x - h * axis[0], y - h * axis[1], z - h * axis[2]
    return f32(np.sqrt(x * x + y * y + z * z) - (np.float32(ra) + np.float32(rb - ra) * h))


def smooth_max(a: Array, b: Array, k: float) -> Array:
    """Intersection with its edge rounded over k mm (polynomial smooth maximum)."""
    h = np.clip(np.float32(k) - np.abs(a - b), 0, None)
    return f32(np.maximum(a, b) + h * h * np.float32(0.25 / k))


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union with its crease rounded over k mm."""
    return f32(-smooth_max(-a, -b, k))


def superellipse(x: Array, y: Array, a: Array | float, b: Array | float, n: float) -> Array:
    """Distance, along the ray from the centre, to |x/a|^n + |y/b|^n = 1."""
    k = (np.abs(x / a) ** np.float32(n) + np.abs(y / b) ** np.float32(n)) ** np.float32(1 / n) + _TINY
    return f32(np.hypot(x, y) * (1 - 1 / k) - np.where(k < 0.02, np.float32(50), np.float32(0)))


def waves(p: Points, field: tuple[Array, Array], count: int, first: int = 0) -> Array:
    """Sum of `count` plane waves sin(v . p + phase) from the `first` on, scaled to standard deviation 1.

    `field` is the wave vectors [N, 3] in rad/mm and the phases [N].
    """
    x, y, z = p
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for v, phase in zip(field[0][first : first + count], field[1][first : first + count], strict=True):
        total += np.sin(x * v[0] + y * v[1] + z * v[2] + phase)
    return f32(total * np.float32(np.sqrt(2 / count)))
