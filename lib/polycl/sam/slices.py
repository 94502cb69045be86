"""The slices of one volume as one engine sees them, alone or several in one picture, each embedded at most once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.sam.embeddings import EmbeddingCache, EmbeddingKey, Prefetch, content_hash
from polycl.sam.engine import Embedding, Engine
from polycl.sam.prompts import slice_image
from polycl.sam.regions import Region
from polycl.volume import Volume
from polycl.window import Window


@dataclass(frozen=True)
class Mosaic:
    """Pictures of one shape (H, W) in a square of `side` x `side`, row by row, so that one encoding serves them all."""

    side: int
    shape: tuple[int, int]

    @property
    def room(self) -> int:
        """Pictures that there is place for."""
        return self.side**2

    def tile(self, number: int) -> Region:
        """Rows and columns of picture `number` on the whole."""
        (row, column), (height, width) = divmod(number, self.side), self.shape
        return slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)

    def whole(self, pictures: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
        """The pictures [H, W] by number in their places, and nothing (0) in the others."""
        kind = next(iter(pictures.values())).dtype
        canvas: NDArray[Any] = np.zeros((self.side * self.shape[0], self.side * self.shape[1]), kind)
        for number, picture in pictures.items():
            canvas[self.tile(number)] = picture
        return canvas


class SliceEncoder:
    """Embeddings of axial slices by canonical index, from `cache` where they were computed before."""

    def __init__(
        self, volume: Volume, engine: Engine, window: Window, cache: EmbeddingCache, region: Region | None = None
    ) -> None:
        self.engine, self.cache = engine, cache
        self.window = engine.sight.windows[0] if engine.sight else window
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
        """What the engine sees of slice `index`: [H, W] in [0, 1], or [H, W, channels]. InputError if nothing."""
        if self.engine.sight:
            channels = [slice_image(self._volume, index, window) for window in self.engine.sight.windows]
            image = np.stack(channels, axis=-1)
        else:
            image = slice_image(self._volume, index, self.window)
        return image if self._region is None else image[self._region]

    def embedding(self, index: int) -> Embedding:
        """The embedding of slice `index`."""
        key = self.key(index)
        return self.cache.get(key, lambda: self.compute(key))

    def mosaic(self, indices: Sequence[int], mosaic: Mosaic) -> Embedding:
        """The embedding of several slices in one picture; of one slice as it is, if there is only place for that."""
        if mosaic.room == 1:
            return self.embedding(indices[0])
        alone = self.key(indices[0])
        key = replace(alone, content=f"{alone.content} {mosaic.side}: {' '.join(map(str, indices))}")

        def compute() -> Embedding:
            return self.engine.encode(mosaic.whole({n: self.image(index) for n, index in enumerate(indices)}))

        return self.cache.get(key, compute)

    def compute(self, key: EmbeddingKey) -> Embedding:
        """The embedding of the slice that `key` is of, computed."""
        return self.engine.encode(self.image(key.index))

    def prefetch(self, indices: list[int], *, urgent: bool = False) -> Prefetch:
        """Embed `indices` in this order when no request is being served."""
        return self.cache.prefetch([self.key(index) for index in indices], self.compute, urgent=urgent)

    def around(self, index: int, reach: int) -> list[int]:
        """The slices up to `reach` away from `index`, nearest first, without itself."""
        near = (index + sign * step for step in range(1, reach + 1) for sign in (1, -1))
        return [z for z in near if 0 <= z < self._volume.shape[2]]
