"""What a folder of studies must be, and what may be named in it. Light: checked before MONAI Label is imported."""

from pathlib import Path

from polycl.errors import InputError, PolyclError
from polycl.settings import why_unwritable

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
MAX_NAME_BYTES = 200
"""File systems allow 255; MONAI Label adds a suffix, and the reader's temporary files a little more."""


class BadRequest(PolyclError):
    """A parameter that is not even of the right form."""


def check_name(key: str, value: object) -> None:
    """BadRequest unless `value`, the request's `key`, can be the name of a file or folder."""
    if not isinstance(value, str) or "/" in value or "\\" in value or "\0" in value or value in (".", ".."):
        raise BadRequest(f"{key} must be a name, not a path")
    if len(value.encode(errors="replace")) > MAX_NAME_BYTES:
        raise BadRequest(f"{key} is too long: {MAX_NAME_BYTES} bytes are allowed")


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
