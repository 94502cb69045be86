"""What segmenters found, kept in few bytes: the same question has the same answer, and costs nothing the second time.

Also which of it was shown to whom, so that a map painted on a reply is known as such, and not taken for painted all
over. In memory only: after a restart all is computed anew, and what is painted counts as new.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.propagate.painted import Bits
from polycl.sam import content_hash
from polycl.volume import Volume

CAPACITY = 1 << 27
"""Bytes; a liver of a 512 x 512 x 300 series takes about two millions."""
IMAGES, REMEMBERED = 16, 2
"""Images shown, of all people together, and replies remembered for each."""


@dataclass(frozen=True, eq=False)
class Found:
    """A label map of an image: the bits of each value, in the image's own axes."""

    parts: Mapping[int, Bits]

    @classmethod
    def of(cls, mask: Volume) -> "Found":
        """The values of `mask`, uint8, but 0."""
        voxels = mask.voxels
        across = voxels.flags.f_contiguous  # the search is in C order
        parts = {}
        for value, found in enumerate(ndimage.find_objects(voxels.T if across else voxels), start=1):
            if found is not None:
                box = found[::-1] if across else found
                parts[value] = Bits.within(voxels.shape, box, voxels[box] == value)
        return cls(parts)

    def on(self, image: Volume, values: Collection[int]) -> Volume:
        """The label map on the grid of `image`, of these values only."""
        voxels = np.zeros_like(image.voxels, dtype=np.uint8)
        for value in self.parts.keys() & set(values):
            bits = self.parts[value]
            voxels[bits.box][bits.part()] = value
        return image.with_voxels(voxels)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(part.bits.nbytes for part in self.parts.values())


class Segmentations:
    """Results by image and model, and those last shown, by person and image. Safe for threads."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, Found] = OrderedDict()
        self._shown: OrderedDict[Hashable, deque[tuple[Found, dict[str, int]]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, image: Volume, model: str) -> Found | None:
        """What the model with this sha256 found in the image; None if that is not known."""
        key = _key(image, model)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, image: Volume, model: str, found: Found) -> None:
        """Remember it; what was used longest ago goes when there is too much."""
        with self._lock:
            self._kept[_key(image, model)] = found
            while sum(one.nbytes for one in self._kept.values()) > self._capacity:
                self._kept.popitem(last=False)

    def show(self, who: str, image: Volume, found: Found, labels: Mapping[str, int]) -> None:
        """`found`, with `labels` by name, is the reply to `who`."""
        key = _key(image, who)
        with self._lock:
            self._shown.setdefault(key, deque(maxlen=REMEMBERED)).append((found, dict(labels)))
            self._shown.move_to_end(key)
            while len(self._shown) > IMAGES:
                self._shown.popitem(last=False)

    def shown(self, who: str, image: Volume, label: str) -> list[NDArray[np.bool_]]:
        """The masks [X, Y, Z], canonical, of `label` in the last replies to `who`, the newest last."""
        with self._lock:
            replies = list(self._shown.get(_key(image, who), ()))
        parts = [found.parts.get(labels.get(label, 0)) for found, labels in replies]
        return [image.with_voxels(part.full()).canonical().voxels for part in parts if part is not None]


def _key(image: Volume, other: str) -> Hashable:
    return content_hash(image), image.shape, image.affine.tobytes(), other
