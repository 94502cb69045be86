"""Writing volumes: the format by the file's name, never a half-written file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from polycl.errors import InputError
from polycl.files import replacing
from polycl.volume.checks import slabs, to_label
from polycl.volume.core import Volume
from polycl.volume.nifti import write_nifti
from polycl.volume.nrrd import write_nrrd
from polycl.volume.raster import storable

WRITABLE = ".nii.gz, .nii, .nrrd or .seg.nrrd"


def require_writable(path: Path) -> None:
    """InputError unless `write_volume` could write there: for a command to say so before it computes for long."""
    if not path.name.lower().endswith((".nii", ".nii.gz", ".nrrd")):
        raise InputError(f"{path.name}: cannot tell the format to write; name it {WRITABLE}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.name}: cannot be written: there is no folder for it", hint=f"make {path.parent}")


def write_volume(
    volume: Volume, path: str | Path, *, names: Mapping[str, int] | None = None, compress: bool = True
) -> None:
    """Write in the format that the file's name asks for: .nii, .nii.gz, .nrrd or .seg.nrrd.

    `compress` is for NRRD: gzip, or raw as OHIF needs. `names` (segment names to label values) is kept by .seg.nrrd
    only; without it, each label present is "Segment v". An existing file is replaced in one step; after a failure it
    is as before, and InputError tells the reason.
    """
    path = Path(path)
    require_writable(path)
    lower = path.name.lower()
    try:
        with replacing(path) as stream:
            if not lower.endswith(".nrrd"):
                write_nifti(volume, stream, compress=lower.endswith(".gz"))
            elif lower.endswith(".seg.nrrd"):
                write_nrrd(volume, stream, compress=compress, segments=_segments(volume, names))
            else:
                write_nrrd(volume, stream, compress=compress)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written: {error.strerror or 'input/output error'}") from error
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def _segments(volume: Volume, names: Mapping[str, int] | None) -> Mapping[str, int]:
    if volume.voxels.dtype.kind not in "biu":
        raise InputError("a segmentation needs whole label values")
    if names is None:
        present = np.zeros(256, np.int64)
        for slab in slabs(volume.voxels):
            present += np.bincount(to_label(storable(slab)).ravel(order="K"), minlength=256)
        return {f"Segment {value}": int(value) for value in np.flatnonzero(present) if value}
    if len(set(names.values())) != len(names) or any(not 0 < value <= 255 for value in names.values()):
        raise InputError("segment values must differ and be 1 to 255")
    return names
