"""Samples a phantom patient on a grid, as a scanner would: blur, partial volume, noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft

from polycl.errors import InputError
from polycl.phantom.canvas import Canvas
from polycl.phantom.labels import LABELS
from polycl.phantom.organs import paint_organs
from polycl.phantom.patient import Patient, make_patient
from polycl.phantom.shapes import Array, f32, waves
from polycl.phantom.trunk import paint_trunk
from polycl.volume import Volume

AIR = -1024
POINTS_PER_SLAB = 1_200_000
EDGE_MM = 1.8
"""Width of an edge that the scanner's point-spread function alone would leave."""
WARP_MM = 1.9
"""Standard deviation of the smooth displacement that takes the ruler out of the shapes."""
MAX_OBLIQUE = 45.0

_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Phantom:
    """A generated CT and its labels on one grid. `image` is int16 HU, `labels` uint8 numbered by `LABELS`."""

    image: Volume
    labels: Volume


def make_phantom(
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (256, 256, 64),
    spacing: tuple[float, float, float] = (1.5, 1.5, 4.0),
    axcodes: str = "LPS",
    oblique_degrees: float = 0.0,
) -> Phantom:
    """An abdominal CT of the patient that `seed` names.

    `shape` and `spacing` (mm) follow the voxel axes, `axcodes` says where each axis points (nibabel's letters), and
    `oblique_degrees` turns the grid about a slanting axis through its centre. The anatomy is a function of the seed and
    of patient space alone, so grids of one seed show one patient; noise belongs to the slices (the axis nearest to
    head-feet). The same arguments give the same voxels on one machine. Raises `InputError` on a grid that is none.
    """
    _check_grid(seed, shape, spacing, axcodes, oblique_degrees)
    # Work in x, y, z order (right, front, head) and view the result in the caller's axes.
    order = [_AXES[c][0] for c in axcodes]
    signs = [_AXES[c][1] for c in axcodes]
    inner = [order.index(axis) for axis in range(3)]
    size = tuple(shape[i] for i in inner)
    step = np.array([spacing[i] for i in inner])
    patient = make_patient(seed)
    affine = _affine(size, step, patient, oblique_degrees)
    image = np.empty(size, np.int16)
    labels = np.empty(size, np.uint8)
    rows = max(1, POINTS_PER_SLAB // (size[0] * size[1] * 2))
    for start in range(0, size[2], rows):
        stop = min(start + rows, size[2])
        hu, found = _sample_slab(patient, affine, size, step, (start, stop))
        for k, noise in zip(range(start, stop), _noise(patient, size, step, range(start, stop)), strict=True):
            hu[:, :, k - start] += noise
        image[:, :, start:stop] = np.clip(np.rint(hu), AIR, 3071)
        labels[:, :, start:stop] = found
    flips = tuple(slice(None, None, s) for s in signs)
    outer = _outer_affine(affine, shape, order, signs)
    voxels, classes = (np.ascontiguousarray(a.transpose(order)[flips]) for a in (image, labels))
    return Phantom(Volume(voxels, outer), Volume(classes, outer))


def merge_lesion(labels: Volume) -> Volume:
    """The labels with every lesion counted as liver: what a liver mask is compared with."""
    voxels = labels.voxels.copy()
    voxels[voxels == LABELS["lesion"]] = LABELS["liver"]
    return Volume(voxels, labels.affine)


def liver_mask(labels: Volume) -> Volume:
    """1 in the liver and its lesions, 0 elsewhere, uint8."""
    whole = np.isin(labels.voxels, (LABELS["liver"], LABELS["lesion"]))
    return Volume(whole.astype(np.uint8), labels.affine)


def _check_grid(
    seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], axcodes: str, oblique: float
) -> None:
    if seed < 0:
        raise InputError(f"A phantom's seed is a whole number from 0, not {seed}.")
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"A phantom's shape is three whole numbers from 1, not {shape}.")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"A phantom's spacing is three positive lengths in mm, not {spacing}.")
    if len(axcodes) != 3 or any(c not in _AXES for c in axcodes) or len({_AXES[c][0] for c in axcodes}) != 3:
        raise InputError(f"Axis codes are three letters, one of each of R/L, A/P and S/I, not {axcodes!r}.")
    if not abs(oblique) <= MAX_OBLIQUE:
        raise InputError(f"A phantom's grid turns by at most {MAX_OBLIQUE:g} degrees, not {oblique}.")


