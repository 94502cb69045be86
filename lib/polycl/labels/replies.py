"""Whole-volume replies, remembered by a sample of their voxels.

No client says what the label that it saves started from. But where most of a structure's voxels are those that the
server replied for this very image, the outline comes from that reply, and a person who saw the whole volume kept it:
it says something on all slices. A structure painted by hand on a few slices does not hold most of any reply.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from polycl.checkpoints import Typed
from polycl.errors import InputError
from polycl.files import write_atomically
from polycl.labels.record import ModelVersion
from polycl.volume import Volume
from polycl.volume.orientation import to_canonical_index

logger = logging.getLogger(__name__)

SAMPLED = 1024
"""Voxels of a structure that stand for all: the share that a label kept is known to about 3 %."""
KEPT_SHARE = 0.5
"""A structure descends from a reply if it holds at least this share of its voxels. Too high, and a reply from which
much was cut away counts as painted by hand, which only loses knowledge; too low, and what nobody saw is background."""
REPLIES, IMAGES = 6, 2000
"""Replies remembered of an image, and images in all: a few hundred kilobytes each."""
GRID_POINTS = 16


class Reply(Typed):
    """One reply: `samples` are flat C-order indices into the canonical volume, by the name of the structure."""

    model: ModelVersion
    made: datetime
    samples: dict[str, tuple[int, ...]]


class _Replies(Typed):
    replies: tuple[Reply, ...] = ()


class ReplyLog:
    """The last replies for each image, in files of `folder`. Losing them loses no label, only what is known of it.

    Images are told apart by their voxels, so that one sent in a session is found again when it is stored. Safe for
    threads; of two processes that note a reply for one image at once, one is heard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def note(self, image: Volume, mask: Volume, labels: Mapping[str, int], model: ModelVersion) -> None:
        """Remember that `mask`, a uint8 label map of `labels` on the grid of `image`, was the reply for `image`.

        Never fails: what cannot be written is logged.
        """
        path = self._path(image)
        reply = Reply(model=model, made=datetime.now(UTC), samples=sample(mask, labels))
        with self._lock:
            kept = _Replies(replies=(*self._read(path), reply)[-REPLIES:])
            try:
                write_atomically(path, kept.model_dump_json().encode())
                self._drop_oldest()
            except (InputError, OSError):
                logger.warning("a reply could not be noted: labels made from it count as painted by hand")

    def of(self, image: Volume) -> tuple[Reply, ...]:
        """The replies remembered for `image`, oldest first."""
        return self._read(self._path(image))

    def _path(self, image: Volume) -> Path:
        return self._folder / f"{fingerprint(image)}.json"

    def _read(self, path: Path) -> tuple[Reply, ...]:
        try:
            return _Replies.model_validate_json(path.read_bytes()).replies
        except (OSError, ValidationError):
            return ()

    def _drop_oldest(self) -> None:
        files = list(self._folder.glob("*.json"))
        if len(files) > IMAGES:
            for file in sorted(files, key=lambda file: file.stat().st_mtime)[: len(files) - IMAGES]:
                file.unlink(missing_ok=True)


def fingerprint(image: Volume) -> str:
    """A name for the voxels of an image, the same in any axis order; some thousand voxels and the shape make it."""
    voxels = image.canonical().voxels
    steps = tuple(slice(None, None, max(1, size // GRID_POINTS)) for size in voxels.shape)
    some = np.rint(voxels[steps].astype(np.float64)).astype("<i4")
    return hashlib.sha256(repr(voxels.shape).encode() + some.tobytes()).hexdigest()[:32]


def sample(mask: Volume, labels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Evenly chosen voxels of each label that occurs: flat C-order indices into the canonical volume."""
    flat = mask.voxels.ravel(order="F")
    filled = np.flatnonzero(flat)
    values = flat[filled]
    shape = mask.canonical().shape
    samples = {}
    for name, value in labels.items():
        own = filled[values == value]
        if own.size:
            chosen = own[np.linspace(0, own.size - 1, min(SAMPLED, own.size)).astype(np.int64)]
            points = np.stack(np.unravel_index(chosen, mask.shape, order="F"), axis=-1)
            canonical = to_canonical_index(points, mask.shape, mask.affine)
            samples[name] = tuple(int(index) for index in np.ravel_multi_index(tuple(canonical.T), shape))
    return samples


def descent(
    replies: Sequence[Reply], voxels: NDArray[np.uint8], labels: Mapping[str, int]
) -> tuple[tuple[str, ...], ModelVersion | None]:
    """Names of `labels` whose outline in `voxels` (canonical) comes from one of the replies, and the newest such model.

    What a reply holds of a structure and the label does not is what a person cut away.
    """
    found: dict[str, Reply] = {}
    for name, value in labels.items():
        for reply in reversed(replies):
            indices = np.array(reply.samples.get(name, ()), dtype=np.int64)
            if indices.size == 0 or indices.max() >= voxels.size:
                continue
            if (voxels[np.unravel_index(indices, voxels.shape)] == value).mean() >= KEPT_SHARE:
                found[name] = reply
                break
    newest = max(found.values(), key=lambda reply: reply.made, default=None)
    return tuple(found), newest.model if newest else None
