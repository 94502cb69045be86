"""A picture of a result: three orthogonal views through an organ, outlined, as a reading station shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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


def draw(image: Volume, labels: Volume, names: Mapping[str, int], path: Path, window: Window) -> None:
    """Write a PNG of axial, coronal and sagittal views through the centre of all labels, true to scale.

    The patient's right is on the left of the axial and coronal views, the front on the left of the sagittal one.
    InputError if the file cannot be written.
    """
    ct, mask = image.canonical(), labels.canonical()
    centre = _centre(mask)
    x, y, z = ct.spacing
    views = [
        (_radiological(ct.voxels[:, :, centre[2]]), _radiological(mask.voxels[:, :, centre[2]]), (y, x)),
        (_radiological(ct.voxels[:, centre[1], :]), _radiological(mask.voxels[:, centre[1], :]), (z, x)),
        (_radiological(ct.voxels[centre[0]]), _radiological(mask.voxels[centre[0]]), (z, y)),
    ]
    scale = HEIGHT / max(hu.shape[0] * spacing[0] for hu, _, spacing in views)
    panels = [_panel(hu, ids, spacing, scale, window) for hu, ids, spacing in views]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), HEIGHT + 24))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (HEIGHT - panel.height) // 2))
        left += panel.width
    _legend(sheet, names, {name: labels.millilitres(labels.voxels == index) for name, index in names.items()})
    try:
        with replacing(path) as stream:
            sheet.save(stream, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _centre(mask: Volume) -> tuple[int, int, int]:
    """A voxel in the middle of what is labelled; of the volume if nothing is."""
    found = np.argwhere(mask.voxels > 0)
    middle = np.median(found, axis=0) if len(found) else np.array(mask.shape) // 2
    return int(middle[0]), int(middle[1]), int(middle[2])


def _radiological(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """A canonical plane as rows from top and columns from left: both axes reversed, the second one down."""
    return plane[::-1, ::-1].T


def _panel(
    hu: NDArray[np.generic], ids: NDArray[np.generic], spacing: tuple[float, float], scale: float, window: Window
) -> Image.Image:
    height, width = (max(1, round(n * mm * scale)) for n, mm in zip(hu.shape, spacing, strict=True))
    grey = np.clip((hu.astype(np.float32) - window.low) / window.width, 0, 1) * 255
    picture = Image.fromarray(grey.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    colours = np.asarray(picture.convert("RGB")).copy()
    enlarged = np.asarray(Image.fromarray(ids.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    for index in np.unique(enlarged[enlarged > 0]):
        organ = enlarged == index
        rim = organ & ~ndimage.binary_erosion(organ, iterations=2, border_value=1)
        colour = np.array(COLOURS[(int(index) - 1) % len(COLOURS)])
        colours[organ] = (colours[organ] * 0.82 + colour * 0.18).astype(np.uint8)
        colours[rim] = colour
    return Image.fromarray(colours)


def _legend(sheet: Image.Image, names: Mapping[str, int], millilitres: Mapping[str, float]) -> None:
    pen, left = ImageDraw.Draw(sheet), 8
    for name, index in names.items():
        text = f"{name} {millilitres[name]:.0f} ml"
        pen.text((left, HEIGHT + 6), text, fill=COLOURS[(index - 1) % len(COLOURS)])
        left += int(pen.textlength(text)) + 24
