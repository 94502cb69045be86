"""Objects to follow in a CT that has no labels: whatever its intensities hold together.

Three kinds. Threshold structures are the connected parts of a smoothed CT above or below a level (bones, gas, lungs,
kidneys and vessels with contrast medium, fat planes ...), cut where they only touch. Watershed regions are the basins
of the gradient's magnitude at several scales; those whose borders lie on edges are kept. Merged regions are basins
joined over their weakest borders. None of it is anatomy, but it has surfaces that run on from slice to slice as organs
do, and that is what propagation has to learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

Bool3 = NDArray[np.bool_]
Labels3 = NDArray[np.uint16]
Float3 = NDArray[np.float32]


@dataclass(frozen=True)
class StructureRules:
    """Which structures count.

    Attributes:
        above: levels in HU; what is brighter.
        below: levels in HU; what is darker, inside the body.
        opening_mm: radius of the ball that must fit: thinner bridges are cut.
        scales_mm: Gaussian sigma of the gradients whose basins are the watershed regions.
        apart: smallest distance between two basins' bottoms, in units of their scale.
        volume_ml: smallest and largest structure.
        sharp: share of a scale's regions that are kept, those with the strongest borders.
        merged: shares of all borders between the regions of the middle scale that are taken away, the weakest first.
        body_share: a structure whose box is wider than this share of the body is none.
        smooth_mm: Gaussian sigma before a threshold.
    """

    above: tuple[float, ...] = (180.0, 130.0, 105.0, 80.0)
    below: tuple[float, ...] = (-300.0, -60.0, 30.0)
    opening_mm: float = 3.0
    scales_mm: tuple[float, ...] = (2.0, 3.5, 6.0)
    apart: float = 3.0
    volume_ml: tuple[float, float] = (1.5, 1500.0)
    body_share: float = 0.8
    sharp: float = 0.5
    merged: tuple[float, ...] = (0.25, 0.45)
    smooth_mm: float = 2.0


def structures(
    hu: NDArray[np.integer[Any]], spacing: tuple[float, float, float], rules: StructureRules = StructureRules()
) -> Iterator[tuple[str, Labels3]]:
    """Layers of structures of a CT: a name, and ids `[I, J, K]` with 0 for none. A layer without any is left out.

    Args:
        hu: Hounsfield units `[I, J, K]`.
        spacing: millimetres a voxel, of each axis.
    """
    smooth = _smooth(hu, rules.smooth_mm, spacing)
    body = _body(smooth, spacing)
    width = max((s.stop - s.start) * mm for s, mm in zip(_box(body)[:2], spacing[:2], strict=True))
    for level in rules.above:
        yield from _kept(f"above {level:g}", _parts((smooth > level) & body, spacing, rules), spacing, width, rules)
    for level in rules.below:
        yield from _kept(f"below {level:g}", _parts((smooth < level) & body, spacing, rules), spacing, width, rules)
    middle = rules.scales_mm[len(rules.scales_mm) // 2]
    for scale in rules.scales_mm:
        gradient, regions = _regions(hu, body, scale, spacing, rules)
        yield from _kept(f"region {scale:g}", _sharpest(regions, gradient, rules.sharp), spacing, width, rules)
        if scale == middle:
            largest = round(rules.volume_ml[1] / 2 * 1000 / float(np.prod(spacing)))
            borders = _borders(regions, gradient)
            for share in rules.merged:
                parts = _merged(regions, borders, share, largest)
                yield from _kept(f"merged {share:g}", parts, spacing, width, rules)


def _smooth(hu: NDArray[np.integer[Any]], sigma_mm: float, spacing: tuple[float, float, float]) -> Float3:
    clipped = np.clip(hu, -1000, 1500).astype(np.float32)
    return np.asarray(ndimage.gaussian_filter(clipped, [sigma_mm / mm for mm in spacing]), dtype=np.float32)


def _body(smooth: Float3, spacing: tuple[float, float, float]) -> Bool3:
    """Everything inside the skin: the largest soft part of the volume, its holes filled slice by slice."""
    soft = ndimage.binary_opening(smooth > -250, structure=_ball(4.0, (spacing[0], spacing[1], 1e6)))
    parts, count = ndimage.label(soft)
    if count == 0:
        return np.ones(smooth.shape, bool)
    body: Bool3 = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    for z in range(body.shape[2]):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return body


def _parts(mask: Bool3, spacing: tuple[float, float, float], rules: StructureRules) -> NDArray[np.int32]:
    """Connected parts after an opening; each then grows back to what the opening took from it."""
    ball = _ball(rules.opening_mm, spacing)
    core, _ = ndimage.label(ndimage.binary_erosion(mask, ball))
    sizes = np.bincount(core.ravel())
    core[sizes[core] * float(np.prod(spacing)) < 200.0] = 0  # under 0.2 ml before it grows: specks
    grown = ndimage.grey_dilation(core, footprint=ball)
    return np.where(mask, grown, 0).astype(np.int32)


def _regions(
    hu: NDArray[np.integer[Any]], body: Bool3, scale: float, spacing: tuple[float, float, float], rules: StructureRules
) -> tuple[Float3, NDArray[np.int32]]:
    """Gradient of the CT in HU/mm, windowed as soft tissue so that bone and gas do not drown the rest; its basins."""
    soft = np.clip(hu, -150, 250).astype(np.float32)
    sigma = [max(0.5, scale / mm) for mm in spacing]
    steps = [
        ndimage.gaussian_filter1d(ndimage.gaussian_filter(soft, sigma), 0.7, axis=axis, order=1) / spacing[axis]
        for axis in range(3)
    ]
    gradient = np.sqrt(sum(step**2 for step in steps))
    reach = [max(1, round(rules.apart * scale / mm)) for mm in spacing]
    lowest = ndimage.minimum_filter(gradient, size=[2 * n + 1 for n in reach])
    bottoms, _ = ndimage.label((gradient <= lowest) & body)
    return gradient, np.asarray(watershed(gradient, bottoms, mask=body), dtype=np.int32)  # type: ignore[no-untyped-call]


def _sharpest(regions: NDArray[np.int32], gradient: Float3, share: float) -> NDArray[np.int32]:
    """The regions whose borders are steepest, by the mean gradient of their border voxels."""
    border = np.zeros(regions.shape, bool)
    for axis in range(3):
        differs = np.diff(regions, axis=axis) != 0
        near: list[slice] = [slice(None)] * 3
        far = near.copy()
        near[axis], far[axis] = slice(0, -1), slice(1, None)
        border[tuple(near)] |= differs
        border[tuple(far)] |= differs
    count = np.bincount(regions[border], minlength=int(regions.max()) + 1)
    steep = np.bincount(regions[border], gradient[border], minlength=len(count)) / np.maximum(count, 1)
    kept = steep >= np.quantile(steep[1:], 1 - share) if len(steep) > 1 else np.zeros(1, bool)
    return np.where(kept[regions], regions, 0)


def _borders(regions: NDArray[np.int32], gradient: Float3) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs `[P, 2]` of regions that touch, and the mean gradient where they do."""
    codes, weights = [], []
    size = int(regions.max()) + 1
    for axis in range(3):
        near, far = np.moveaxis(regions, axis, 0)[:-1], np.moveaxis(regions, axis, 0)[1:]
        steep = np.moveaxis(gradient, axis, 0)
        touch = (near != far) & (near > 0) & (far > 0)
        low, high = np.minimum(near[touch], far[touch]), np.maximum(near[touch], far[touch])
        codes.append(low.astype(np.int64) * size + high)
        weights.append((steep[:-1][touch] + steep[1:][touch]) / 2)
    found, inverse = np.unique(np.concatenate(codes), return_inverse=True)
    mean = np.bincount(inverse, np.concatenate(weights)) / np.bincount(inverse)
    return np.stack([found // size, found % size], axis=1), mean


def _merged(
    regions: NDArray[np.int32],
    borders: tuple[NDArray[np.int64], NDArray[np.float64]],
    share: float,
    largest: int,
) -> NDArray[np.int32]:
    """Regions joined over the weakest `share` of the borders, weakest first; none exceeds `largest` voxels."""
    pairs, strength = borders
    sizes = np.bincount(regions.ravel()).tolist()
    parent = list(range(len(sizes)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for index in np.argsort(strength)[: round(share * len(strength))]:
        one, other = root(int(pairs[index, 0])), root(int(pairs[index, 1]))
        if one != other and sizes[one] + sizes[other] <= largest:
            parent[other] = one
            sizes[one] += sizes[other]
    return np.array([root(number) for number in range(len(parent))], np.int32)[regions]


def _kept(
    name: str,
    parts: NDArray[np.int32],
    spacing: tuple[float, float, float],
    width: float,
    rules: StructureRules,
) -> Iterator[tuple[str, Labels3]]:
    """The layer with only those parts that are neither too small nor too large, numbered anew."""
    voxel = float(np.prod(spacing)) / 1000
    sizes = np.bincount(parts.ravel()) * voxel
    table = np.zeros(len(sizes), np.uint16)
    count = 0
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        if box is None or not rules.volume_ml[0] <= sizes[number] <= rules.volume_ml[1]:
            continue
        extent = max((s.stop - s.start) * mm for s, mm in zip(box[:2], spacing[:2], strict=True))
        if extent > rules.body_share * width or box[2].stop - box[2].start < 3:
            continue
        count += 1
        table[number] = count
    if count:
        yield name, table[parts]


def _box(mask: Bool3) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(found[0]) if found else tuple(slice(0, n) for n in mask.shape)


def _ball(radius: float, spacing: tuple[float, float, float]) -> Bool3:
    """A ball as a footprint on an anisotropic grid, at least the centre."""
    reach = [int(radius / mm) for mm in spacing]
    axes = np.meshgrid(*(np.arange(-n, n + 1) * mm for n, mm in zip(reach, spacing, strict=True)), indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes) <= radius**2)
