"""Seeds that a SAM outlines: points and boxes on a few axial slices of each structure, as a file lists them.

    {"spleen": [{"roi": [188, 206, 120, 158, 20, 20]}, {"inside": [[200, 140, 31]], "outside": [[170, 150, 31]]},
                {"absent": [0, 0, 103]}]}

Each entry is about one axial slice, in voxel indices of the image's own axes: a box, its ends included; points in and
out of the structure; or a voxel on whose slice nothing of it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from polycl.clicks import Click, Index, best_mask, canonical_points, decode_seen, locate, seen_region
from polycl.errors import InputError
from polycl.propagate.seeds import Seed
from polycl.sam import EmbeddingCache, Engine, Prompts, from_image
from polycl.sam.slices import SliceEncoder
from polycl.volume import Volume
from polycl.window import Window

BEYOND = 2
"""Pixels that an outline may leave its box by."""
CACHE_BYTES = 1 << 28


class Entry(BaseModel):
    """What is known of a structure on one axial slice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roi: tuple[int, int, int, int, int, int] | None = None
    inside: tuple[Index, ...] = ()
    outside: tuple[Index, ...] = ()
    absent: Index | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Entry:
        if (self.absent is None) == (self.roi is None and not self.inside):
            raise ValueError("an entry is a roi, points inside, or both, or else absent")
        return self


Entries = Mapping[str, Sequence[Entry]]
"""By the name of a structure."""


def parse(text: str | bytes) -> dict[str, tuple[Entry, ...]]:
    """Entries from JSON; InputError says what is wrong with it."""
    try:
        entries = TypeAdapter(dict[str, tuple[Entry, ...]]).validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise InputError(f"clicks: {place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from None
    if not any(entry.absent is None for some in entries.values() for entry in some):
        raise InputError("clicks: there is nothing to outline: give a roi or points inside")
    return entries


def outline(entries: Entries, volume: Volume, engine: Engine) -> dict[str, dict[int, Seed]]:
    """Seeds by structure and canonical slice; structures that are only absent are left out.

    InputError for what is outside of the image, naming the structure.
    """
    cache = EmbeddingCache(CACHE_BYTES)
    seeds: dict[str, dict[int, Seed]] = {}
    for name, some in entries.items():
        try:
            found = dict(_seed(entry, volume, engine, cache) for entry in some)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if any(seed.present for seed in found.values()):
            seeds[name] = found
    return seeds


def _seed(entry: Entry, volume: Volume, engine: Engine, cache: EmbeddingCache) -> tuple[int, Seed]:
    if entry.absent is not None:
        z = int(canonical_points((entry.absent,), volume)[0, 2])
        return z, Seed(np.zeros(volume.canonical().shape[:2], dtype=bool))
    z, prompts = locate(Click(entry.inside, entry.outside, entry.roi), volume)
    region = seen_region(engine, prompts, volume)
    encoder = SliceEncoder(volume, engine, Window.named("soft-tissue"), cache, region)
    masks = decode_seen(engine, encoder.embedding(z), prompts, volume, region)
    return z, Seed(np.array(from_image(_in_box(best_mask(masks, prompts), prompts))))


def _in_box(mask: NDArray[np.bool_], prompts: Prompts) -> NDArray[np.bool_]:
    """A mask [H, W] without what lies outside the box, if one was drawn."""
    if prompts.box is None:
        return mask
    left, top, right, bottom = np.round(prompts.box).astype(int).tolist()
    kept = np.zeros_like(mask)
    here = (slice(max(0, top - BEYOND), bottom + BEYOND + 1), slice(max(0, left - BEYOND), right + BEYOND + 1))
    kept[here] = mask[here]
    return kept