def _affine(size: tuple[int, ...], step: Array, patient: Patient, oblique: float) -> npt.NDArray[np.float64]:
    """Index in x, y, z order to RAS mm, the patient off the middle of the field by `position`."""
    axis = np.array([0.8, 0.5, 0.3])
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(oblique)
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn * step
    affine[:3, 3] = np.array(patient.position) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def _outer_affine(
    affine: npt.NDArray[np.float64], shape: tuple[int, int, int], order: list[int], signs: list[int]
) -> npt.NDArray[np.float64]:
    """The same grid with its axes in the caller's order and sense."""
    outer = affine.copy()
    for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        outer[:3, i] = affine[:3, axis] * sign
        if sign < 0:
            outer[:3, 3] += affine[:3, axis] * (shape[i] - 1)
    return outer


def _sample_slab(
    patient: Patient, affine: npt.NDArray[np.float64], size: tuple[int, ...], step: Array, span: tuple[int, int]
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """HU without noise, and labels, of slices span[0] to span[1].

    Slices over 2 mm are the weighted mean (1/4, 1/2, 1/4) of the planes at their faces and in their middle, which is a
    slice profile of that width; each face serves both its neighbours.
    """
    thick = step[2] > 2.0
    start, stop = span
    k = np.arange(start - 0.5, stop, 0.5) if thick else np.arange(start, stop, dtype=float)
    grid = affine.copy()
    grid[:3, 3] += affine[:3, 2] * k[0]
    if thick:
        grid[:3, 2] /= 2
    grid[:3] /= np.array(patient.scale)[:, None]
    canvas = _canvas(patient, grid, (size[0], size[1], len(k)), float(np.sqrt(step[0] * step[1])))
    paint_trunk(canvas, patient)
    paint_organs(canvas, patient)
    if not thick:
        return canvas.hu, canvas.labels
    faces, middle = canvas.hu[:, :, ::2], canvas.hu[:, :, 1::2]
    hu = f32(0.5 * middle + 0.25 * (faces[:, :, :-1] + faces[:, :, 1:]))
    return hu, canvas.labels[:, :, 1::2]


def _canvas(patient: Patient, grid: npt.NDArray[np.float64], size: tuple[int, int, int], pixel: float) -> Canvas:
    """An empty slab whose points carry the patient's warp."""
    i, j, k = (f32(a) for a in np.ogrid[tuple(slice(0, n) for n in size)])
    x, y, z = (f32(g[0] * i + g[1] * j + g[2] * k + g[3]) for g in f32(grid[:3]))
    third = len(patient.warp[1]) // 3
    dx, dy, dz = (WARP_MM * waves((x, y, z), patient.warp, third, n * third) for n in range(3))
    blur = float(np.hypot(EDGE_MM, pixel))
    hu = np.full(size, AIR, np.float32)
    return Canvas((x + dx, y + dy, z + dz), np.linalg.inv(grid), 6.0 + blur, blur, hu, np.zeros(size, np.uint8))


def _noise(patient: Patient, size: tuple[int, ...], step: Array, slices: range) -> Iterator[Array]:
    """Noise of each slice: white noise through the ramp and the smooth kernel of filtered back-projection.

    Its power falls to zero at low frequencies and beyond about 0.6 lp/mm (Kijewski and Judy, 1987,
    doi 10.1088/0031-9155/32/5/003).
    """
    fx = np.fft.fftfreq(size[0], step[0])[:, None]
    fy = np.fft.rfftfreq(size[1], step[1])[None, :]
    f = np.hypot(fx, fy)
    gain = np.sqrt(f + 0.02) * np.exp(-((f / 0.33) ** 2))
    gain[0, 0] = 0.0
    # So that the filtered slice has the wanted standard deviation whatever the grid; a pixel averages over its area.
    mirrored = np.where((fy == 0) | (np.isclose(np.abs(fy), 0.5 / step[1])), 1.0, 2.0)
    power = float((gain**2 * mirrored).sum()) / (size[0] * size[1])
    level = patient.noise / max(np.sqrt(power), 1e-6) if power else 0.0
    for k in slices:
        white = np.random.default_rng([patient.seed, 0x6E6F6973, k]).standard_normal(size[:2], dtype=np.float32)
        spectrum = scipy.fft.rfft2(white) * f32(gain * level)
        yield f32(scipy.fft.irfft2(spectrum, s=size[:2]))
