"""DICOM series: what a folder holds, and one series as a volume in HU."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError, NotFoundError
from polycl.volume.checks import MAX_VOXELS, check_shape, reading
from polycl.volume.core import Volume
from polycl.volume.dicom_frames import Frame, frames_of, read_header
from polycl.volume.dicom_stack import Stack, arrange

THREADS = 2
INT16 = np.iinfo(np.int16)
MAX_SHIFT = 1 << 30
"""An intercept that still fits whole numbers beside the stored values."""
Source = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class SeriesInfo:
    """A series as found: its UID, modality and files. No patient data."""

    uid: str
    modality: str
    files: tuple[Path, ...]


class _TooWide(Exception):
    """A value does not fit 16 bits."""


def list_series(source: Source) -> list[SeriesInfo]:
    """The DICOM series in a folder (and below), or among the given files, by UID. Other files are passed over."""
    return [
        SeriesInfo(uid, str(next(iter(headers.values())).Modality), tuple(headers))
        for uid, headers in sorted(_scan(source).items())
    ]


def read_series(
    source: Source, *, series_uid: str | None = None, allow_any_modality: bool = False, max_voxels: int = MAX_VOXELS
) -> Volume:
    """One series of a folder (and below), or of the given files, as a volume in HU [column, row, slice].

    Slices are ordered by position along their normal, whatever the order of files. Voxels are int16 where the rescale
    slope is 1, the intercept whole and the values fit; otherwise float32. InputError if the source has no DICOM files,
    or several series and no `series_uid`, or if the series is no regular stack of CT slices; NotFoundError for an
    unknown `series_uid`.
    """
    name = Path(source).name if isinstance(source, str | Path) else "DICOM files"
    with reading(name):
        return stack_series(source, series_uid=series_uid, allow_any_modality=allow_any_modality, max_voxels=max_voxels)


def stack_series(source: Source, *, series_uid: str | None = None, allow_any_modality: bool, max_voxels: int) -> Volume:
    """`read_series`, whose errors do not name the source yet."""
    stack = _stack(source, series_uid, allow_any_modality)
    shape = check_shape((stack.frames[0].columns, stack.frames[0].rows, len(stack.frames)), max_voxels)
    middle = stack.frames[len(stack.frames) // 2]
    return Volume(_decode(stack.frames, shape), stack.affine, middle.window)


def read_stack(source: Source, *, series_uid: str | None = None) -> Stack:
    """The images of one series in the order of `read_series`, and the affine of their voxels, without the voxels.

    Raises what `read_series` raises for what is no regular stack of CT slices.
    """
    with reading(Path(source).name if isinstance(source, str | Path) else "DICOM files"):
        return _stack(source, series_uid, False)


def _stack(source: Source, series_uid: str | None, allow_any_modality: bool) -> Stack:
    headers = _choose(_scan(source), series_uid, allow_any_modality)
    frames = [
        frame
        for path, header in headers.items()
        for frame in frames_of(header, path, allow_any_modality=allow_any_modality)
    ]
    return arrange(frames, _same_pixels)


def _files(source: Source) -> list[Path]:
    if not isinstance(source, str | Path):
        return sorted(Path(path) for path in source)
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise NotFoundError(f"{source.name}: no such file or folder")
    paths = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    return sorted(path for path in paths if _may_be_dicom(path))


def _may_be_dicom(path: Path) -> bool:
    """Pipes, devices and what a system shows as empty files are not opened: that might never return."""
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    try:
        return path.is_file() and (path.suffix.lower() == ".dcm" or path.stat().st_size > 0)
    except OSError:
        return False


def _scan(source: Source) -> dict[str, dict[Path, Any]]:
    """Headers by file, by series UID."""
    files = _files(source)
    found: dict[str, dict[Path, Any]] = defaultdict(dict)
    with ThreadPoolExecutor(THREADS) as pool:
        for path, header in zip(files, pool.map(read_header, files), strict=True):
            if header is not None:
                found[str(header.SeriesInstanceUID)][path] = header
    return found


def _choose(
    found: Mapping[str, Mapping[Path, Any]], series_uid: str | None, allow_any_modality: bool
) -> Mapping[Path, Any]:
    """The asked-for series, or the only one; without a choice, what is not CT (as a segmentation) steps back."""
    if not found:
        raise InputError("holds no DICOM files")
    if series_uid is not None:
        if series_uid not in found:
            raise NotFoundError(f"no series {series_uid}; there are {', '.join(sorted(found))}")
        return found[series_uid]
    images = {
        uid: headers
        for uid, headers in found.items()
        if allow_any_modality or next(iter(headers.values())).Modality == "CT"
    }
    candidates = images or found
    if len(candidates) > 1:
        uids = ", ".join(sorted(candidates)[:5])
        raise InputError(f"holds {len(candidates)} series; choose one by its series UID: {uids}")
    return next(iter(candidates.values()))


def _pixels(path: Path) -> NDArray[Any]:
    """The stored values of a file: [frame, row, column]."""
    from pydicom import dcmread

    try:
        stored = np.asarray(dcmread(path).pixel_array)
    except Exception as error:  # pydicom and its decoders raise nearly anything on broken or unknown pixel data
        raise InputError(
            "holds an image that cannot be decoded: truncated, corrupt or of an unsupported transfer syntax"
        ) from error
    return stored.reshape(-1, *stored.shape[-2:])


def _same_pixels(first: Frame, second: Frame) -> bool:
    def values(frame: Frame) -> NDArray[np.float64]:
        return _pixels(frame.path)[frame.number or 0] * frame.slope + frame.intercept

    return np.array_equal(values(first), values(second))


def _decode(frames: Sequence[Frame], shape: tuple[int, int, int]) -> NDArray[Any]:
    """HU of the sorted frames as [column, row, slice], with contiguous slices."""
    if all(frame.slope == 1 and frame.intercept.is_integer() and abs(frame.intercept) < MAX_SHIFT for frame in frames):
        try:
            return _decode_as(np.dtype(np.int16), frames, shape)
        except _TooWide:
            pass
    return _decode_as(np.dtype(np.float32), frames, shape)


def _decode_as(dtype: np.dtype[Any], frames: Sequence[Frame], shape: tuple[int, int, int]) -> NDArray[Any]:
    voxels = np.empty(shape, dtype, order="F")
    by_file: dict[Path, list[tuple[int, Frame]]] = defaultdict(list)
    for k, frame in enumerate(frames):
        by_file[frame.path].append((k, frame))

    def fill(item: tuple[Path, list[tuple[int, Frame]]]) -> None:
        path, wanted = item
        stored = _pixels(path)
        for k, frame in wanted:
            number = frame.number or 0
            if stored.shape[0] <= number or stored.shape[1:] != (frame.rows, frame.columns):
                raise InputError("holds an image whose pixels do not match its header")
            voxels[:, :, k] = _to_hu(stored[number], frame, dtype).T

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, by_file.items()):
            pass
    return voxels


def _to_hu(image: NDArray[Any], frame: Frame, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "i":
        values = np.add(image, int(frame.intercept), dtype=np.int64 if image.dtype.itemsize > 2 else np.int32)
        if values.min() < INT16.min or values.max() > INT16.max:
            raise _TooWide
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        values = (image.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("holds NaN or infinite voxels; every voxel needs a finite value")
    return values
