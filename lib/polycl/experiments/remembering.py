"""A SAM engine that remembers its answers: variants of a refinement ask mostly the same."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from polycl.sam import Embedding, Engine, Masks, Prompts


class Remembering:
    """Answers as `engine` does, from memory where it was asked the same before `forget`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.sha256, self.size, self.sight = engine.name, engine.sha256, engine.size, engine.sight
        self._known: dict[bytes, Masks] = {}

    def forget(self) -> None:
        """Begin anew: the answers take much memory."""
        self._known.clear()

    def encode(self, image: NDArray[np.float32]) -> Embedding:
        """See `Engine`."""
        return self.engine.encode(image)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """See `Engine`."""
        return self.decode_many(embedding, [prompts])[0]

    def decode_many(self, embedding: Embedding, prompts: Sequence[Prompts]) -> list[Masks]:
        """See `Engine`."""
        where = blake2b(np.ascontiguousarray(embedding.features).tobytes()).digest()
        keys = [_key(where, one) for one in prompts]
        new = [(key, one) for key, one in zip(keys, prompts, strict=True) if key not in self._known]
        found = self.engine.decode_many(embedding, [one for _, one in new])
        self._known |= {key: masks for (key, _), masks in zip(new, found, strict=True)}
        return [self._known[key] for key in keys]


def _key(where: bytes, prompts: Prompts) -> bytes:
    digest = blake2b(where)
    for part in (prompts.points, prompts.labels, prompts.box, prompts.mask_logits):
        digest.update(b"none" if part is None else f"{part.shape}".encode() + part.tobytes())
    return digest.digest()
