"""A slab of sample points that shapes are painted on."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from polycl.phantom.shapes import Array, Point, Points, f32

Box = tuple[Point, Point]


@dataclass
class Canvas:
    """Sample points in anatomical mm, with the HU and labels painted so far.

    `p` are coordinates [I, J, K] after the patient's own scale and warp; `to_index` maps unwarped anatomical mm to
    indices of this slab; `margin` is how far (mm) warp and blur reach; `blur` is the width (mm) of an edge. `fields`
    holds distances that many organs share.
    """

    p: Points
    to_index: npt.NDArray[np.float64]
    margin: float
    blur: float
    hu: Array
    labels: npt.NDArray[np.uint8]
    fields: dict[str, Array] = field(default_factory=dict)

    def crop(self, box: Box) -> "Canvas | None":
        """The part of the slab inside an anatomical box ((x0, y0, z0), (x1, y1, z1)); None where they do not meet."""
        low, high = (np.asarray(b, dtype=np.float64) for b in box)
        centre, half = (low + high) / 2, (high - low) / 2 + self.margin
        middle = self.to_index[:3, :3] @ centre + self.to_index[:3, 3]
        reach = np.abs(self.to_index[:3, :3]) @ half
        start = np.maximum(np.ceil(middle - reach), 0).astype(int)
        stop = np.minimum(np.floor(middle + reach) + 1, self.hu.shape).astype(int)
        if (stop <= start).any():
            return None
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        x, y, z = (a[cut] for a in self.p)
        shift = self.to_index.copy()
        shift[:3, 3] -= start
        fields = {name: a[cut] for name, a in self.fields.items()}
        return Canvas((x, y, z), shift, self.margin, self.blur, self.hu[cut], self.labels[cut], fields)

    def cover(self, distance: Array) -> Array:
        """Share of each sample that lies inside, from the signed distance: the point-spread and partial volume."""
        return f32(np.clip(0.5 - distance / np.float32(self.blur), 0, 1))

    def paint(self, distance: Array, hu: Array | float, label: int | None = None) -> None:
        """Blend `hu` in where the signed distance is negative; with a label, write that too (0 erases)."""
        self.hu += (f32(hu) - self.hu) * self.cover(distance)
        if label is not None:
            self.labels[distance < 0] = label


def box_around(points: list[Point], reach: float) -> Box:
    """The box that holds all points with `reach` mm to spare."""
    a = np.asarray(points, dtype=np.float64)
    low, high = a.min(0) - reach, a.max(0) + reach
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))
