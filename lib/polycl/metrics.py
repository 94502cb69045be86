"""How well a label map agrees with a reference, for one volume: Dice, HD95 in mm, surface Dice.

Distances are MONAI's, computed in 3D with the voxel spacing. A structure that both miss has no figure (None), and is
left out of means; one that only one of them has scores Dice 0, surface Dice 0 and no distance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from polycl.volume import Volume

SURFACE_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Agreement:
    """Figures of one label in one volume; millilitres of the prediction and of the reference."""

    dice: float | None
    hd95_mm: float | None
    surface_dice: float | None
    predicted_ml: float
    reference_ml: float

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def dice(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float | None:
    """2|A ∩ B| / (|A| + |B|) over a whole volume; None if both are empty."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(reference))
    return None if total == 0 else 2 * int(np.count_nonzero(predicted & reference)) / total


def compare(
    predicted: Volume, reference: Volume, index: int, *, reference_indices: tuple[int, ...] | None = None
) -> Agreement:
    """Agreement on the label `index`; in the reference it may be several ids together (a liver and its lesions).

    Raises InputError if the two are not on one grid.
    """
    reference.require_same_grid(predicted, "the prediction", own="reference")
    ours = predicted.voxels == index
    theirs = np.isin(reference.voxels, reference_indices or (index,))
    volumes = (reference.millilitres(ours), reference.millilitres(theirs))
    overlap = dice(ours, theirs)
    if overlap is None:
        return Agreement(None, None, None, *volumes)
    if not min(volumes):
        return Agreement(0.0, None, 0.0, *volumes)
    import torch  # here, as whoever wants a Dice alone need not wait for MONAI
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    box = _box(ours | theirs)
    pair = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (ours, theirs)]
    spacing = list(reference.spacing)
    distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    surface = compute_surface_dice(
        *pair, class_thresholds=[SURFACE_TOLERANCE_MM], include_background=True, spacing=spacing
    )
    return Agreement(overlap, float(distance), float(surface), *volumes)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Bounding box of a mask with a rim of one voxel where there is room, so that surfaces stay closed."""
    box = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(hits[0]) - 1), int(hits[-1]) + 2))
    return tuple(box)
