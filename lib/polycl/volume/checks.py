"""What a volume must be before anything is computed from it: its size, and values that can be a CT or a label."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError

Kind = Literal["ct", "label"]

# 2,000 slices of 1024x1024: over any scanner's series, and 4 GB in 16 bits.
MAX_VOXELS = 2000 * 1024 * 1024
# Hounsfield units fit 16 bits; padding is mostly -1024, -2000 or -3024.
CT_RANGE = (-32768, 32768)
# Anything between air (-1000) less its noise and water (0) shows that the values are HU, and not padding.
LOWEST_TISSUE_HU = -1500
# Fat to muscle alone is 150 HU, and the narrowest display window about 80.
SMALLEST_SPAN_HU = 50
ANY_VALUES_HINT = "to use it all the same give --any-values, or allow_any_values in a request"
# From micro-CT of a specimen to the thickest slices; beyond that a header is wrong.
SPACING_MM = (0.02, 200.0)
SLAB_BYTES = 8 << 20


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Puts `name` before the InputErrors inside, and makes InputErrors of what broken data raise."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{name}: is truncated or corrupt: it cannot be decompressed") from error
    except OSError as error:
        # gzip's and bz2's complaints about the data are OSErrors without a number.
        reason = f"cannot be read: {error.strerror}" if error.errno else "is corrupt: it cannot be decompressed"
        raise InputError(f"{name}: {reason}") from error


def check_shape(shape: Sequence[int], max_voxels: int) -> tuple[int, int, int]:
    """The three spatial axes of a header's shape; trailing axes of one are dropped. InputError for anything else."""
    if len(shape) < 3 or any(n < 1 for n in shape):
        sizes = "x".join(map(str, shape)) or "nothing"
        raise InputError(f"is not a volume: it has {sizes} voxels; three axes of at least one voxel each are needed")
    if any(n != 1 for n in shape[3:]):
        if any(n != 1 for n in shape[4:]):
            raise InputError("holds vectors or colours; one value for each voxel is needed")
        raise InputError(f"holds {shape[3]} frames (4D); a single volume is needed")
    i, j, k = (int(n) for n in shape[:3])
    if i * j * k > max_voxels:
        raise InputError(f"has {i}x{j}x{k} voxels; the limit is {max_voxels}")
    return i, j, k


def slabs(voxels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of `voxels` [I, J, K], some slices at a time, so that temporaries stay small."""
    per_slice = max(1, voxels[..., 0].nbytes)
    step = max(1, SLAB_BYTES // per_slice)
    for start in range(0, voxels.shape[-1], step):
        yield voxels[..., start : start + step]


def check_ct(voxels: NDArray[Any]) -> None:
    """InputError unless the values can be Hounsfield units.

    Refused: constant; normalised to a small range; outside 16 bits; an 8-bit picture; stored values without the rescale
    intercept (air 0, water 1024), also with negative padding; other modalities that have no negative values.
    """
    ranges = [(float(slab.min()), float(slab.max())) for slab in slabs(voxels)]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if lowest == highest:
        raise InputError(f"is constant: every voxel has the same value; {ANY_VALUES_HINT}")
    if highest - lowest < SMALLEST_SPAN_HU:
        raise InputError(
            f"has values within {highest - lowest:.3g} of each other: normalised, not HU; {ANY_VALUES_HINT}"
        )
    if lowest < CT_RANGE[0] or highest > CT_RANGE[1]:
        raise InputError(f"has values out of the range of a CT ({CT_RANGE[0]} to {CT_RANGE[1]} HU); {ANY_VALUES_HINT}")
    for slab, (low, _) in zip(slabs(voxels), ranges, strict=True):
        if low < 0 and ((slab < 0) & (slab > LOWEST_TISSUE_HU)).any():
            return
    if lowest >= 0 and highest <= 255:
        raise InputError(f"has values 0 to 255 only, like an 8-bit picture, not Hounsfield units; {ANY_VALUES_HINT}")
    raise InputError(
        "has no voxel between air (-1000 HU) and water (0 HU): it looks like stored values without the rescale "
        f"intercept, or not a CT; {ANY_VALUES_HINT}"
    )


def check_spacing(spacing: Sequence[float]) -> None:
    """InputError unless the distances between voxels, in mm, can be those of a CT."""
    low, high = SPACING_MM
    if not all(low <= mm <= high for mm in spacing):
        sizes = "x".join(f"{mm:.3g}" for mm in spacing)
        raise InputError(f"has voxels of {sizes} mm; {low:g} to {high:g} mm are accepted: is the header right?")


def to_label(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Label values as uint8; InputError unless they are whole numbers from 0 to 255."""
    if values.dtype == np.uint8:
        return values
    if values.size and (values.min() < 0 or values.max() > 255):
        raise InputError("has label values outside 0 to 255; 0 is background and at most 255 classes are supported")
    labels: NDArray[np.uint8] = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        raise InputError("has label values that are not whole numbers; labels are 0 to 255")
    return labels
