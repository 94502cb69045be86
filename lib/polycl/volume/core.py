"""`Volume`: voxels and where they are in the patient."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.volume.orientation import axis_codes, canonical_affine, canonical_view, check_affine
from polycl.window import Window

# Two grids are the same when no corner voxel is further apart than this. Headers round to 32-bit floats or to a few
# decimals, which moves far corners by hundredths of a millimetre; a wrong grid is off by whole voxels.
SAME_GRID_MM = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Voxels [I, J, K] and the affine (4x4 float64) from voxel index (i, j, k) to RAS+ millimetres.

    `window` is the one that the file suggests for its own values, if it does; other voxels on the grid have none.

    Raises InputError if the voxels do not have three non-empty axes, or if the affine is not finite and invertible.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    window: Window | None = None

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.size == 0:
            raise InputError(f"voxels of shape {self.voxels.shape} are no volume; three non-empty axes are needed")
        object.__setattr__(self, "affine", check_affine(self.affine))

    def __repr__(self) -> str:
        """The grid, and no voxels: those stay out of logs and messages."""
        shape = "x".join(map(str, self.shape))
        spacing = "x".join(f"{s:.4g}" for s in self.spacing)
        origin = ", ".join(f"{o:.2f}" for o in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm, axes {self.axcodes}, from ({origin}) mm"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        i, j, k = self.voxels.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def axcodes(self) -> str:
        """The direction each axis runs towards, closest of R/L, A/P and S/I: "RAS" for canonical axes."""
        return axis_codes(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def millilitres(self, mask: NDArray[Any]) -> float:
        """Volume of the non-zero voxels of `mask`, an array of any shape on this grid's spacing."""
        return int(np.count_nonzero(mask)) * self.voxel_ml

    def with_voxels(self, voxels: NDArray[Any]) -> "Volume":
        """Other voxels on the same grid."""
        if voxels.shape != self.shape:
            raise InputError(f"voxels of shape {voxels.shape} do not fit a grid of shape {self.shape}")
        return Volume(voxels, self.affine)

    def canonical(self) -> "Volume":
        """The same volume in the axis order and directions closest to R-A-S, always the same object.

        The voxels are a view, not a copy.
        """
        return self if self.axcodes == "RAS" else self._canonical

    @cached_property
    def _canonical(self) -> "Volume":
        return Volume(canonical_view(self.voxels, self.affine), canonical_affine(self.shape, self.affine), self.window)

    def same_grid(self, other: "Volume", tolerance: float = SAME_GRID_MM) -> bool:
        """Whether both have the same shape and no voxel centres more than `tolerance` mm apart."""
        if self.shape != other.shape:
            return False
        # The distance is convex in the index, so the corners have the largest.
        corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in self.shape))], float)
        apart = corners @ (self.affine - other.affine).T[:, :3]
        return bool(np.linalg.norm(apart, axis=1).max() <= tolerance)

    def require_same_grid(
        self, other: "Volume", what: str, tolerance: float = SAME_GRID_MM, own: str = "image"
    ) -> None:
        """InputError unless `other` ("the label") is on this grid, the `own` one."""
        if not self.same_grid(other, tolerance):
            raise InputError(f"{what} is not on the grid of the {own}: {other} against {self}")
