"""Connected components of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def touching(candidate: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The components of `candidate`, in 2D or 3D (corners touching), that share a pixel with `mask`."""
    components, count = ndimage.label(candidate, ndimage.generate_binary_structure(candidate.ndim, candidate.ndim))
    kept = np.zeros(count + 1, dtype=bool)
    kept[components[mask]] = True
    kept[0] = False
    found: NDArray[np.bool_] = kept[components]
    return found
