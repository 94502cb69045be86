"""Reading a volume from whatever a path is, told by content; every refusal says what is wrong and what is accepted."""

from pathlib import Path
from typing import Literal

from polycl.errors import InputError, NotFoundError
from polycl.volume.checks import MAX_VOXELS, Kind, check_ct, check_spacing, reading
from polycl.volume.core import Volume
from polycl.volume.dicom import stack_series
from polycl.volume.nifti import NIFTI1_BYTES, header_bytes, read_nifti
from polycl.volume.nrrd import MAGIC as NRRD_MAGIC
from polycl.volume.nrrd import read_nrrd
from polycl.volume.raster import GZIP_MAGIC, open_maybe_gzip

Format = Literal["NIfTI", "gzip NIfTI", "NRRD", "DICOM"]
READABLE = ".nii, .nii.gz, .nrrd, .seg.nrrd, or DICOM (a file or a folder of one series)"
SUFFIXES: dict[str, Format] = {".nii.gz": "gzip NIfTI", ".nii": "NIfTI", ".nrrd": "NRRD", ".dcm": "DICOM"}
DICOM_PREAMBLE = 128


def read_volume(
    path: str | Path,
    *,
    kind: Kind = "ct",
    series_uid: str | None = None,
    allow_any_values: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """Read a CT or a label from NIfTI, NRRD (also `.seg.nrrd`) or DICOM (a folder of one series, or one file).

    A CT keeps the dtype of the file (native byte order) unless it is scaled or 64-bit float: then float32. A label is
    uint8. NotFoundError for a missing path; InputError for anything that is not one volume with a known place in space
    and finite values, for more than `max_voxels` (checked before decompression), for a CT whose values cannot be
    Hounsfield units unless `allow_any_values`, and for a label whose values are not whole numbers from 0 to 255.
    `series_uid` chooses among the series of a DICOM folder.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"{path.name}: no such file or folder")
    with reading(path.name):
        if series_uid is None:
            volume = _read(path, kind, allow_any_values, max_voxels)
        else:
            volume = stack_series(
                path, series_uid=series_uid, allow_any_modality=allow_any_values, max_voxels=max_voxels
            )
        if kind == "ct":
            check_spacing(volume.spacing)
            if not allow_any_values:
                check_ct(volume.voxels)
    return volume


def _read(path: Path, kind: Kind, allow_any_values: bool, max_voxels: int) -> Volume:
    found = "DICOM" if path.is_dir() else _format(path)
    if found in ("NIfTI", "gzip NIfTI"):
        return read_nifti(path, kind, max_voxels)
    if found == "NRRD":
        return read_nrrd(path, kind, max_voxels)
    if kind == "label":
        raise InputError("is DICOM; a label must be a labelmap in .nii, .nii.gz, .nrrd or .seg.nrrd")
    return stack_series(path, allow_any_modality=allow_any_values, max_voxels=max_voxels)


def _format(path: Path) -> Format:
    """The format by content; InputError where the name promises another one."""
    found = _sniff(path)
    lower = path.name.lower()
    if lower.endswith(".nhdr"):
        raise InputError("is a detached NRRD header; store header and voxels in one .nrrd file")
    expected = next((promised for suffix, promised in SUFFIXES.items() if lower.endswith(suffix)), None)
    if found is None:
        raise InputError(f"is not {expected or 'a medical image'} by its content; accepted are {READABLE}")
    if expected is not None and expected != found:
        raise InputError(f"is {found} by its content, but its name says {expected}; rename it")
    return found


def _sniff(path: Path) -> Format | None:
    with path.open("rb") as file:
        head = file.read(NIFTI1_BYTES)
    if not head:
        raise InputError("is empty")
    if head.startswith(NRRD_MAGIC):
        return "NRRD"
    if head[DICOM_PREAMBLE : DICOM_PREAMBLE + 4] == b"DICM":
        return "DICOM"
    if head.startswith(GZIP_MAGIC):
        with open_maybe_gzip(path) as stream:
            return "gzip NIfTI" if header_bytes(stream.read(4)) else None
    return "NIfTI" if header_bytes(head) else None
