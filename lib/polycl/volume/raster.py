"""The voxel block of NIfTI and NRRD files, streamed some slices at a time in both directions.

A block is decompressed, byte-swapped, scaled and checked slab by slab, so the only large array is the result, and
nothing is ever 64-bit float in memory but one slab.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.volume.checks import SLAB_BYTES, Kind, slabs, to_label

GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot pack better than this, so a header that promises more than the file can hold is known at once.
BEST_DEFLATE_RATIO = 1040
FASTEST_LEVEL = 1

Decode = Callable[[NDArray[Any]], NDArray[Any]]


def open_maybe_gzip(path: Path) -> BufferedIOBase:
    """The file's bytes, decompressed if the content is gzip."""
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else path.open("rb")


def check_room(path: Path, needed: int, *, compressed: bool) -> None:
    """InputError if `needed` bytes of voxels cannot come out of the file, before any memory is taken for them."""
    size = path.stat().st_size
    if needed > size * (BEST_DEFLATE_RATIO if compressed else 1):
        raise InputError("is truncated: the file is too small for the voxels its header announces")


def read_exactly(stream: BufferedIOBase, count: int) -> bytearray:
    """The next `count` bytes; InputError if there are fewer."""
    data = bytearray(count)
    _fill(stream, memoryview(data))
    return data


def _fill(stream: BufferedIOBase, view: memoryview) -> None:
    while len(view):
        got = stream.readinto(view)
        if not got:
            raise InputError("is truncated: it ends before the last voxel")
        view = view[got:]


def _read_slabs(stream: BufferedIOBase, shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Slabs [..., k] in native byte order, first axis fastest. One buffer is reused: use a slab before the next."""
    slice_shape, slices = tuple(shape[:-1]), shape[-1]
    slice_bytes = int(np.prod(slice_shape, dtype=np.int64)) * dtype.itemsize
    step = max(1, min(slices, SLAB_BYTES // slice_bytes))
    buffer = bytearray(step * slice_bytes)
    for start in range(0, slices, step):
        count = min(step, slices - start)
        view = memoryview(buffer)[: count * slice_bytes]
        _fill(stream, view)
        slab = np.frombuffer(view, dtype=dtype).reshape((*slice_shape, count), order="F")
        yield slab.astype(dtype.newbyteorder("="), copy=False)


def decoder(kind: Kind, dtype: np.dtype[Any], slope: float = 1.0, inter: float = 0.0) -> tuple[np.dtype[Any], Decode]:
    """The dtype in memory, and the function that takes a slab as stored to it.

    Unscaled CT keeps its dtype, scaled CT and 64-bit floats become float32, labels become uint8.
    """
    scaled = (slope, inter) != (1.0, 0.0)
    floating = scaled or dtype.kind == "f"

    def decode(slab: NDArray[Any]) -> NDArray[Any]:
        if floating:
            with np.errstate(over="ignore", invalid="ignore"):
                values = slab.astype(np.float64) * slope + inter if scaled else slab
                slab = values.astype(np.float32, copy=False)
            if not np.isfinite(slab).all():
                raise InputError("holds NaN or infinite voxels; every voxel needs a finite value")
        return to_label(slab) if kind == "label" else slab

    if kind == "label":
        return np.dtype(np.uint8), decode
    return np.dtype(np.float32) if floating else dtype.newbyteorder("="), decode


def read_voxels(
    stream: BufferedIOBase, shape: Sequence[int], dtype: np.dtype[Any], out_dtype: np.dtype[Any], decode: Decode
) -> NDArray[Any]:
    """The block of `shape` (first axis fastest) from `stream`, decoded, as [I, J, K] with contiguous axial slices."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"has voxels of type {dtype.name}; whole or real numbers of up to 64 bits are supported")
    try:
        voxels = np.empty(tuple(shape[-3:]), out_dtype, order="F")
    except MemoryError:
        raise InputError("does not fit the memory of this machine") from None
    start = 0
    for slab in _read_slabs(stream, shape, dtype):
        stop = start + slab.shape[-1]
        voxels[..., start:stop] = decode(slab)
        start = stop
    stream.readinto(memoryview(bytearray(1)))  # at the end of a gzip stream, this is what compares the checksum
    return voxels


def storable(voxels: NDArray[Any]) -> NDArray[Any]:
    """The voxels in a type that files have: booleans as uint8, half floats as float32."""
    if voxels.dtype == np.bool_:
        return voxels.view(np.uint8)
    if voxels.dtype == np.float16:
        return voxels.astype(np.float32)
    if voxels.dtype.kind not in "iuf" or voxels.dtype.itemsize > 8:
        raise InputError(f"cannot store voxels of type {voxels.dtype.name}")
    return voxels


def write_voxels(stream: IO[bytes], voxels: NDArray[Any], *, header: bytes, compress: bool) -> None:
    """Write `header`, then the voxels with the first axis fastest, in little-endian order, plain or gzip."""
    packer = zlib.compressobj(FASTEST_LEVEL, zlib.DEFLATED, 31) if compress else None
    little = voxels.dtype.newbyteorder("<")
    if header:
        stream.write(packer.compress(header) if packer else header)
    for slab in slabs(voxels):
        data = slab.astype(little, copy=False).tobytes(order="F")
        stream.write(packer.compress(data) if packer else data)
    if packer:
        stream.write(packer.flush())
