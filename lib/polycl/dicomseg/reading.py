"""DICOM SEG as a label map on the grid of the series it refers to, whoever wrote it.

Frames that lie on slices of the series go there, exactly. Those of other programs may lie elsewhere on the same grid
(other axis order, a box of it); what is on any other grid is refused, as nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.dicomseg.source import SourceSeries
from polycl.dicomseg.writing import PRIVATE_CREATOR, PRIVATE_GROUP, PRIVATE_VALUE, Algorithm
from polycl.errors import InputError
from polycl.labels.placing import place
from polycl.volume import Volume
from polycl.volume.dicom_frames import broken
from polycl.volume.dicom_stack import LPS_TO_RAS

SEG_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
SAME_PLACE_MM, SAME_DIRECTION = 0.01, 1e-4
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
MAX_VALUE = 255


@dataclass(frozen=True, eq=False)
class SegLabel:
    """What a SEG holds, on the grid of its series.

    `label`: uint8. `names`: value to name, also of segments without a voxel. `algorithms`: by value, as the SEG says.
    `overlapping`: voxels that several segments claim; the last of them in the order of numbers has them.
    """

    label: Volume
    names: Mapping[int, str]
    algorithms: Mapping[int, Algorithm]
    overlapping: int
    series_uid: str

    def unique_names(self) -> dict[str, int]:
        """Name to value; a name that occurs twice gets a number."""
        names: dict[str, int] = {}
        for value, name in self.names.items():
            given, copy = name, 2
            while given in names:
                given, copy = f"{name} ({copy})", copy + 1
            names[given] = value
        return names


@dataclass(frozen=True, eq=False)
class _SegFrame:
    number: int  # of the segment
    image: str  # SOP instance that it refers to, if any
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]  # [2, 3]
    spacing: NDArray[np.float64]  # between rows, between columns


def read_seg(path: Path, source: SourceSeries) -> SegLabel:
    """The segmentation in the file `path` as a label map of `source`.

    Values are those of the label that it was written from where we wrote it, else the segment numbers. InputError for
    what is no DICOM SEG, one of another series, on another grid, or with more than 255 segments.
    """
    try:
        dataset = _open(path)
        return _read(dataset, source)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except broken() as error:
        raise InputError(f"{path.name}: is a damaged DICOM SEG") from error


def _read(dataset: Any, source: SourceSeries) -> SegLabel:
    _require_of_series(dataset, source)
    values = _values(dataset)
    voxels, overlapping = _assemble(dataset, _frames(dataset), values, source)
    segments = {values[int(item.SegmentNumber)]: item for item in dataset.SegmentSequence}
    return SegLabel(
        label=source.grid.with_voxels(voxels),
        names={value: _name(item) for value, item in segments.items()},
        algorithms={value: _algorithm(item) for value, item in segments.items()},
        overlapping=overlapping,
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
    )


def _open(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(path)
        sop_class = str(dataset.get("SOPClassUID", ""))
    except InvalidDicomError:
        raise InputError("is no DICOM file") from None
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise InputError("is a truncated or corrupt DICOM file") from error
    if sop_class not in SEG_STORAGE:
        raise InputError(f"is no DICOM SEG (modality {dataset.get('Modality') or 'unknown'})")
    if not dataset.get("SegmentSequence") or "PixelData" not in dataset:
        raise InputError("is a DICOM SEG without segments or pixels")
    return dataset


def _require_of_series(dataset: Any, source: SourceSeries) -> None:
    """InputError unless the SEG refers to the series; one that refers to none may lie in the same patient space."""
    referred = {str(item.get("SeriesInstanceUID")) for item in dataset.get("ReferencedSeriesSequence") or ()}
    if source.uid in referred:
        return
    if referred:
        raise InputError(f"belongs to another series ({', '.join(sorted(referred))}), not to {source.uid}")
    if not source.frame_of_reference or str(dataset.get("FrameOfReferenceUID")) != source.frame_of_reference:
        raise InputError(f"refers to no series, and is not in the patient space of {source.uid}")


def _values(dataset: Any) -> dict[int, int]:
    """The value in the label map by segment number."""
    numbers = [int(item.SegmentNumber) for item in dataset.SegmentSequence]
    kept = [_kept_value(item) for item in dataset.SegmentSequence]
    usable = None not in kept and len(set(kept)) == len(kept)
    values = [value for value in kept if value is not None] if usable else numbers
    if len(set(numbers)) != len(numbers) or not all(0 < value <= MAX_VALUE for value in values):
        raise InputError(f"has segments numbered beyond {MAX_VALUE}, or twice; a label map holds {MAX_VALUE} values")
    return dict(zip(numbers, values, strict=True))


def _kept_value(item: Any) -> int | None:
    try:
        value = item.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[PRIVATE_VALUE].value
        if isinstance(value, bytes):  # a PACS that does not know it keeps its bytes
            value = int.from_bytes(value[:2], "little")
        return int(value) if 0 < int(value) <= MAX_VALUE else None
    except (KeyError, TypeError, ValueError):
        return None


def _name(item: Any) -> str:
    label = str(item.get("SegmentLabel") or f"Segment {item.SegmentNumber}")
    longer = str(item.get("SegmentDescription") or "")
    return longer if longer and _kept_value(item) is not None else label


def _algorithm(item: Any) -> Algorithm:
    kind = str(item.get("SegmentAlgorithmType", ""))
    identified = item.get("SegmentationAlgorithmIdentificationSequence")
    version = str(identified[0].get("AlgorithmVersion", "")) if identified else ""
    name = str(item.get("SegmentAlgorithmName") or "")
    if kind == "AUTOMATIC":
        return Algorithm("AUTOMATIC", name, version)
    return Algorithm("SEMIAUTOMATIC" if kind == "SEMIAUTOMATIC" else "MANUAL", name, version)


def _frames(dataset: Any) -> list[_SegFrame]:
    shared = dataset.SharedFunctionalGroupsSequence[0] if dataset.get("SharedFunctionalGroupsSequence") else {}
    labelmap = dataset.get("SegmentationType") == "LABELMAP"

    def group(own: Any, name: str) -> Any:
        found = own.get(name) or shared.get(name)
        if not found:
            raise InputError(f"has frames without {name}")
        return found[0]

    frames = []
    for own in dataset.PerFrameFunctionalGroupsSequence:
        number = 0 if labelmap else int(group(own, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        orientation = group(own, "PlaneOrientationSequence").ImageOrientationPatient
        frame = _SegFrame(
            number=number,
            image=_referred(own),
            position=np.array(group(own, "PlanePositionSequence").ImagePositionPatient, np.float64),
            orientation=np.array(orientation, np.float64).reshape(2, 3),
            spacing=np.array(group(own, "PixelMeasuresSequence").PixelSpacing, np.float64),
        )
        if frame.position.shape != (3,) or frame.spacing.shape != (2,):
            raise InputError("has frames whose place is incomplete")
        frames.append(frame)
    if len(frames) != int(dataset.NumberOfFrames):
        raise InputError("has another number of frames than it describes")
    return frames


def _referred(own: Any) -> str:
    derivation = own.get("DerivationImageSequence")
    images = derivation[0].get("SourceImageSequence") if derivation else None
    return str(images[0].get("ReferencedSOPInstanceUID", "")) if images and len(images) == 1 else ""


def _assemble(
    dataset: Any, frames: Sequence[_SegFrame], values: Mapping[int, int], source: SourceSeries
) -> tuple[NDArray[np.uint8], int]:
    """The label map on the grid of the series, and how many voxels several segments claim."""
    size = (int(dataset.Columns), int(dataset.Rows))
    decode = _decoder(dataset, values)
    slices = [_slice_of(frame, size, source) for frame in frames]
    if all(k is not None for k in slices):
        voxels = np.zeros(source.grid.shape, np.uint8, order="F")
        return voxels, _fill(voxels, [(k or 0) for k in slices], frames, decode)
    box, indices = _own_grid(frames, size, source)
    overlapping = _fill(box.voxels, indices, frames, decode)
    return place(box, source.grid, box=True), overlapping


def _slice_of(frame: _SegFrame, size: tuple[int, int], source: SourceSeries) -> int | None:
    """The slice of the series that the frame covers pixel by pixel, if it does."""
    first = source.frames[0]
    alike = (
        size == source.grid.shape[:2]
        and np.abs(frame.orientation - first.orientation).max() <= SAME_DIRECTION
        and np.allclose(frame.spacing, first.spacing, rtol=1e-4, atol=0)
    )
    if not alike:
        return None
    apart = np.linalg.norm([own.position - frame.position for own in source.frames], axis=1)
    k = int(apart.argmin())
    return k if apart[k] <= SAME_PLACE_MM else None


def _own_grid(frames: Sequence[_SegFrame], size: tuple[int, int], source: SourceSeries) -> tuple[Volume, list[int]]:
    """An empty label map that all frames lie in, with the series' distance of slices, and the slice of each frame."""
    first = frames[0]
    normal = np.cross(*first.orientation)
    directions = source.grid.affine[:3, :3] / np.array(source.grid.spacing)
    axis = int(np.abs((LPS_TO_RAS[:3, :3] @ normal) @ directions).argmax())
    step = source.grid.spacing[axis]
    along = np.array([frame.position @ normal for frame in frames])
    indices = np.rint((along - along.min()) / step).astype(int)
    start = frames[int(along.argmin())].position
    off = [frame.position - start - normal * step * k for frame, k in zip(frames, indices, strict=True)]
    turned = max(float(np.abs(frame.orientation - first.orientation).max()) for frame in frames)
    count = int(indices.max()) + 1
    if turned > SAME_DIRECTION or np.abs(off).max() > 0.1 * step or count > 2 * max(source.grid.shape):
        raise InputError("has frames that are no regular stack on the grid of the series")
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = start
    return Volume(np.zeros((*size, count), np.uint8, order="F"), LPS_TO_RAS @ affine), [int(k) for k in indices]


