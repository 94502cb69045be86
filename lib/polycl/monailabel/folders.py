"""What a folder of studies must be, and what may be named in it. Light: checked before MONAI Label is imported."""

import re
from pathlib import Path

from polycl.errors import InputError, PolyclError
from polycl.settings import why_unwritable

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
MAX_NAME_BYTES = 200
"""File systems allow 255; MONAI Label adds a suffix, and the reader's temporary files a little more."""


PUNCTUATION = "_.,-+=()[]{}@#%&~'!$^;"
IDENTIFIER = re.compile(rf"\w[\w {re.escape(PUNCTUATION)}]*")


class BadRequest(PolyclError):
    """A parameter that is not even of the right form."""


def check_name(key: str, value: object) -> None:
    """BadRequest unless `value`, the request's `key`, can be the name of a file or folder."""
    if not isinstance(value, str) or "/" in value or "\\" in value or "\0" in value or value in (".", ".."):
        raise BadRequest(f"{key} must be a name, not a path")
    if len(value.encode(errors="replace")) > MAX_NAME_BYTES:
        raise BadRequest(f"{key} is too long: {MAX_NAME_BYTES} bytes are allowed")


def check_id(key: str, value: object) -> None:
    """BadRequest unless `value`, the request's `key`, can be the id of something that is stored, or is empty."""
    check_name(key, value)
    if value and not IDENTIFIER.fullmatch(str(value)):
        raise BadRequest(
            f"{key} may hold letters, digits, spaces and {PUNCTUATION}, and begins with one of the first two"
        )


def is_within(folder: Path, path: Path) -> bool:
    """Whether `path` really lies in `folder`, once all links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def check_store(folder: Path) -> None:
    """InputError unless `folder` exists and can be written: labels are saved beside the images."""
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"the studies folder {folder} {kind}; give a folder of images or a DICOMweb address")
    if (reason := why_unwritable(folder)) is not None:
        raise InputError(f"the studies folder {folder} cannot be written ({reason}); labels are saved under it")


def has_images(folder: Path) -> bool:
    """Whether MONAI Label finds images in `folder`; it does not look into folders below."""
    return any(file.name.lower().endswith(IMAGE_SUFFIXES) for file in folder.iterdir() if file.is_file())
