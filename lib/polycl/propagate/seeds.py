"""Seeds: what is known of objects on some slices, and how they come out of a label map.

Propagation goes along the third canonical axis, through axial slices. All indices here are canonical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.propagate.frames import Box
from polycl.volume import Volume

Choice = Literal["all", "auto", "middle"] | int
"""Which slices of a label become seeds: each, the largest, the middle one, or the one at a canonical index."""
THIN = 2
"""Voxels: what is no wider on an axial slice was painted on a sagittal or coronal one, if it goes through several."""
THROUGH = 3
POINTS = 3
MARGIN_MM = 4.0


@dataclass(frozen=True, eq=False)
class Seed:
    """One object on one axial slice: a mask, or points and a box in canonical voxels.

    Attributes:
        mask: bool [X, Y] of the whole slice; all False says that the object is not on it.
        points: [N, 2], (x, y).
        labels: [N], 1 in the object and 0 outside it.
        box: x0, x1, y0, y1, the ends left out.
        is_end: of an empty mask, that the object ends here: it is on all slices from the next seed up to this one.
    """

    mask: NDArray[np.bool_] | None = None
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    box: Box | None = None
    is_end: bool = False

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64).reshape(-1, 2)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if len(points) != len(labels) or not np.isin(labels, (0, 1)).all():
            raise InputError("each point needs a label: 1 in the object, 0 outside it")
        prompted = len(points) > 0 or self.box is not None
        if (self.mask is None) != prompted:
            raise InputError("a seed is a mask, or else points, a box, or both")
        if self.is_end and (self.mask is None or self.mask.any()):
            raise InputError("an object ends on a slice that shows nothing of it: the mask there is empty")
        if self.box is None and len(points) and not labels.any():
            raise InputError("at least one point must be in the object")
        if self.box is not None and not (self.box[0] < self.box[1] and self.box[2] < self.box[3]):
            raise InputError("a box is x0, x1, y0, y1 with x0 below x1 and y0 below y1")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)

    @property
    def present(self) -> bool:
        """Whether the object is on the slice."""
        return self.mask is None or bool(self.mask.any())

    @property
    def extent(self) -> Box | None:
        """The box of what is known to be inside; None if that has none, as with an empty mask or points alone."""
        if self.box is not None:
            return self.box
        return None if self.mask is None else box_of(self.mask)

    @cached_property
    def version(self) -> int:
        """The same number for seeds that say the same, another one for others."""
        box = None if self.box is None else [int(side) for side in self.box]
        digest = hashlib.blake2b(repr((box, self.is_end)).encode(), digest_size=8)
        for part in (self.mask, self.points, self.labels):
            if part is not None:
                digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return int.from_bytes(digest.digest(), "big")

    def same(self, other: Seed) -> bool:
        """Whether both say the same."""
        return self.version == other.version


@dataclass(frozen=True, eq=False)
class Found:
    """What a label map says.

    Attributes:
        seeds: by label, then by slice.
        painted: by label, what was painted on other than axial slices: bool, canonical [X, Y, Z].
        notes: for the user.
    """

    seeds: dict[int, dict[int, Seed]]
    painted: dict[int, NDArray[np.bool_]]
    notes: tuple[str, ...] = ()


def from_labels(labels: Volume, ids: Sequence[int] | None = None, choice: Choice = "all", *, most: int = 255) -> Found:
    """Seeds from the slices of a label map that are not empty.

    What was painted on sagittal or coronal slices alone is a line on each axial one: it becomes points on a few of
    them. Beside axial slices of the same label it is kept, and no seed.

    Args:
        labels: any axis order, 0 background.
        ids: the labels wanted; all there are if None.
        choice: see `Choice`.
        most: labels at most.

    Raises InputError where nothing is painted, NotFoundError for a label or a slice without any.
    """
    voxels = labels.canonical().voxels
    found = [int(value) for value in np.unique(voxels) if value]
    if not found:
        raise InputError("the seed is empty: paint the object on at least one axial slice")
    if missing := [value for value in ids or () if value not in found]:
        raise NotFoundError(
            f"the seed has no label {', '.join(map(str, missing))}; it has {', '.join(map(str, found))}"
        )
    wanted = list(found if ids is None else ids)
    if len(wanted) > most:
        raise InputError(f"the seed has {len(wanted)} labels; at most {most} are propagated at a time")
    seeds: dict[int, dict[int, Seed]] = {}
    painted: dict[int, NDArray[np.bool_]] = {}
    notes = []
    for value in wanted:
        mask = voxels == value
        axial, thin = _sort(mask)
        if not axial:
            painted[value] = mask
            seeds[value] = _projected(mask, thin, labels.canonical().spacing)
            notes.append(f"label {value} is painted on sagittal or coronal slices: it became points on axial ones")
            continue
        if thin:
            painted[value] = mask
            notes.append(f"label {value}: only what is painted on axial slices is propagated; the rest is kept")
        seeds[value] = {z: Seed(np.array(mask[:, :, z])) for z in _chosen(mask, axial, choice, value)}
    return Found(seeds, painted, tuple(notes))


def with_ends(
    seeds: Mapping[int, Seed], volume: Volume, first: int | None, last: int | None, kept: Collection[int] = ()
) -> dict[int, Seed]:
    """`seeds` of an object that is on the canonical axial slices `first` to `last` and on no other.

    Args:
        seeds: by canonical slice; ends among them are replaced.
        volume: any axis order.
        first, last: None for an end that is not known.
        kept: slices whose seeds nobody drew: where they say otherwise they are left out.

    Raises InputError for slices that the volume has not, for a first slice after the last, for a seed that shows the
    object beyond, and for one that shows nothing between.
    """
    if first is None and last is None:
        return dict(seeds)
    width, height, depth = volume.canonical().shape
    low, high = 0 if first is None else first, depth - 1 if last is None else last
    if not 0 <= low <= high < depth:
        raise InputError(
            f"an object cannot be on slices {low} to {high}, counted from the feet; there are slices 0 to {depth - 1}"
        )
    said = {}
    for z, seed in seeds.items():
        fits = seed.present == (low <= z <= high)
        if not (fits or seed.is_end or z in kept):
            shown = "annotated" if seed.present else "empty"
            raise InputError(
                f"slice {z} is {shown}, and the object is said to be on slices {low} to {high} and no other, counted "
                "from the feet"
            )
        if fits and not seed.is_end:
            said[z] = seed
    nothing = np.zeros((width, height), dtype=bool)
    ends = [z for z, known in ((low - 1, first), (high + 1, last)) if known is not None and 0 <= z < depth]
    return said | {z: Seed(nothing, is_end=True) for z in ends}


def bounded(
    found: Found, label: int, volume: Volume, first: int | None, last: int | None, kept: Collection[int] = ()
) -> Found:
    """`found` where `label` is on the slices `first` to `last` and on no other; see `with_ends`."""
    painted = dict(found.painted)
    if label in painted:
        painted[label] = painted[label].copy()
        painted[label][:, :, : first or 0] = False
        painted[label][:, :, painted[label].shape[2] if last is None else last + 1 :] = False
    seeds = with_ends(found.seeds[label], volume, first, last, kept)
    return replace(found, seeds={**found.seeds, label: seeds}, painted=painted)


def box_of(mask: NDArray[np.bool_]) -> Box | None:
    """x0, x1, y0, y1 of a mask [X, Y], the ends left out; None for an empty one."""
    xs, ys = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(xs[0]), int(xs[-1]) + 1, int(ys[0]), int(ys[-1]) + 1) if len(xs) else None


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    x0, x1, y0, y1 = zip(*boxes, strict=True)
    return min(x0), max(x1), min(y0), max(y1)


def _sort(mask: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Slices painted as areas, and slices that hold a mere line of what was painted on another plane."""
    areas: list[int] = []
    lines: list[int] = []
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        box = box_of(mask[:, :, z])
        assert box is not None
        thin = min(box[1] - box[0], box[3] - box[2]) <= THIN
        (lines if thin else areas).append(int(z))
    if len(lines) < THROUGH or _is_small(mask, lines):
        return sorted(areas + lines), []
    return areas, lines


