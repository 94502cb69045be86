"""A picture of a result: three orthogonal views through an organ, outlined, as a reading station shows them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from polycl.errors import InputError
from polycl.files import replacing
from polycl.volume import Volume
from polycl.window import Window

COLOURS = ((255, 92, 57), (64, 190, 255), (255, 214, 64), (120, 220, 110), (210, 130, 255), (255, 150, 190))
HEIGHT = 360
"""Pixels of the tallest view."""
ROOM_MM = 20.0
"""Shown around an organ in a view that is cut to it."""
LEGEND, GAP = 24, 24
"""Pixels of the line below the views, and between what is written there."""
EXTRA, MISSED = 1, 2
ERRORS = {"found, not in the reference:": EXTRA, "in the reference, not found:": MISSED}


class _View(NamedTuple):
    """HU and label ids of a plane, rows from top, and mm between rows and between columns."""

    hu: NDArray[np.generic]
    ids: NDArray[np.generic]
    spacing: tuple[float, float]


def draw(image: Volume, labels: Volume, names: Mapping[str, int], path: Path, window: Window) -> None:
    """Write a PNG of axial, coronal and sagittal views through the centre of all labels, true to scale.

    The patient's right is on the left of the axial and coronal views, the front on the left of the sagittal one.
    InputError if the file cannot be written.
    """
    ct, mask = image.canonical(), labels.canonical()
    views = _views(ct, mask.voxels, _centre(mask.voxels))
    scale = HEIGHT / max(view.hu.shape[0] * view.spacing[0] for view in views)
    sizes = {name: labels.millilitres(labels.voxels == index) for name, index in names.items()}
    sheet = _sheet([[_panel(*view, scale, window) for view in views]], _width(names, sizes))
    _legend(sheet, names, sizes)
    _save(sheet, path)


def draw_errors(image: Volume, found: Volume, reference: Volume, path: Path, window: Window) -> None:
    """Write a PNG of axial, coronal and sagittal views through an organ of a reference, and below what is wrong there.

    Above, what was found is outlined; below, what only one of the two has is filled. Labels are to be equal where they
    mean the same; a voxel of another label counts as both. All are on one grid;
    InputError if the file cannot be written.
    """
    ct, ours, theirs = (volume.canonical() for volume in (image, found, reference))
    differs = ours.voxels != theirs.voxels
    wrong = np.where(differs, np.where(ours.voxels > 0, EXTRA, MISSED), 0).astype(np.uint8)
    sizes = {
        name: image.millilitres(differs & (by > 0))
        for name, by in zip(ERRORS, (ours.voxels, theirs.voxels), strict=True)
    }
    either = (ours.voxels > 0) | (theirs.voxels > 0)
    part = tuple(_around(either.any(axis=tuple({0, 1, 2} - {axis})), ROOM_MM / ct.spacing[axis]) for axis in range(3))
    centre = _centre(theirs.voxels if theirs.voxels.any() else ours.voxels)
    above, below = (_views(ct, shown, centre, part) for shown in (ours.voxels, wrong))
    scale = HEIGHT / max(view.hu.shape[0] * view.spacing[0] for view in above)
    rows = [[_panel(*view, scale, window) for view in above], [_panel(*view, scale, window, 0.9) for view in below]]
    sheet = _sheet(rows, _width(ERRORS, sizes))
    _legend(sheet, ERRORS, sizes)
    _save(sheet, path)


def thumbnail(image: Volume, number: int, side: int, window: Window) -> bytes:
    """A PNG of a canonical axial slice, true to scale, in a square of `side` pixels.

    InputError for a slice that there is not.
    """
    ct = image.canonical()
    if not 0 <= number < ct.shape[2]:
        raise InputError(f"there is no slice {number}: there are {ct.shape[2]}, from 0 on")
    hu = _radiological(ct.voxels[:, :, number])
    x, y, _ = ct.spacing
    scale = side / max(hu.shape[0] * y, hu.shape[1] * x)
    panel = _panel(hu, np.zeros(hu.shape, np.uint8), (y, x), scale, window)
    square = Image.new("L", (side, side))
    square.paste(panel.convert("L"), ((side - panel.width) // 2, (side - panel.height) // 2))
    stream = io.BytesIO()
    square.save(stream, "PNG")
    return stream.getvalue()


def _views(
    ct: Volume, ids: NDArray[Any], centre: tuple[int, int, int], part: tuple[slice, ...] = (slice(None),) * 3
) -> list[_View]:
    """Axial, coronal and sagittal views through a voxel of a canonical volume, cut to `part`."""
    spacing = ct.spacing
    views = []
    for through, down, across in ((2, 1, 0), (1, 2, 0), (0, 2, 1)):
        plane = tuple(centre[axis] if axis == through else part[axis] for axis in range(3))
        views.append(
            _View(_radiological(ct.voxels[plane]), _radiological(ids[plane]), (spacing[down], spacing[across]))
        )
    return views


def _centre(mask: NDArray[Any]) -> tuple[int, int, int]:
    """A voxel in the middle of what is labelled; of the volume if nothing is."""
    found = np.argwhere(mask > 0)
    middle = np.median(found, axis=0) if len(found) else np.array(mask.shape) // 2
    return int(middle[0]), int(middle[1]), int(middle[2])


def _radiological(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """A canonical plane as rows from top and columns from left: both axes reversed, the second one down."""
    return plane[::-1, ::-1].T


def _panel(
    hu: NDArray[np.generic],
    ids: NDArray[np.generic],
    spacing: tuple[float, float],
    scale: float,
    window: Window,
    tint: float = 0.18,
) -> Image.Image:
    """A view with what is labelled outlined and filled, the latter by the share `tint`."""
    height, width = (max(1, round(n * mm * scale)) for n, mm in zip(hu.shape, spacing, strict=True))
    grey = np.clip((hu.astype(np.float32) - window.low) / window.width, 0, 1) * 255
    picture = Image.fromarray(grey.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    colours = np.asarray(picture.convert("RGB")).copy()
    enlarged = np.asarray(Image.fromarray(ids.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    for index in np.unique(enlarged[enlarged > 0]):
        organ = enlarged == index
        rim = organ & ~ndimage.binary_erosion(organ, iterations=2, border_value=1)
        colour = np.array(COLOURS[(int(index) - 1) % len(COLOURS)])
        colours[organ] = (colours[organ] * (1 - tint) + colour * tint).astype(np.uint8)
        colours[rim] = colour
    return Image.fromarray(colours)


def _sheet(rows: list[list[Image.Image]], least: int = 0) -> Image.Image:
    """Panels side by side in rows of `HEIGHT`, `least` pixels wide at least, with room for a legend below."""
    width = max(least, *(sum(panel.width for panel in row) for row in rows))
    sheet = Image.new("RGB", (width, HEIGHT * len(rows) + LEGEND))
    for number, row in enumerate(rows):
        left = 0
        for panel in row:
            sheet.paste(panel, (left, HEIGHT * number + (HEIGHT - panel.height) // 2))
            left += panel.width
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        with replacing(path) as stream:
            sheet.save(stream, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _legend(sheet: Image.Image, names: Mapping[str, int], millilitres: Mapping[str, float]) -> None:
    pen, left = ImageDraw.Draw(sheet), GAP // 3
    for index, text in zip(names.values(), _texts(names, millilitres), strict=True):
        pen.text((left, sheet.height - LEGEND + 6), text, fill=COLOURS[(index - 1) % len(COLOURS)])
        left += int(pen.textlength(text)) + GAP


def _width(names: Mapping[str, int], millilitres: Mapping[str, float]) -> int:
    """Pixels that a legend takes."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return sum(int(pen.textlength(text)) + GAP for text in _texts(names, millilitres))


