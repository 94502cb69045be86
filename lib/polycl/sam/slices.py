"""The slices of one volume as one engine sees them, each embedded at most once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polycl.sam.embeddings import EmbeddingCache, EmbeddingKey, Prefetch, content_hash
from polycl.sam.engine import Embedding, Engine
from polycl.sam.prompts import slice_image
from polycl.volume import Volume
from polycl.window import Window

Region = tuple[slice, slice]
"""Rows and columns of a slice's image."""


class SliceEncoder:
    """Embeddings of axial slices by canonical index, from `cache` where they were computed before."""

    def __init__(
        self, volume: Volume, engine: Engine, window: Window, cache: EmbeddingCache, region: Region | None = None
    ) -> None:
        self.engine, self.cache, self.window = engine, cache, window
        self._volume = volume.canonical()
        self._region = region
        self._content = content_hash(volume)
        if region is not None:
            rows, columns = region
            self._content += f" {rows.start}-{rows.stop} {columns.start}-{columns.stop}"

    def key(self, index: int) -> EmbeddingKey:
        """What the embedding of slice `index` depends on."""
        engine = self.engine
        return EmbeddingKey(self._content, index, self.window, engine.name, engine.sha256, engine.size)

    def image(self, index: int) -> NDArray[np.float32]:
        """What the engine sees of slice `index`: [H, W] in [0, 1]. InputError if there is nothing to see."""
        image = slice_image(self._volume, index, self.window)
        return image if self._region is None else image[self._region]

    def embedding(self, index: int) -> Embedding:
        """The embedding of slice `index`."""
        return self.cache.get(self.key(index), lambda: self.engine.encode(self.image(index)))

    def prefetch(self, indices: list[int], *, urgent: bool = False) -> Prefetch:
        """Embed `indices` in this order when no request is being served."""
        keys = [self.key(index) for index in indices]
        return self.cache.prefetch(keys, lambda key: self.engine.encode(self.image(key.index)), urgent=urgent)

    def around(self, index: int, reach: int) -> list[int]:
        """The slices up to `reach` away from `index`, nearest first, without itself."""
        near = (index + sign * step for step in range(1, reach + 1) for sign in (1, -1))
        return [z for z in near if 0 <= z < self._volume.shape[2]]
