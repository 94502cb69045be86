"""A label map as DICOM SEG: one segment for each structure, on the very slices of the series it was made on.

Binary, one bit a pixel, and only the frames that hold something. highdicom makes the object from which segment is on
which slice; the pixels are packed here, eight frames at a time, because highdicom unpacks all of them to bytes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polycl.dicomseg.source import SourceSeries, read_headers
from polycl.dicomseg.terms import Code, cielab, term_of
from polycl.errors import InputError
from polycl.files import replacing
from polycl.labels.placing import count_by_slice, place
from polycl.volume import Volume

PRIVATE_GROUP, PRIVATE_CREATOR, PRIVATE_VALUE = 0x0077, "POLYCL", 0x01
"""Where a segment keeps the value that it had in the label: segment numbers must count from 1 without gaps."""
FRAMES_AT_ONCE = 8
"""So many frames of any size fill whole bytes."""
LONGEST_LABEL, LONGEST_DESCRIPTION = 64, 1024
NO_ALGORITHM = "unknown"
FAMILY = Code("123110", "DCM", "Artificial Intelligence")
FILLED = {
    "PatientID": "",
    "PatientName": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "AccessionNumber": "",
    "StudyID": "",
    "StudyDate": "",
    "StudyTime": "",
    "ReferringPhysicianName": "",
}
"""What anonymised files may lack; DICOM wants it there, empty."""


@dataclass(frozen=True)
class Algorithm:
    """Who outlined a segment: a person (MANUAL), a program (AUTOMATIC), or a program that a person guided or mended."""

    kind: Literal["MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"] = "MANUAL"
    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class Segment:
    """One structure of a label map: its name, its value there, and who outlined it."""

    name: str
    value: int
    algorithm: Algorithm = Algorithm()


@dataclass(frozen=True)
class Identity:
    """What tells one SEG from another. The same UIDs again are the same object to a PACS: it keeps one."""

    series_uid: str
    sop_uid: str
    series_number: int = 1000
    instance_number: int = 1
    description: str = ""
    creator: str = ""

    @classmethod
    def of(cls, *parts: object, **others: Any) -> Identity:
        """UIDs that follow from `parts`."""
        from pydicom.uid import generate_uid

        text = [str(part) for part in parts]
        series, instance = (str(generate_uid(entropy_srcs=["polycl", what, *text])) for what in ("series", "instance"))
        return cls(series, instance, **others)


def make_seg(label: Volume, segments: Sequence[Segment], source: SourceSeries, identity: Identity) -> Any:
    """The DICOM SEG (a pydicom dataset) of `label`, a uint8 label map on the grid of `source` in any axis order.

    Segments are numbered in the order given. One without a voxel has no frame; a label without any has one empty frame,
    as DICOM wants at least one. InputError for a label on another grid, for values that no segment names, and for a
    series that cannot be referred to.
    """
    placed = place(label, source.grid)
    counts = count_by_slice(placed)
    check_segments(segments, counts)
    headers = _source_headers(source)
    presence = np.stack([counts[:, segment.value] > 0 for segment in segments], axis=-1)
    if not presence.any():
        presence[0, 0] = True
    order = _order_in_file(source)
    try:
        dataset = _describe(headers, presence[order], segments, source, identity)
    except AttributeError as error:  # highdicom takes attributes of the source as they are
        raise InputError("the series lacks attributes that a DICOM SEG takes from it") from error
    _check_references(dataset, source)
    dataset.Rows, dataset.Columns = source.grid.shape[1], source.grid.shape[0]
    dataset.SegmentsOverlap = "NO"
    dataset.PixelData = _packed(dataset, placed, [segment.value for segment in segments], source)
    return dataset


def write_seg(label: Volume, segments: Sequence[Segment], source: SourceSeries, path: Path, identity: Identity) -> None:
    """Write `make_seg` to a file, whole or not at all."""
    dataset = make_seg(label, segments, source, identity)
    try:
        with replacing(path) as stream:
            dataset.save_as(stream)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written: {error.strerror or 'input/output error'}") from error


def check_segments(segments: Sequence[Segment], counts: NDArray[np.int64]) -> None:
    """InputError unless `segments` name all values that occur, by `count_by_slice`, and each value once."""
    if not segments:
        raise InputError("the label names no structure, and holds none: there is nothing to write")
    values = [segment.value for segment in segments]
    if len(set(values)) != len(values) or not all(0 < value <= 255 for value in values):
        raise InputError("the values of segments must differ and be 1 to 255")
    unnamed = [str(value) for value in np.flatnonzero(counts.sum(axis=0)) if value and value not in values]
    if unnamed:
        raise InputError(f"the label holds values without a name: {', '.join(unnamed)}")


def _source_headers(source: SourceSeries) -> list[Any]:
    """The headers of the series for highdicom, which sees images of a single pixel: it gets no larger ones."""
    headers = read_headers(source.paths())
    if len(headers) > 1 and any("NumberOfFrames" in header for header in headers):
        raise InputError("the series has several multi-frame files, which a DICOM SEG cannot refer to slice by slice")
    for header in headers:
        if not header.get("SOPInstanceUID"):
            raise InputError("the series has images without SOPInstanceUID, which a DICOM SEG cannot refer to")
        for name, value in FILLED.items():
            if name not in header:
                setattr(header, name, value)
        if not header.get("StudyInstanceUID"):
            raise InputError("the series has no StudyInstanceUID, so that a DICOM SEG cannot be filed with it")
        if not header.get("FrameOfReferenceUID"):
            header.FrameOfReferenceUID = Identity.of("frame of reference", source.uid).series_uid
        if "NumberOfFrames" not in header:
            header.SpacingBetweenSlices = _decimal(source.grid.spacing[2])
            header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
        header.Rows = header.Columns = 1
    return headers


def _order_in_file(source: SourceSeries) -> NDArray[np.int64]:
    """For each image that highdicom sees, the slice it is: frames of one file come in the order of the file."""
    if len(source.paths()) == len(source.frames):
        return np.arange(len(source.frames))
    return np.argsort([frame.number or 0 for frame in source.frames])


def _describe(
    headers: list[Any], presence: NDArray[np.bool_], segments: Sequence[Segment], source: SourceSeries, who: Identity
) -> Any:
    """The SEG with everything but its pixels."""
    from highdicom.seg import Segmentation, SegmentationTypeValues

    import polycl

    first = headers[0]
    names = ", ".join(segment.name for segment in segments)
    dataset = Segmentation(
        source_images=headers,
        pixel_array=presence[:, None, None, :].astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, segment) for number, segment in enumerate(segments, start=1)],
        series_instance_uid=who.series_uid,
        series_number=who.series_number,
        sop_instance_uid=who.sop_uid,
        instance_number=who.instance_number,
        manufacturer="PolyCL",
        manufacturer_model_name="PolyCL for MONAI Label",
        software_versions=polycl.__version__,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description=_text(who.description or names, LONGEST_LABEL),
        content_creator_name=_person(who.creator),
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of structures may be in any script
    dataset.SeriesDescription = _text(who.description or f"Segmentation: {names}", LONGEST_LABEL)
    for name in ("StudyDescription", "PositionReferenceIndicator"):
        if name in first:
            setattr(dataset, name, first.get(name))
    dataset.PositionReferenceIndicator = dataset.get("PositionReferenceIndicator") or ""
    return dataset


def _description(number: int, segment: Segment) -> Any:
    from highdicom.seg import SegmentDescription

    term = term_of(segment.name)
    described = SegmentDescription(
        segment_number=number,
        segment_label=_text(segment.name, LONGEST_LABEL) or f"label_{segment.value}",
        segmented_property_category=_coded(term.category),
        segmented_property_type=_coded(term.kind),
        algorithm_type=segment.algorithm.kind,
        algorithm_identification=_identified(segment.algorithm),
        anatomic_regions=[_coded(term.region)] if term.region else None,
    )
    if term.side:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_coded(term.side)]
    if described.SegmentLabel != segment.name:  # too long for a label, or with a character that it cannot hold
        described.SegmentDescription = segment.name[:LONGEST_DESCRIPTION]
    described.RecommendedDisplayCIELabValue = list(cielab(term.colour))
    block = described.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(PRIVATE_VALUE, "US", segment.value)
    return described


def _identified(algorithm: Algorithm) -> Any | None:
    if algorithm.kind == "MANUAL":
        return None
    from highdicom import AlgorithmIdentificationSequence

    return AlgorithmIdentificationSequence(
        name=_text(algorithm.name, LONGEST_LABEL) or NO_ALGORITHM,
        family=_coded(FAMILY),
        version=_text(algorithm.version, LONGEST_LABEL) or NO_ALGORITHM,
    )


def _coded(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _check_references(dataset: Any, source: SourceSeries) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        if not group.DerivationImageSequence:
            raise InputError("the slices of the series have no place that a DICOM SEG could refer to")


def _packed(dataset: Any, placed: NDArray[np.uint8], values: list[int], source: SourceSeries) -> bytes:
    packed = bytearray()
    frames = list(_frames(dataset, source))
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        bits = [placed[:, :, k].T.ravel() == values[number - 1] for number, k in frames[start : start + FRAMES_AT_ONCE]]
        packed += np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    return bytes(packed) + b"\0" * (len(packed) % 2)


def _frames(dataset: Any, source: SourceSeries) -> Iterator[tuple[int, int]]:
    """Segment number and slice of each frame, as highdicom ordered them."""
    slices = {(frame.sop_uid, frame.number): k for k, frame in enumerate(source.frames)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = image.get("ReferencedFrameNumber")
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        yield int(number), slices[str(image.ReferencedSOPInstanceUID), None if frame is None else int(frame) - 1]


def _person(name: str) -> str:
    """A login or a client's name as a family name of DICOM; the program's own without one."""
    return f"{_text(name.replace('^', ' ').replace('=', ' '), LONGEST_LABEL - 1) or 'PolyCL'}^"


def _decimal(value: float) -> str:
    return f"{value:.10g}"


def _text(value: str, longest: int) -> str:
    """A text as DICOM takes it: no backslash, which separates values, and no longer than its kind may be."""
    return " ".join(value.replace("\\", " ").split())[:longest].strip()
