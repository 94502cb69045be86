"""Clicks and boxes on a volume: one axial slice outlined by SAM.

Prompts come in the image's own voxel axes, in any order; the slice is the axial one of the last point, or of the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.errors import InputError
from polycl.sam import Embedding, Engine, Masks, Prompts, from_image, to_pixels
from polycl.sam.regions import Region, masks_on, prompts_in, region_for
from polycl.volume import Volume, to_canonical_index

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Click:
    """What a user asks, in voxel indices of the image's own axes.

    Attributes:
        inside, outside: points in and out of the object, the last one placed at the end.
        roi: i0, i1, j0, j1, k0, k1 of a box, each pair in any order.
        slice_hint: with points, the third index of those that count; with a box alone, what 3D Slicer sends: the
            distance in mm of the slice on screen from the scanner's origin, without its sign. None if unknown.
    """

    inside: tuple[Index, ...] = ()
    outside: tuple[Index, ...] = ()
    roi: tuple[int, int, int, int, int, int] | None = None
    slice_hint: int | None = None


def locate(click: Click, volume: Volume) -> tuple[int, Prompts]:
    """The canonical axial slice a click is about, and the prompts on its image; points on other slices are left out.

    Raises InputError for points or a box outside the image, a box of no area, or nothing to outline.
    """
    if not click.inside and click.roi is None:
        raise InputError("there is nothing to outline: give a point in foreground, or a roi")
    box = None if click.roi is None else canonical_box(click.roi, volume)
    points = canonical_points(click.inside + click.outside, volume)
    labels = np.array([1] * len(click.inside) + [0] * len(click.outside), dtype=np.int64)
    z = _slice_of_points(click, points, labels) if len(points) else _slice_of_box(click, box, volume)
    plane = volume.canonical().shape[:2]
    here = points[:, 2] == z
    if box is not None and not box[0, 2] <= z <= box[1, 2]:
        box = None  # left over from another slice
    if box is None and not labels[here].any():
        raise InputError("there is nothing to outline: the slice clicked last has no point in foreground and no roi")
    corners = None if box is None else to_pixels(box[:, :2], plane).reshape(4)
    return z, Prompts(to_pixels(points[here, :2], plane), labels[here], corners)


def seen_region(engine: Engine, prompts: Prompts, volume: Volume) -> Region | None:
    """The part of a slice that `engine` shall see to answer `prompts`; None for all of it."""
    if engine.sight is None:
        return None
    canonical = volume.canonical()
    spacing = canonical.spacing[1], canonical.spacing[0]
    return region_for(engine.sight, prompts, (canonical.shape[1], canonical.shape[0]), spacing)


def decode_seen(engine: Engine, embedding: Embedding, prompts: Prompts, volume: Volume, region: Region | None) -> Masks:
    """Masks of the whole slice, of which `embedding` is of `region`."""
    if region is None:
        return engine.decode(embedding, prompts)
    width, height = volume.canonical().shape[:2]
    return masks_on(engine.decode(embedding, prompts_in(prompts, region)), region, (height, width))


def best_mask(masks: Masks, prompts: Prompts) -> NDArray[np.bool_]:
    """Of SAM's candidates the one [H, W] that obeys most points, and of those the one SAM is surest of.

    Of it only what is joined to a point in the object: islands elsewhere were not clicked. All of it where a box was
    drawn, or no point in the object lies on it.
    """
    columns, rows = np.round(prompts.points).astype(int).T
    obeyed = ((masks.logits[:, rows, columns] > 0) == (prompts.labels == 1)).sum(axis=1)
    best = max(range(len(masks.scores)), key=lambda index: (obeyed[index], masks.scores[index]))
    mask: NDArray[np.bool_] = masks.logits[best] > 0
    if prompts.box is not None:
        return mask
    pieces = ndimage.label(mask, np.ones((3, 3)))[0]
    clicked = pieces[rows, columns][prompts.labels == 1]
    return np.isin(pieces, clicked[clicked > 0]) if clicked.any() else mask


def on_slice(mask: NDArray[np.bool_], z: int, volume: Volume) -> Volume:
    """A mask [H, W] of canonical slice `z` as a uint8 volume of 0 and 1 on the grid of `volume`, in its own axes."""
    result = volume.with_voxels(np.zeros_like(volume.voxels, dtype=np.uint8))
    result.canonical().voxels[:, :, z] = from_image(mask)
    return result


def canonical_points(points: tuple[Index, ...], volume: Volume) -> NDArray[np.int64]:
    """Own voxel indices as canonical ones [N, 3]; InputError names the first that is outside the image."""
    own = np.array(points, dtype=np.int64).reshape(-1, 3)
    outside = (own < 0) | (own >= np.array(volume.shape))
    if outside.any():
        first = own[outside.any(axis=1)][0].tolist()
        raise InputError(f"the point {first} is outside the image of {'x'.join(map(str, volume.shape))} voxels")
    canonical: NDArray[np.int64] = to_canonical_index(own, volume.shape, volume.affine)
    return canonical


def canonical_box(roi: tuple[int, int, int, int, int, int], volume: Volume) -> NDArray[np.int64]:
    """Two opposite corners [2, 3] of the part within the image, sorted, in canonical indices.

    InputError for a box of no area on axial slices, or outside the image.
    """
    corners = to_canonical_index(np.array(roi).reshape(3, 2).T, volume.shape, volume.affine)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (low[:2] == high[:2]).any():
        raise InputError("the roi has no volume; it is i0, i1, j0, j1, k0, k1 with different ends in the axial plane")
    last = np.array(volume.canonical().shape) - 1
    if (high < 0).any() or (low > last).any():
        raise InputError(f"the roi is outside the image of {'x'.join(map(str, volume.shape))} voxels")
    return np.stack([np.maximum(low, 0), np.minimum(high, last)])


def _slice_of_points(click: Click, points: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
    own = np.array(click.inside + click.outside)
    hinted = np.ones(len(own), dtype=bool) if click.slice_hint is None else own[:, 2] == click.slice_hint
    counting = hinted if hinted.any() else np.ones(len(own), dtype=bool)
    inside = counting & (labels == 1)
    return int(points[inside if inside.any() else counting][-1, 2])


def _slice_of_box(click: Click, box: NDArray[np.int64] | None, volume: Volume) -> int:
    assert box is not None  # the caller checked that there is one or the other
    low, high = int(box[0, 2]), int(box[1, 2])
    middle = (low + high) // 2
    if click.slice_hint is None:
        return middle
    slices = np.arange(low, high + 1)
    centres = np.stack([np.full(len(slices), axis) for axis in box[:, :2].mean(axis=0)] + [slices, slices**0], axis=1)
    heights = centres @ volume.canonical().affine[2]
    off = np.abs(np.abs(heights) - abs(click.slice_hint))
    near = int(off.argmin())
    # Slicer rounds to whole millimetres, which may be half a slice off.
    return int(slices[near]) if off[near] <= volume.canonical().spacing[2] / 2 + 0.5 else middle
