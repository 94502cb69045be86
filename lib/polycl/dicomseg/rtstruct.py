"""A label map as RTSTRUCT: outlines of each structure on each slice, as planning systems want them.

Outlines run half-way between voxel centres inside and outside, so that filling them by the even-odd rule gives back the
very voxels. A hole is an outline of its own within another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.dicomseg.source import SourceSeries, read_headers
from polycl.dicomseg.terms import term_of
from polycl.dicomseg.writing import FILLED, Identity, Segment, check_segments
from polycl.errors import InputError
from polycl.files import replacing
from polycl.labels.placing import count_by_slice, place
from polycl.volume import Volume
from polycl.volume.dicom_frames import Frame

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"


def make_rtstruct(label: Volume, segments: Sequence[Segment], source: SourceSeries, identity: Identity) -> Any:
    """The RTSTRUCT (a pydicom dataset) of `label`, a uint8 label map on the grid of `source` in any axis order.

    Structures without a voxel are named and have no outline. InputError as `make_seg`, and for a multi-frame series.
    """
    placed = place(label, source.grid)
    counts = count_by_slice(placed)
    check_segments(segments, counts)
    if len(source.paths()) != len(source.frames):
        raise InputError("RTSTRUCT of a multi-frame series is not supported; write a DICOM SEG")
    header = read_headers([source.frames[0].path])[0]
    dataset = _frame(header, source, identity)
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, segment in enumerate(segments, start=1):
        slices = [int(k) for k in np.flatnonzero(counts[:, segment.value])]
        outlines = [
            _contour(outline, source.frames[k], str(header.SOPClassUID))
            for k in slices
            for outline in _outlines(placed[:, :, k] == segment.value)
        ]
        _add(dataset, number, segment, outlines, str(dataset.FrameOfReferenceUID))
    return dataset


def write_rtstruct(
    label: Volume, segments: Sequence[Segment], source: SourceSeries, path: Path, identity: Identity
) -> None:
    """Write `make_rtstruct` to a file, whole or not at all."""
    dataset = make_rtstruct(label, segments, source, identity)
    try:
        with replacing(path) as stream:
            dataset.save_as(stream, write_like_original=False)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written: {error.strerror or 'input/output error'}") from error


def _outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed outlines [points, 2] of a slice, in indices of column and row; corners that touch stay apart."""
    from skimage.measure import find_contours

    padded = np.pad(mask, 1).astype(np.float32)
    traced = find_contours(padded, 0.5, fully_connected="low")  # type: ignore[no-untyped-call]
    return [outline[:-1] - 1 for outline in traced]


def _contour(outline: NDArray[np.float64], frame: Frame, sop_class: str) -> Any:
    from pydicom.dataset import Dataset

    across = outline * (frame.spacing[1], frame.spacing[0])
    points = frame.position + across @ frame.orientation
    item, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID = sop_class
    image.ReferencedSOPInstanceUID = frame.sop_uid
    item.ContourImageSequence = [image]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{value:.5f}".rstrip("0").rstrip(".") for value in points.ravel()]
    return item


def _frame(header: Any, source: SourceSeries, identity: Identity) -> Any:
    """The RTSTRUCT without structures."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    import polycl

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = identity.sop_uid
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name, value in FILLED.items():
        setattr(dataset, name, header.get(name) or value)
    now = datetime.now()
    dataset.SOPClassUID, dataset.SOPInstanceUID = STORAGE, identity.sop_uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = source.study_uid, identity.series_uid
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "RTSTRUCT", identity.series_number, 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "PolyCL", "PolyCL for MONAI Label"
    dataset.SoftwareVersions, dataset.OperatorsName = polycl.__version__, ""
    dataset.SeriesDescription = identity.description or "Structures"
    dataset.StructureSetLabel = "STRUCTURES"
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    uid = source.frame_of_reference or Identity.of("frame of reference", source.uid).series_uid
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid, ""
    dataset.ReferencedFrameOfReferenceSequence = [_references(header, source, uid)]
    return dataset


def _references(header: Any, source: SourceSeries, frame_of_reference: str) -> Any:
    from pydicom.dataset import Dataset

    place, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.uid
    series.ContourImageSequence = []
    for frame in source.frames:
        image = Dataset()
        image.ReferencedSOPClassUID = header.SOPClassUID
        image.ReferencedSOPInstanceUID = frame.sop_uid
        series.ContourImageSequence.append(image)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = DETACHED_STUDY, source.study_uid
    study.RTReferencedSeriesSequence = [series]
    place.FrameOfReferenceUID = frame_of_reference
    place.RTReferencedStudySequence = [study]
    return place


def _add(dataset: Any, number: int, segment: Segment, outlines: list[Any], frame_of_reference: str) -> None:
    from pydicom.dataset import Dataset

    structure, contours, observed = Dataset(), Dataset(), Dataset()
    structure.ROINumber = contours.ReferencedROINumber = observed.ReferencedROINumber = number
    structure.ReferencedFrameOfReferenceUID = frame_of_reference
    structure.ROIName = segment.name[:64]
    structure.ROIGenerationAlgorithm = segment.algorithm.kind
    contours.ROIDisplayColor = list(term_of(segment.name).colour)
    if outlines:
        contours.ContourSequence = outlines
    observed.ObservationNumber = number
    observed.RTROIInterpretedType, observed.ROIInterpreter = "ORGAN", ""
    dataset.StructureSetROISequence.append(structure)
    dataset.ROIContourSequence.append(contours)
    dataset.RTROIObservationsSequence.append(observed)
