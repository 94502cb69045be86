"""Files that clients send: their names, and whether they are what the store may keep.

What is to be stored is read here first, by our own reader, because MONAI Label copies any bytes. Such a file also gets
a plain name, as MONAI Label takes parts of paths from it.
"""

import json
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile

from polycl.errors import InputError
from polycl.monailabel.folders import IMAGE_SUFFIXES, BadRequest, check_name
from polycl.volume import read_volume

MAX_FILES = 20_000
"""In an archive; a long series of CT has some thousands."""


def check_upload(file: UploadFile) -> None:
    """BadRequest unless the last part of the file's name, which is all MONAI Label uses, can be a file's name."""
    check_name("the name of a file", PurePosixPath(file.filename or "").name or ".")


def prepare_image(arguments: dict[str, Any]) -> None:
    """Check an image on its way to the store, and put its id into `arguments`: by default its name without suffix.

    MONAI Label would cut the name at its first dot. InputError for a file that is no image, or no CT unless the params
    have `allow_any_values`; BadRequest without an id.
    """
    file = arguments["file"]
    suffix = suffix_of(file, IMAGE_SUFFIXES, "images in the store")
    image = arguments.get("image") or PurePosixPath(file.filename).name[: -len(suffix)]
    if not image or image.lower().endswith(IMAGE_SUFFIXES):
        raise BadRequest(f"an image needs an id that is a name without {', '.join(IMAGE_SUFFIXES)}")
    arguments["image"] = image
    any_values = json.loads(arguments["params"] or "{}").get("allow_any_values") is True
    with on_disk(file, f"image{suffix}") as path:
        read_volume(path, allow_any_values=any_values, max_voxels=_max_voxels())


def prepare_archive(file: UploadFile) -> int:
    """Bytes that a zip archive unpacks to. InputError unless it can be, into one folder and to a size that is allowed.

    Tar archives are not taken: they may hold links and devices.
    """
    suffix_of(file, (".zip",), "archives")
    file.filename, size = "archive.zip", 0
    try:
        with zipfile.ZipFile(file.file) as archive:
            size = _check_members(archive.infolist())
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):  # the last two: encrypted, …
        broken = "all of it"
    if broken is not None:
        raise InputError("the archive cannot be unpacked: it is no zip file, or it is damaged or encrypted")
    file.file.seek(0)
    return size


def _check_members(members: list[zipfile.ZipInfo]) -> int:
    """Bytes of all. InputError for a bomb, or what would lie elsewhere. No member unpacks to more than it says."""
    limit, size = int(app_instance().runtime.settings.max_upload), sum(member.file_size for member in members)
    if len(members) > MAX_FILES or size > limit:
        raise InputError(f"the archive is too large: {MAX_FILES} files of {limit} bytes in all are allowed")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise InputError("the archive holds a file that would lie outside of its folder, or a link")
    return size


def suffix_of(file: UploadFile, suffixes: tuple[str, ...], what: str) -> str:
    """The one of `suffixes` that the file's name ends with; InputError if it is none of them."""
    name = (file.filename or "").lower()
    for suffix in suffixes:
        if name.endswith(suffix):
            return suffix
    raise InputError(f"{what} must be named {', '.join('*' + suffix for suffix in suffixes)}")


@contextmanager
def on_disk(file: UploadFile, name: str) -> Iterator[Path]:
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
