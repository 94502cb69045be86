"""What a folder of studies must be. Light: checked before MONAI Label is imported."""

from pathlib import Path

from polycl.errors import InputError
from polycl.settings import why_unwritable

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")


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
