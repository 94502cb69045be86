"""NIfTI-1 and NIfTI-2 single files, plain or gzip."""

import logging
import math
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.volume.checks import Kind, check_shape
from polycl.volume.core import Volume
from polycl.volume.orientation import is_orthogonal
from polycl.volume.raster import (
    GZIP_MAGIC,
    check_room,
    decoder,
    open_maybe_gzip,
    read_exactly,
    read_voxels,
    storable,
    write_voxels,
)
from polycl.window import Window

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
FIRST_VOXEL = 352
MAX_EXTENSION_BYTES = 64 << 20
MILLIMETRES_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, micrometres; anything else is read as millimetres
SCANNER_CODE = 1


def header_bytes(head: bytes | bytearray) -> int | None:
    """The size of the NIfTI header that starts with `head`, or None if it is no NIfTI."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return next((size for size in (NIFTI1_BYTES, NIFTI2_BYTES) if size in sizes), None)


def read_nifti(path: Path, kind: Kind, max_voxels: int) -> Volume:
    """Read one volume. InputError if it is none; the size is checked before anything is decompressed."""
    with open_maybe_gzip(path) as stream:
        header = _read_header(stream)
        shape = check_shape(header.get_data_shape(), max_voxels)
        affine = _affine(header)
        slope, inter = _scaling(header)
        stored = header.get_data_dtype()
        if stored.names is not None or stored.kind == "c":
            raise InputError("holds colours or complex numbers; one real value for each voxel is needed")
        with path.open("rb") as raw:
            compressed = raw.read(2) == GZIP_MAGIC
        check_room(path, int(np.prod(shape, dtype=np.int64)) * stored.itemsize, compressed=compressed)
        out_dtype, decode = decoder(kind, stored, slope, inter)
        window = _window(header) if kind == "ct" else None
        return Volume(read_voxels(stream, shape, stored, out_dtype, decode), affine, window)


def _read_header(stream: BufferedIOBase) -> Any:
    """The parsed header; leaves the stream at the first voxel."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    # what it would print of a broken header is in the error
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    head = read_exactly(stream, NIFTI1_BYTES)
    size = header_bytes(head)
    if size is None:
        raise InputError("is not a NIfTI file")
    head += read_exactly(stream, size - NIFTI1_BYTES)
    try:
        header = (Nifti1Header if size == NIFTI1_BYTES else Nifti2Header)(bytes(head))
    except (HeaderDataError, ValueError, KeyError) as error:
        raise InputError(f"has a broken NIfTI header ({error})") from error
    if not bytes(header["magic"]).startswith(b"n+"):
        raise InputError("is a NIfTI header without voxels (.hdr/.img pair); store it as a single .nii.gz")
    offset = float(header["vox_offset"])
    if not size <= offset <= MAX_EXTENSION_BYTES:
        raise InputError("has a broken NIfTI header (the voxels start at an impossible offset)")
    read_exactly(stream, int(offset) - size)
    return header


def _affine(header: Any) -> NDArray[np.float64]:
    """The sform if its code is set, else the qform. Neither set: refused.

    With both codes 0 only the voxel size is known, and readers disagree about left and right (nibabel flips the first
    axis, ITK does not): an organ would land on the wrong side.
    """
    from nibabel.spatialimages import HeaderDataError

    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise InputError("has no orientation (sform and qform codes are both 0): left and right are unknown")
    try:
        affine: NDArray[np.float64] = header.get_best_affine().astype(np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"has a broken affine ({error})") from error
    affine[:3] *= MILLIMETRES_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _scaling(header: Any) -> tuple[float, float]:
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise InputError(f"has a broken intensity scale ({error})") from error
    return (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))


def _window(header: Any) -> Window | None:
    """The display range (`cal_min`, `cal_max`, in scaled values), which is 0 and 0 where none is meant."""
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    return Window(level=(low + high) / 2, width=high - low)


def write_nifti(volume: Volume, stream: IO[bytes], *, compress: bool) -> None:
    """Write NIfTI-1 with the affine as sform, and as qform too where its axes are at right angles."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.spatialimages import HeaderDataError

    voxels = storable(volume.voxels)
    header = Nifti1Header(endianness="<")
    try:
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape(voxels.shape)
    except HeaderDataError as error:
        raise InputError(f"cannot store this volume as NIfTI ({error}); use .nrrd") from error
    header.set_zooms(volume.spacing)
    header.set_xyzt_units("mm")
    if is_orthogonal(volume.affine):
        header.set_qform(volume.affine, SCANNER_CODE)
    header.set_sform(volume.affine, SCANNER_CODE)
    header.set_slope_inter(1.0, 0.0)
    if volume.window is not None:
        header["cal_min"], header["cal_max"] = volume.window.low, volume.window.high
    header["vox_offset"] = FIRST_VOXEL
    no_extensions = bytes(FIRST_VOXEL - NIFTI1_BYTES)
    write_voxels(stream, voxels, header=header.binaryblock + no_extensions, compress=compress)
