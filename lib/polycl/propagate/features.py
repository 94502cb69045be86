"""What a session looks at, and the image features of slices in one region of it, each computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from polycl.propagate.engine import Features, VideoEngine
from polycl.propagate.frames import FrameGrid
from polycl.propagate.guides import Guides
from polycl.propagate.header import FrameConfig
from polycl.propagate.parameters import PropagateParameters
from polycl.sam.embeddings import EmbeddingKey

if TYPE_CHECKING:
    from polycl.volume import Volume


class Cache(Protocol):
    """A bounded cache, as `polycl.sam.EmbeddingCache` is."""

    def get(self, key: EmbeddingKey, compute: Callable[[], Any]) -> Any: ...

    def __contains__(self, key: EmbeddingKey) -> bool: ...


PIXELS_AT_A_TIME = 1 << 18
"""Pixels of frames that are encoded at a time: enough to keep the processor busy, few enough for its memory."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What all objects of a session have in common.

    Attributes:
        volume: a CT in HU in canonical axes.
        content: the hash of its voxels.
        engine: the network.
        frames: how slices become frames.
        cache: where features are kept.
        how: the parameters.
        guides: segmenters that may know the objects.
    """

    volume: Volume
    content: str
    engine: VideoEngine
    frames: FrameConfig
    cache: Cache
    how: PropagateParameters
    guides: Guides

    @property
    def plane(self) -> tuple[int, int]:
        """(X, Y) of a slice."""
        return self.volume.shape[0], self.volume.shape[1]


class SliceFeatures:
    """Features of slices as one grid shows them, from the scene's cache where they were computed before.

    `ahead` is how many slices are encoded at a time: what is asked for, or as many as fit.
    """

    def __init__(self, scene: Scene, grid: FrameGrid) -> None:
        self.scene, self.grid = scene, grid
        self.ahead = min(scene.how.ahead, max(1, PIXELS_AT_A_TIME // scene.engine.size**2))
        seen = hashlib.sha256(f"{grid.region} {scene.frames.model_dump_json()}".encode()).hexdigest()
        self._content = f"{scene.content} {seen}"

    def key(self, index: int) -> EmbeddingKey:
        """What the features of slice `index` depend on."""
        engine = self.scene.engine
        return EmbeddingKey(self._content, index, self.scene.frames.windows[0], engine.name, engine.sha256, engine.size)

    def get(self, wanted: Iterable[int], later: Iterable[int] = ()) -> dict[int, Features]:
        """Features of the slices `wanted`.

        Where one of them must be computed, so are those of `later` that are missing, nearest first, up to `ahead` in
        all: a batch costs less than its slices one by one.
        """
        wanted = list(dict.fromkeys(wanted))
        cache = self.scene.cache
        missing = [z for z in wanted if self.key(z) not in cache]
        if missing:
            more = [z for z in dict.fromkeys(later) if z not in missing and self.key(z) not in cache]
            missing += more[: max(0, self.ahead - len(missing))]
        fresh: dict[int, Features] = {}
        for start in range(0, len(missing), self.ahead):
            part = missing[start : start + self.ahead]
            fresh.update(zip(part, self._encode(part), strict=True))
        kept = {z: cache.get(self.key(z), partial(fresh.__getitem__, z)) for z in fresh}
        return {z: kept[z] if z in kept else self._cached(z) for z in wanted}

    def _cached(self, z: int) -> Features:
        """Features that were in the cache a moment ago, computed again should another request have pushed them out."""
        found: Features = self.scene.cache.get(self.key(z), lambda: self._encode([z])[0])
        return found

    def _encode(self, slices: list[int]) -> list[Features]:
        scene = self.scene
        return scene.engine.encode(self.grid.read(scene.volume, slices, scene.frames))
