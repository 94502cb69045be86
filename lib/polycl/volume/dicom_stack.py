"""From loose images to a stack: one regular grid, or an error that says why there is none."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.volume.dicom_frames import Frame

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_POSITION_MM = 1e-3
SAME_DIRECTION = 1e-3
# Headers give positions to a tenth of a millimetre at worst; a missing slice is a whole step.
GAP_TOLERANCE_MM, GAP_TOLERANCE_SHARE = 0.06, 0.1
# Slices may shift sideways by this share of a pixel over the whole stack: less cannot be seen.
SHIFT_TOLERANCE_PIXELS = 0.5


class Stack(NamedTuple):
    """Frames in the order of the third axis, and the affine of voxels [column, row, slice] to RAS+ mm."""

    frames: list[Frame]
    affine: NDArray[np.float64]


def arrange(frames: Sequence[Frame], same_pixels: Callable[[Frame, Frame], bool]) -> Stack:
    """Sort along the normal of the slices (the cross product of row and column direction), check, and build the affine.

    A copy of an instance, or of an image, is dropped. InputError for mixed sizes, spacings or orientations, for
    different images at one position, for missing slices and for a gantry tilt.
    """
    # Anonymised files may have no instance UID: then each file is its own.
    unique = list({(frame.sop_uid or frame.path, frame.number): frame for frame in reversed(frames)}.values())
    _require_alike(unique)
    normal = np.cross(*unique[0].orientation)
    unique.sort(key=lambda frame: float(frame.position @ normal))
    kept = _without_copies(unique, normal, same_pixels)
    positions = np.array([frame.position for frame in kept])
    along = (positions - positions[0]) @ normal
    _require_straight(kept[0], positions - positions[0], along, normal)
    step = _step(kept[0], along)
    first = kept[0]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = first.position
    return Stack(kept, LPS_TO_RAS @ affine)


def _require_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for other in frames[1:]:
        if (other.rows, other.columns) != (first.rows, first.columns):
            raise InputError(
                f"mixes image sizes ({first.columns}x{first.rows} and {other.columns}x{other.rows}); "
                "one series of like slices is needed"
            )
        if not np.allclose(other.spacing, first.spacing, rtol=1e-3, atol=0):
            raise InputError("mixes pixel spacings; one series of like slices is needed")
        if np.abs(other.orientation - first.orientation).max() > SAME_DIRECTION:
            raise InputError("mixes orientations (a localizer among the slices?); parallel slices are needed")


def _without_copies(
    frames: Sequence[Frame], normal: NDArray[np.float64], same_pixels: Callable[[Frame, Frame], bool]
) -> list[Frame]:
    """`frames`, sorted along `normal`, without repeated images."""
    kept = [frames[0]]
    for frame in frames[1:]:
        at = float(frame.position @ normal)
        if at - float(kept[-1].position @ normal) > SAME_POSITION_MM:
            kept.append(frame)
        elif not same_pixels(kept[-1], frame):
            raise InputError(
                f"holds different images at the same position ({at:.1f} mm along the normal), as with several phases "
                "in one series; a single volume is needed"
            )
    return kept


def _require_straight(
    first: Frame, offsets: NDArray[np.float64], along: NDArray[np.float64], normal: NDArray[np.float64]
) -> None:
    shifts = np.linalg.norm(offsets - along[:, None] * normal, axis=1)
    worst = int(shifts.argmax())
    if shifts[worst] > SHIFT_TOLERANCE_PIXELS * min(first.spacing):
        angle = np.degrees(np.arctan2(shifts[worst], along[worst]))
        raise InputError(
            f"has a gantry tilt of {angle:.1f} degrees (slices shift sideways by up to {shifts[worst]:.1f} mm); "
            "resample it to an upright stack first"
        )


def _step(first: Frame, along: NDArray[np.float64]) -> float:
    """Mean distance of the slices in mm; InputError if they are not evenly spaced."""
    if len(along) == 1:
        if first.thickness is None:
            raise InputError("holds a single slice without a slice thickness")
        return first.thickness
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - usual) > GAP_TOLERANCE_MM + GAP_TOLERANCE_SHARE * usual)
    if uneven.size:
        at = int(uneven[0])
        raise InputError(
            f"has slices missing or unevenly spaced: {gaps[at]:.2f} mm instead of {usual:.2f} mm after slice {at + 1} "
            f"of {len(along)}, {along[at]:.1f} mm from the first ({uneven.size} such place{'s' * (uneven.size > 1)})"
        )
    return float(along[-1] / (len(along) - 1))
