"""Log-odds in a byte: how likely each voxel is to be a structure, in no more memory than a mask takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

STEPS = 16
"""Of a unit of log-odds."""
MOST = 127
"""Steps, to either side: what is surer is told as sure as that."""


def packed(odds: torch.Tensor) -> NDArray[np.int8]:
    """Log-odds of any shape in steps of 1 / `STEPS`, none beyond `MOST` of them."""
    import torch

    steps = (odds * STEPS).round().clamp(-MOST, MOST).to(torch.int8).cpu()
    result: NDArray[np.int8] = steps.numpy()
    return result


def unpacked(steps: NDArray[np.int8]) -> NDArray[np.float32]:
    """The log-odds that `packed` took, to half a step."""
    return steps.astype(np.float32) / STEPS
