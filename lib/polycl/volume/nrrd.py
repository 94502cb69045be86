"""NRRD files, and the `.seg.nrrd` flavour in which 3D Slicer keeps segmentations.

A Slicer segmentation is a labelmap whose header names each segment. Segments that overlap are kept in layers: a
fourth, first axis of kind `list`. Layers are merged on reading, later segments on top.
"""

import bz2
import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.volume.checks import Kind, check_shape, reading, to_label
from polycl.volume.core import Volume
from polycl.volume.raster import Decode, check_room, decoder, read_voxels, storable, write_voxels

MAGIC = b"NRRD000"
MAX_HEADER_BYTES = 1 << 20
MAX_LABELS = 255
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
# Signs that take the axes of a named space to RAS.
SPACES = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
DTYPES = {name: code for code, names in TYPES.items() for name in names}
STORED_TYPES = {"i1": "int8", "u1": "uint8", "f4": "float", "f8": "double"} | {
    f"{kind}{size}": f"{'u' * (kind == 'u')}int{8 * size}" for kind in "iu" for size in (2, 4, 8)
}
OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "raw": lambda file: file,
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "gz": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "bz2": bz2.BZ2File,
}
SEGMENT_KEY = re.compile(r"Segment(\d+)_(?:ID|Name)")
# Distinct colours in the order of the segments, repeated when there are more.
COLOURS = (
    (0.87, 0.51, 0.40),
    (0.62, 0.42, 0.71),
    (0.73, 0.40, 0.16),
    (0.95, 0.84, 0.57),
    (0.85, 0.40, 0.31),
    (0.56, 0.93, 0.56),
    (0.25, 0.52, 0.77),
    (0.90, 0.86, 0.27),
)


class Segment(NamedTuple):
    """One segment: its `label` inside its `layer` of the file, and its `value` in the merged labelmap."""

    name: str
    layer: int
    label: int
    value: int


def read_nrrd(path: Path, kind: Kind, max_voxels: int) -> Volume:
    """Read one volume, layers merged for a label. InputError if it is none; the size is checked first."""
    with path.open("rb") as file:
        header = _read_header(file)
        spatial = _spatial_axes(header)
        sizes = [int(n) for n in header["sizes"]]
        layers = _layers(header, sizes, spatial, kind)
        shape = check_shape([sizes[axis] for axis in spatial], max_voxels)
        affine = _affine(header, spatial)
        encoding = str(header["encoding"]).lower()
        if encoding not in OPENERS:
            raise InputError(f"has encoding {encoding}; raw, gzip and bzip2 are supported")
        stored = _dtype(header)
        if not encoding.startswith("bz"):
            needed = int(np.prod(shape, dtype=np.int64)) * layers * stored.itemsize
            check_room(path, needed, compressed=encoding != "raw")
        out_dtype, decode = decoder(kind, stored)
        if layers > 1:
            decode = _merger(_segments(header, layers), decode)
        block = (layers, *shape) if layers > 1 else shape
        return Volume(read_voxels(OPENERS[encoding](file), block, stored, out_dtype, decode), affine)


def read_segments(path: str | Path) -> dict[str, int]:
    """Segment names and their values in what `read_volume(path, kind="label")` returns, in the order of the file.

    Empty for a file that names no segments. A name that occurs twice gets a number.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path.name}: no such file")
    with reading(path.name), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return {}
        file.seek(0)
        header = _read_header(file)
        sizes = [int(n) for n in header["sizes"]]
        segments = _segments(header, _layers(header, sizes, _spatial_axes(header), "label"))
    names: dict[str, int] = {}
    for segment in segments:
        name, copy = segment.name, 2
        while name in names:
            name, copy = f"{segment.name} ({copy})", copy + 1
        names[name] = segment.value
    return names


def _header_lines(file: IO[bytes]) -> Iterator[str]:
    left = MAX_HEADER_BYTES
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return
        yield text


def _read_header(file: IO[bytes]) -> Mapping[str, Any]:
    """The parsed header; leaves the file at the first byte of data."""
    import nrrd

    lines = list(_header_lines(file))
    try:
        # Decoded lines, as pynrrd drops what is not ASCII from segment names.
        header: Mapping[str, Any] = nrrd.read_header(iter(lines))
        count = int(header["dimension"])
        complete = len(header["sizes"]) == count and {"type", "encoding"} <= header.keys()
    except (nrrd.NRRDError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise InputError("has a broken NRRD header") from error
    if not complete:
        raise InputError("has an incomplete NRRD header")
    if {"data file", "datafile"} & header.keys():
        raise InputError("is a detached NRRD header (.nhdr); store header and voxels in one .nrrd file")
    if any(int(header.get(key, 0)) for key in ("byte skip", "byteskip", "line skip", "lineskip")):
        raise InputError("skips bytes or lines before its voxels, which is not supported")
    return header


def _spatial_axes(header: Mapping[str, Any]) -> list[int]:
    """The file's axes that have a direction in space, fastest first."""
    directions = header.get("space directions")
    if directions is None or header.get("space") is None:
        sizes = [int(n) for n in header["sizes"]]
        if len(sizes) < 3:
            check_shape(sizes, 0)
        raise InputError("has no orientation (NRRD space and space directions): left and right are unknown")
    rows = np.atleast_2d(np.asarray(directions, dtype=np.float64))
    if len(rows) != len(header["sizes"]):
        raise InputError("has a broken NRRD header (as many space directions as sizes are needed)")
    return [axis for axis, row in enumerate(rows) if not np.isnan(row).all()]