def _texts(names: Mapping[str, int], millilitres: Mapping[str, float]) -> list[str]:
    return [f"{name} {millilitres[name]:.{0 if millilitres[name] >= 10 else 1}f} ml" for name in names]


def draw_before_after(
    image: Volume, before: Volume, after: Volume, reference: Volume, path: Path, window: Window
) -> None:
    """Write a PNG of the axial slice where two masks differ most: before, after, and the reference, around the organ.

    All are on one grid. InputError if the file cannot be written.
    """
    ct, *masks = (volume.canonical() for volume in (image, before, after, reference))
    index = int(np.count_nonzero(masks[0].voxels != masks[1].voxels, axis=(0, 1)).argmax())
    planes = [_radiological(mask.voxels[:, :, index]) for mask in masks]
    hu, spacing = _radiological(ct.voxels[:, :, index]), (ct.spacing[1], ct.spacing[0])
    rows, columns = (
        _around(np.any(planes, axis=(0, axis)), ROOM_MM / mm) for axis, mm in zip((2, 1), spacing, strict=True)
    )
    height = (rows.stop - rows.start) * spacing[0]
    panels = [_panel(hu[rows, columns], plane[rows, columns], spacing, HEIGHT / height, window) for plane in planes]
    sheet = _sheet([panels])
    pen, left = ImageDraw.Draw(sheet), 0
    for title, panel in zip(("before", "after", "reference"), panels, strict=True):
        pen.text((left + 8, HEIGHT + 6), f"{title}, slice {index}", fill=(255, 255, 255))
        left += panel.width
    _save(sheet, path)


def _around(hits: NDArray[np.bool_], margin: float) -> slice:
    """The stretch from the first hit to the last, and a margin."""
    found = np.flatnonzero(hits)
    if not len(found):
        return slice(0, len(hits))
    return slice(max(0, int(found[0]) - round(margin)), min(len(hits), int(found[-1]) + 1 + round(margin)))
