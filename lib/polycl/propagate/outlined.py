"""Seeds that a SAM outlines: points and boxes on a few axial slices of each structure, as a file lists them.

    {"spleen": [{"roi": [188, 206, 120, 158, 20, 20]}, {"inside": [[200, 140, 31]], "outside": [[170, 150, 31]]},
                {"absent": [0, 0, 103]}]}

Each entry is about one axial slice, in voxel indices of the image's own axes: a box, its ends included; points in and
out of the structure; or a voxel on whose slice nothing of it is. Clicks of a viewer, which may lie on any slices and
are prompts of the propagating network itself, are `polycl.propagate.clicked`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from polycl.clicks import Click, best_mask, canonical_box, canonical_points, decode_seen, locate, seen_region
from polycl.errors import InputError
from polycl.propagate.seeds import Seed
from polycl.sam import EmbeddingCache, Engine, Prompts, from_image
from polycl.sam.slices import SliceEncoder
from polycl.volume import Volume
from polycl.window import Window

BEYOND = 2
"""Pixels that an outline may leave its box by."""
CACHE_BYTES = 1 << 28
Index = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Voxel = tuple[Index, Index, Index]


class Entry(BaseModel):
    """What is known of a structure on one axial slice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roi: tuple[Index, Index, Index, Index, Index, Index] | None = None
    inside: tuple[Voxel, ...] = ()
    outside: tuple[Voxel, ...] = ()
    absent: Voxel | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Entry:
        prompted = self.roi is not None or bool(self.inside)
        if (self.absent is not None) == prompted or (self.absent is not None and self.outside):
            raise ValueError("an entry is a roi, points inside, or both, and points outside; or else absent alone")
        return self

    def slice_in(self, volume: Volume) -> int:
        """The canonical slice it is about; InputError for several, and for what is outside of the image."""
        points = self.inside + self.outside + (() if self.absent is None else (self.absent,))
        slices = set(canonical_points(points, volume)[:, 2].tolist())
        if self.roi is not None:
            slices |= set(canonical_box(self.roi, volume)[:, 2].tolist())
        if len(slices) > 1:
            raise InputError("an entry is about one axial slice; its points and its roi lie on several")
        return int(slices.pop())


Entries = Mapping[str, Sequence[Entry]]
"""By the name of a structure."""


def parse(text: str | bytes) -> dict[str, tuple[Entry, ...]]:
    """Entries from JSON; InputError says what is wrong with it."""
    try:
        entries = TypeAdapter(dict[str, tuple[Entry, ...]]).validate_python(json.loads(text, object_pairs_hook=_once))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(f"clicks: {place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from None
    except ValueError as error:
        raise InputError(f"clicks: not JSON that can be read: {error}") from None
    empty = [name for name, some in entries.items() if all(entry.absent is not None for entry in some)]
    if empty or not entries:
        raise InputError(f"clicks: nothing to outline of {', '.join(empty) or 'anything'}: give a roi or points inside")
    return entries


def outline(
    entries: Entries, volume: Volume, engine: Engine, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, dict[int, Seed]]:
    """Seeds by structure and canonical slice. Where outlines overlap, the structure that comes first has it.

    InputError, naming the structure, for what is outside of the image, two entries on one slice, and where the SAM
    finds nothing. `progress` is told entries done and in all.
    """
    cache, total, done = EmbeddingCache(CACHE_BYTES), sum(map(len, entries.values())), 0
    taken: dict[int, NDArray[np.bool_]] = {}
    seeds: dict[str, dict[int, Seed]] = {}
    for name, some in entries.items():
        seeds[name] = {}
        for entry in some:
            try:
                z, mask = _outlined(entry, volume, engine, cache, taken)
                if z in seeds[name]:
                    raise InputError(f"two entries are on axial slice {z}, counted from the feet; make them one")
            except InputError as error:
                raise InputError(f"clicks: {name}: {error}") from None
            seeds[name][z] = Seed(mask)
            taken[z] = taken.get(z, np.zeros_like(mask)) | mask
            done += 1
            progress(done, total)
    return seeds


def _outlined(
    entry: Entry, volume: Volume, engine: Engine, cache: EmbeddingCache, taken: Mapping[int, NDArray[np.bool_]]
) -> tuple[int, NDArray[np.bool_]]:
    """The slice of an entry, and the mask [X, Y] there of what is not `taken`; an empty one if it is absent."""
    z = entry.slice_in(volume)
    mask = np.zeros(volume.canonical().shape[:2], dtype=bool)
    if entry.absent is not None:
        return z, mask
    _, prompts = locate(Click(entry.inside, entry.outside, entry.roi), volume)
    region = seen_region(engine, prompts, volume)
    encoder = SliceEncoder(volume, engine, Window.named("soft-tissue"), cache, region)
    masks = decode_seen(engine, encoder.embedding(z), prompts, volume, region)
    mask |= from_image(_in_box(best_mask(masks, prompts), prompts))
    if z in taken:
        mask &= ~taken[z]
    if not mask.any():
        raise InputError(f"nothing is found on axial slice {z}, counted from the feet; move the roi, or add points")
    return z, mask


def _in_box(mask: NDArray[np.bool_], prompts: Prompts) -> NDArray[np.bool_]:
    """A mask [H, W] without what lies outside the box, if one was drawn."""
    if prompts.box is None:
        return mask
    left, top, right, bottom = np.round(prompts.box).astype(int).tolist()
    kept = np.zeros_like(mask)
    here = (slice(max(0, top - BEYOND), bottom + BEYOND + 1), slice(max(0, left - BEYOND), right + BEYOND + 1))
    kept[here] = mask[here]
    return kept


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a name that comes twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name comes twice in it")
    return made
