"""Files that clients send: their names, and whether they are what the store may keep.

What is to be stored is read here first, by our own reader, because MONAI Label copies any bytes. Such a file also gets
a plain name, as MONAI Label takes parts of paths from it.
"""

import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile

from polycl.errors import InputError, NotFoundError
from polycl.monailabel.folders import IMAGE_SUFFIXES, BadRequest, check_name
from polycl.monailabel.images import VolumeCache
from polycl.monailabel.store import LocalStore
from polycl.volume import Volume, read_volume

CROPPED_SUFFIX = ".seg.nrrd"
"""3D Slicer's segmentations, which it may crop to the box that holds something."""
LABEL_SUFFIXES = (CROPPED_SUFFIX, *IMAGE_SUFFIXES)


def check_upload(file: UploadFile) -> None:
    """BadRequest unless the last part of the file's name, which is all MONAI Label uses, can be a file's name."""
    check_name("the name of a file", PurePosixPath(file.filename or "").name or ".")


def prepare_image(arguments: dict[str, Any]) -> None:
    """Check an image on its way to the store, and put its id into `arguments`: by default its name without suffix.

    MONAI Label would cut the name at its first dot. InputError for a file that is no image, or no CT unless the params
    have `allow_any_values`; BadRequest without an id.
    """
    file = arguments["file"]
    suffix = _suffix(file, IMAGE_SUFFIXES, "images in the store")
    image = arguments.get("image") or PurePosixPath(file.filename).name[: -len(suffix)]
    if not image or image.lower().endswith(IMAGE_SUFFIXES):
        raise BadRequest(f"an image needs an id that is a name without {', '.join(IMAGE_SUFFIXES)}")
    arguments["image"] = image
    any_values = json.loads(arguments["params"] or "{}").get("allow_any_values") is True
    with _on_disk(file, f"image{suffix}") as path:
        read_volume(path, allow_any_values=any_values, max_voxels=_max_voxels())


def prepare_label(arguments: dict[str, Any]) -> None:
    """Check a label on its way to the store: readable, and on the grid of its image in any axis order.

    A `.seg.nrrd` may also be a box of that grid. The image of a PACS may not be here, so that the grid is not checked
    there. NotFoundError for an unknown image; InputError for any other label.
    """
    file, store = arguments["label"], app_instance().datastore()
    local = isinstance(store, LocalStore)
    uri = store.get_image_uri(arguments["image"]) if local else ""
    if local and not (uri and Path(uri).exists()):
        raise NotFoundError("no such image in this store")
    suffix = _suffix(file, LABEL_SUFFIXES, "labels")
    with _on_disk(file, f"label{suffix}") as path:
        label = read_volume(path, kind="label", max_voxels=_max_voxels()).canonical()
    if local:
        grid = _image(Path(uri)).canonical()
        if suffix == CROPPED_SUFFIX:
            grid = _box(grid, label)
        grid.require_same_grid(label, "the label")


def prepare_archive(file: UploadFile) -> None:
    """InputError unless the file is a zip archive that can be unpacked."""
    _suffix(file, (".zip",), "archives")
    file.filename = "archive.zip"
    try:
        with zipfile.ZipFile(file.file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):  # the last two: encrypted, …
        broken = "all of it"
    if broken is not None:
        raise InputError("the archive cannot be unpacked: it is no zip file, or it is damaged or encrypted")
    file.file.seek(0)


def _image(path: Path) -> Volume:
    """An image of the store: from memory where it was segmented just before, and whatever its values are."""
    images: VolumeCache = app_instance().runtime.images
    try:
        return images.get(path)
    except InputError:
        return images.get(path, allow_any_values=True)


def _box(grid: Volume, label: Volume) -> Volume:
    """The part of `grid` that `label` would be, by its origin and shape; all of it where there is no such part."""
    start = np.rint(np.linalg.solve(grid.affine, label.affine[:, 3])[:3]).astype(int)
    stop = start + label.shape
    if (start < 0).any() or (stop > grid.shape).any():
        return grid
    shift = np.eye(4)
    shift[:3, 3] = start
    voxels = grid.voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return Volume(voxels, grid.affine @ shift)


def _suffix(file: UploadFile, suffixes: tuple[str, ...], what: str) -> str:
    name = (file.filename or "").lower()
    for suffix in suffixes:
        if name.endswith(suffix):
            return suffix
    raise InputError(f"{what} must be named {', '.join('*' + suffix for suffix in suffixes)}")


@contextmanager
def _on_disk(file: UploadFile, name: str) -> Iterator[Path]:
    """The path of a copy called `name`, as the upload itself is from now on; the upload can be read again."""
    file.filename = name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        file.file.seek(0)
        yield path


def _max_voxels() -> int:
    return int(app_instance().runtime.settings.max_voxels)