def _fill(voxels: NDArray[np.uint8], slices: Sequence[int], frames: Sequence[_SegFrame], decode: Any) -> int:
    overlapping = 0
    order = sorted(range(len(frames)), key=lambda index: frames[index].number)
    for index in order:
        target = voxels[:, :, slices[index]]
        values = decode(index, frames[index].number).T
        painted = values > 0
        overlapping += int(np.count_nonzero(target[painted]))
        target[painted] = values[painted]
    return overlapping


def _decoder(dataset: Any, values: Mapping[int, int]) -> Any:
    """A function of a frame's index and segment number that returns its label values [row, column]."""
    kind = str(dataset.get("SegmentationType"))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    count = rows * columns
    if kind == "BINARY" and str(dataset.file_meta.TransferSyntaxUID) in NATIVE:
        data = np.frombuffer(dataset.PixelData, np.uint8)
        if data.size * 8 < count * int(dataset.NumberOfFrames):
            raise InputError("is truncated: it ends before the last pixel")

        def from_bits(index: int, number: int) -> NDArray[np.uint8]:
            start, stop = index * count, (index + 1) * count
            bits = np.unpackbits(data[start // 8 : -(-stop // 8)], bitorder="little")[start % 8 :][:count]
            return bits.reshape(rows, columns) * np.uint8(values[number])

        return from_bits
    try:
        pixels = np.asarray(dataset.pixel_array).reshape(-1, rows, columns)
    except Exception as error:  # pydicom and its decoders raise nearly anything on broken or unknown pixel data
        raise InputError("cannot be decoded: truncated, corrupt or of an unsupported transfer syntax") from error
    if kind == "LABELMAP":
        table = np.zeros(max([*values, int(pixels.max())]) + 1, np.uint8)
        table[list(values)] = list(values.values())
        return lambda index, number: table[pixels[index]]
    half = int(dataset.get("MaximumFractionalValue") or 1) / 2
    return lambda index, number: (pixels[index] >= half).astype(np.uint8) * np.uint8(values[number])
