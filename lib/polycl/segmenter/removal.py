"""A labelled organ taken out of a training slice, so that the others are learned without it.

Where every slice of a data set shows the liver, a network finds kidneys beside a liver only. What is taken out is
filled with fat, of which there is much around any organ.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from polycl.dataset import LabelledSlice

FAT_HU, NOISE_HU = -95.0, 15.0
RIM = 2
"""Pixels around a label that go with it: its blurred edge. Where it is larger still on slices beside, some stays."""


def without_one(chosen: LabelledSlice, random: np.random.Generator) -> LabelledSlice:
    """The slice without one of the classes on it; as it is where it shows none, or only one.

    On the slice itself the other classes stay whole, also where they touch what is taken out.
    """
    present = np.unique(chosen.classes[chosen.classes > 0])
    if len(present) < 2:
        return chosen
    gone = chosen.classes == random.choice(present)
    room = ndimage.binary_dilation(gone, iterations=RIM) & (gone | (chosen.classes == 0))
    fat = np.rint(random.normal(FAT_HU, NOISE_HU, chosen.hu.shape)).astype(chosen.hu.dtype)
    hu, *beside = (np.where(room, fat, seen) for seen in (chosen.hu, *chosen.beside))
    return replace(
        chosen, hu=hu, classes=np.where(gone, 0, chosen.classes).astype(chosen.classes.dtype), beside=tuple(beside)
    )
