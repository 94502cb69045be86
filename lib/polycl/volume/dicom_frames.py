"""The images inside DICOM files: which series they belong to, where each lies, and how to get HU from it.

A file holds one image, or, as an enhanced CT, many; `Frame` is the same for both.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.volume.checks import ANY_VALUES_HINT
from polycl.window import Window

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
DICOMDIR = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, eq=False)
class Frame:
    """One axial, coronal, sagittal or oblique image. Lengths in mm, positions and directions in DICOM's LPS."""

    path: Path
    number: int | None  # of the frame in an enhanced file; None for a file with one image
    sop_uid: str
    rows: int
    columns: int
    position: NDArray[np.float64]  # [3], centre of the first pixel
    orientation: NDArray[np.float64]  # [2, 3], directions of increasing column and row index
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float | None
    slope: float
    intercept: float
    window: Window | None = None


def broken() -> tuple[type[Exception], ...]:
    """What pydicom raises where a value that is asked for is not what its type says; for `except`."""
    from pydicom.errors import BytesLengthException

    return (
        *(ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError, struct.error),
        *(EOFError, OSError, RecursionError, BytesLengthException),  # of what is read when it is asked for
    )


def read_header(path: Path) -> Any | None:
    """The attributes needed here, without pixels; None for a file that is no DICOM, InputError for a broken one.

    A broken file is not passed over: the volume would silently lose a slice.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        for name in ("SeriesInstanceUID", "Modality"):  # values are only made out when they are asked for
            header.get(name)
    except InvalidDicomError as error:
        if path.suffix.lower() == ".dcm":
            raise InputError("holds a .dcm file that is empty, truncated or no DICOM") from error
        return None
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise InputError("holds a truncated or corrupt DICOM file") from error
    if header.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return None
    if "SeriesInstanceUID" not in header or "Modality" not in header:
        raise InputError("holds a truncated DICOM file, or one without a series UID and modality")
    return header


def frames_of(header: Any, path: Path, *, allow_any_modality: bool) -> list[Frame]:
    """The images of one file. InputError for what is no slice of a CT, or says too little about its place."""
    try:
        return _frames_of(header, path, allow_any_modality)
    except broken() as error:
        raise InputError("holds a DICOM file with a broken attribute") from error


def _frames_of(header: Any, path: Path, allow_any_modality: bool) -> list[Frame]:
    _check_is_slice(header, allow_any_modality)
    if header.SOPClassUID != ENHANCED_CT:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise InputError("holds a multi-frame image that is not an enhanced CT, which is not supported")
        return [_frame(header, path, None, [header])]
    shared = _first(header.get("SharedFunctionalGroupsSequence"))
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        raise InputError("holds an enhanced CT without per-frame positions")
    return [
        _frame(header, path, number, [*_groups(own), *_groups(shared), header]) for number, own in enumerate(per_frame)
    ]


def _check_is_slice(header: Any, allow_any_modality: bool) -> None:
    modality = str(header.Modality)
    if str(header.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        raise InputError("holds a secondary capture (a screenshot), not CT slices")
    if "Rows" not in header or "Columns" not in header:
        raise InputError(f"holds no images (modality {modality}); a CT series is needed")
    if modality != "CT" and not allow_any_modality:
        raise InputError(f"has modality {modality}; a CT is needed; {ANY_VALUES_HINT}")
    if "LOCALIZER" in [str(value).upper() for value in _values(header.get("ImageType"))]:
        raise InputError("holds a localizer (scout) image; a series of slices is needed")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if int(header.get("SamplesPerPixel") or 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise InputError(f"holds colour images ({photometric}); one value for each pixel is needed")


def _frame(header: Any, path: Path, number: int | None, sources: Sequence[Any]) -> Frame:
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise InputError("holds images without position, orientation or pixel spacing; a CT series is needed")
    slope = _numbers(sources, "RescaleSlope", 1, default=1.0)
    intercept = _numbers(sources, "RescaleIntercept", 1, default=0.0)
    if slope is None or intercept is None or slope[0] == 0:
        raise InputError("holds images with a broken rescale slope or intercept")
    thickness = _numbers(sources, "SliceThickness", 1)
    if thickness is None or thickness[0] <= 0:
        thickness = _numbers(sources, "SpacingBetweenSlices", 1)
    return Frame(
        path=path,
        number=number,
        sop_uid=str(header.get("SOPInstanceUID", "")),
        rows=int(header.Rows),
        columns=int(header.Columns),
        position=position,
        orientation=_orthonormal(orientation.reshape(2, 3)),
        spacing=(float(spacing[0]), float(spacing[1])),
        thickness=None if thickness is None or thickness[0] == 0 else abs(float(thickness[0])),
        slope=float(slope[0]),
        intercept=float(intercept[0]),
        window=_window(sources),
    )


def _window(sources: Sequence[Any]) -> Window | None:
    """The first of the windows that the image suggests, as viewers take; None if it has none, or a broken one."""
    found = next((source for source in sources if source.get("WindowCenter") is not None), None)
    if found is None:
        return None
    try:
        centre, width = (float(_values(found.get(name))[0]) for name in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError, IndexError):
        return None
    return Window.of_dicom(centre, width, str(found.get("VOILUTFunction") or "LINEAR").strip().upper())


def _orthonormal(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row and column directions [2, 3] freed of rounding. InputError if they were not unit and at right angles."""
    if np.abs(directions @ directions.T - np.eye(2)).max() > 1e-2:
        raise InputError("holds images whose orientation is not two unit vectors at right angles")
    first = directions[0] / np.linalg.norm(directions[0])
    second = directions[1] - (directions[1] @ first) * first
    return np.stack([first, second / np.linalg.norm(second)])


def _groups(functional_groups: Any | None) -> Iterable[Any]:
    """The items inside one frame's (or the shared) functional groups."""
    for element in functional_groups or ():
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _first(sequence: Any | None) -> Any | None:
    return sequence[0] if sequence else None


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _numbers(sources: Sequence[Any], name: str, count: int, default: float | None = None) -> NDArray[np.float64] | None:
    """`count` finite numbers from the first source that has the attribute; `default` if none has; None if broken."""
    for source in sources:
        try:
            numbers = np.array([float(value) for value in _values(source.get(name))])
        except (TypeError, ValueError):
            return None
        if numbers.size:
            return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
    return None if default is None else np.full(count, default)