def _is_small(mask: NDArray[np.bool_], lines: list[int]) -> bool:
    """Whether the object itself is small, or a thin tube, rather than a line of something painted on another plane."""
    boxes = [box_of(mask[:, :, z]) for z in lines]
    return all(max(box[1] - box[0], box[3] - box[2]) <= 2 * THIN for box in boxes if box is not None)


def _chosen(mask: NDArray[np.bool_], slices: list[int], choice: Choice, value: int) -> list[int]:
    if choice == "all":
        return slices
    if choice == "middle":
        return [slices[len(slices) // 2]]
    if choice == "auto":
        areas = mask[:, :, slices].sum(axis=(0, 1))
        largest = np.flatnonzero(areas == areas.max())
        return [slices[int(largest[len(largest) // 2])]]
    if choice not in slices:
        raise NotFoundError(
            f"label {value} is not on slice {choice}; it is on {slices[0]} to {slices[-1]}, counted from the feet"
        )
    return [choice]


def _projected(mask: NDArray[np.bool_], slices: list[int], spacing: tuple[float, float, float]) -> dict[int, Seed]:
    """Points on the axial slices at a quarter, half and three quarters of the way through what was painted."""
    places = sorted({slices[round(share * (len(slices) - 1))] for share in (0.25, 0.5, 0.75)})
    return {z: _on_line(mask[:, :, z], spacing) for z in places}


def _on_line(plane: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Seed:
    """Points along a line of voxels, and one outside either end."""
    box = box_of(plane)
    assert box is not None
    along = 0 if box[1] - box[0] > box[3] - box[2] else 1
    voxels = np.argwhere(plane)
    voxels = voxels[np.argsort(voxels[:, along], kind="stable")]
    inside = voxels[np.round(np.linspace(0, len(voxels) - 1, POINTS + 2)).astype(int)[1:-1]].astype(float)
    margin = np.zeros(2)
    margin[along] = max(1.0, MARGIN_MM / spacing[along])
    outside = np.stack([voxels[0] - margin, voxels[-1] + margin])
    outside = outside[((outside >= 0) & (outside <= np.array(plane.shape) - 1)).all(axis=1)]
    labels = np.concatenate([np.ones(len(inside), np.int64), np.zeros(len(outside), np.int64)])
    return Seed(points=np.concatenate([inside, outside]), labels=labels)


def check_seeds(volume: Volume, seeds: Mapping[int, Seed]) -> None:
    """InputError for a slice that a canonical `volume` has not, a mask of another shape, or a point outside."""
    width, height, depth = volume.shape
    for z, seed in seeds.items():
        if not 0 <= z < depth:
            raise InputError(f"there is no axial slice {z}; slices are 0 to {depth - 1}")
        if seed.mask is not None and seed.mask.shape != (width, height):
            raise InputError(f"the mask of slice {z} has {seed.mask.shape} pixels; the slice has {(width, height)}")
        if ((seed.points < -0.5) | (seed.points > np.array([width, height]) - 0.5)).any():
            raise InputError(f"a point is outside slice {z} of {width} x {height} voxels")
        if seed.box is not None and not _touches(seed.box, width, height):
            raise InputError(f"the box is outside slice {z} of {width} x {height} voxels")


def _touches(box: Box, width: int, height: int) -> bool:
    return box[0] < width and box[1] > 0 and box[2] < height and box[3] > 0