def _layers(header: Mapping[str, Any], sizes: Sequence[int], spatial: Sequence[int], kind: Kind) -> int:
    """How many labelmaps are interleaved: 1 for a plain volume. InputError for frames, colours and vectors."""
    others = [axis for axis in range(len(sizes)) if axis not in spatial and sizes[axis] != 1]
    if not others:
        return 1
    kinds = list(header.get("kinds") or [])
    axis_kind = str(kinds[others[0]]).lower() if len(kinds) == len(sizes) else "unknown"
    if "color" in axis_kind or "vector" in axis_kind or "matrix" in axis_kind or axis_kind == "complex":
        raise InputError("holds colours, vectors or complex numbers; one real value for each voxel is needed")
    if kind == "label" and others == [0] and any(SEGMENT_KEY.fullmatch(key) for key in header):
        if not 0 < sizes[0] <= MAX_LABELS:
            raise InputError(f"has {sizes[0]} layers; segments lie in 1 to {MAX_LABELS}")
        return sizes[0]
    raise InputError(f"holds {sizes[others[0]]} frames (4D); a single volume is needed")


def _affine(header: Mapping[str, Any], spatial: Sequence[int]) -> NDArray[np.float64]:
    space = str(header["space"]).lower()
    if space not in SPACES:
        raise InputError(
            f"has NRRD space {space}; left-posterior-superior, right-anterior-superior and LAS are supported"
        )
    affine = np.eye(4)
    try:
        affine[:3, :3] = np.asarray(header["space directions"], dtype=np.float64)[list(spatial)].T
        affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64)
    except ValueError as error:
        raise InputError("has a broken NRRD header (space directions or origin)") from error
    affine[:3] *= np.array(SPACES[space])[:, None]
    return affine


def _dtype(header: Mapping[str, Any]) -> np.dtype[Any]:
    name = str(header["type"]).lower()
    if name not in DTYPES:
        raise InputError(f"has voxels of type {name}; whole or real numbers of up to 64 bits are supported")
    dtype = np.dtype(DTYPES[name])
    if dtype.itemsize == 1:
        return dtype
    endian = str(header.get("endian", "")).lower()
    if endian not in ("little", "big"):
        raise InputError("has a broken NRRD header (no endian)")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _segments(header: Mapping[str, Any], layers: int) -> list[Segment]:
    """The segments the header names. Labels that are unique are kept; those repeated across layers become 1..N."""
    found = sorted({int(match[1]) for key in header if (match := SEGMENT_KEY.fullmatch(key))})
    try:
        segments = [
            Segment(
                name=str(header.get(f"Segment{n}_Name") or header[f"Segment{n}_ID"]),
                # Before 4.11 Slicer wrote neither field: one layer of zeros and ones for each segment.
                layer=int(header.get(f"Segment{n}_Layer", position if layers > 1 else 0)),
                label=(label := int(header.get(f"Segment{n}_LabelValue", 1))),
                value=label,
            )
            for position, n in enumerate(found)
        ]
    except (KeyError, ValueError) as error:
        raise InputError("has a broken segment in its header") from error
    if any(not 0 <= s.layer < layers or not 0 < s.label <= MAX_LABELS for s in segments) or len(segments) > MAX_LABELS:
        raise InputError("has segments outside its layers, or labels outside 1 to 255")
    if layers > 1 and len({s.label for s in segments}) < len(segments):
        return [s._replace(value=value) for value, s in enumerate(segments, start=1)]
    return segments


def _merger(segments: Sequence[Segment], decode: Decode) -> Decode:
    """Takes a slab of layers [L, I, J, k] to one labelmap [I, J, k]."""

    def merge(slab: NDArray[Any]) -> NDArray[Any]:
        labels = to_label(decode(slab))
        merged = np.zeros(labels.shape[1:], np.uint8, order="F")
        for segment in segments:
            merged[labels[segment.layer] == segment.label] = segment.value
        return merged

    return merge


def write_nrrd(volume: Volume, stream: IO[bytes], *, compress: bool, segments: Mapping[str, int] | None = None) -> None:
    """Write in LPS space; with `segments` (names to values) as a segmentation that 3D Slicer opens as such."""
    voxels = storable(volume.voxels)
    affine = RAS_TO_LPS @ volume.affine[:3]
    vectors = [f"({','.join(repr(float(x)) for x in column)})" for column in affine.T]
    lines = [
        "NRRD0004",
        f"type: {STORED_TYPES[voxels.dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, voxels.shape))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {vectors[3]}",
    ]
    if segments is not None:
        lines += _segment_lines(voxels, segments)
    stream.write(("\n".join(lines) + "\n\n").encode())
    write_voxels(stream, voxels, header=b"", compress=compress)


def _segment_lines(voxels: NDArray[Any], segments: Mapping[str, int]) -> list[str]:
    lines = []
    for n, (name, value) in enumerate(segments.items()):
        fields = {
            "ID": f"Segment_{n + 1}",
            "Name": " ".join(name.split()),
            "NameAutoGenerated": "0",
            "Color": " ".join(map(str, COLOURS[n % len(COLOURS)])),
            "ColorAutoGenerated": "1",
            "Extent": _extent(voxels == value),
            "LabelValue": str(value),
            "Layer": "0",
            "Tags": "",
        }
        lines += [f"Segment{n}_{key}:={text}" for key, text in fields.items()]
    return [
        *lines,
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]


def _extent(mask: NDArray[np.bool_]) -> str:
    """First and last index along each axis, as Slicer has it; "0 -1" for an empty segment."""
    plane = mask.any(axis=2)
    bounds: list[int] = []
    for filled in (plane.any(axis=1), plane.any(axis=0), mask.any(axis=(0, 1))):
        inside = np.flatnonzero(filled)
        bounds += [int(inside[0]), int(inside[-1])] if inside.size else [0, -1]
    return " ".join(map(str, bounds))
