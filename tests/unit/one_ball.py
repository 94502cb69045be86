"""A bright ball, what a segmenter may say of it, and a network that has yet to learn to correct that."""

import numpy as np
from numpy.typing import NDArray

from polycl.corrector.header import CorrectorHeader
from polycl.corrector.inference import Corrector
from polycl.corrector.network import CorrectorNetwork
from polycl.devices import choose
from polycl.odds import STEPS
from polycl.volume import Volume

Mask = NDArray[np.bool_]
HEADER = CorrectorHeader(segmenter="tiny", labels=("liver",), spacing=(4.0, 4.0, 4.0), features=(4, 4, 4, 4, 4, 4))
WHERE = choose("cpu", "fp32")
X, Y, Z = np.indices((40, 36, 24))


def ball(radius: float, z: int = 12) -> Mask:
    inside: Mask = (X - 20) ** 2 + (Y - 18) ** 2 + (2 * (Z - z)) ** 2 < radius**2
    return inside


def volume(bright: Mask) -> Volume:
    return Volume(np.where(bright, 60, -100).astype(np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))


def odds(mask: Mask, sure: float = 3.0) -> NDArray[np.int8]:
    return np.where(mask, sure * STEPS, -sure * STEPS).astype(np.int8)


def corrector(network: CorrectorNetwork | None = None) -> Corrector:
    return Corrector(HEADER, network or CorrectorNetwork(HEADER), WHERE)
