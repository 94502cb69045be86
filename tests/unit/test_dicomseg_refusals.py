"""DICOM SEG: each way that one cannot be used, and labels that cannot be written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scattered_seg import IDENTITY, affine, labels, other_seg, series

from polycl.dicomseg import Segment, SourceSeries, make_seg, read_seg
from polycl.errors import InputError
from polycl.volume import Volume

pytestmark = pytest.mark.unit


def test_a_seg_of_another_series(written: Path, tmp_path: Path) -> None:
    other = series(tmp_path / "other", seed=7)
    with pytest.raises(InputError, match=r"seg.dcm: belongs to another series .*, not to"):
        read_seg(written, other)


def test_a_seg_of_nothing_known(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    def strip(seg: Any) -> None:
        del seg.ReferencedSeriesSequence
        seg.FrameOfReferenceUID = "1.2.3"

    with pytest.raises(InputError, match="refers to no series"):
        read_seg(other_seg(written, tmp_path / "other.dcm", strip), source)


def test_a_seg_on_another_grid(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    def shift(seg: Any) -> None:
        for frame in seg.PerFrameFunctionalGroupsSequence:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            frame.PlanePositionSequence[0].ImagePositionPatient = [float(position[0]) + 0.7, *position[1:]]

    with pytest.raises(InputError, match="not on the grid"):
        read_seg(other_seg(written, tmp_path / "other.dcm", shift), source)


def test_frames_at_odd_places(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    def shift(seg: Any) -> None:
        place = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
        place.ImagePositionPatient = [*place.ImagePositionPatient[:2], float(place.ImagePositionPatient[2]) + 2.2]

    with pytest.raises(InputError, match="no regular stack"):
        read_seg(other_seg(written, tmp_path / "other.dcm", shift), source)


def test_what_is_no_seg(source: SourceSeries, written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DICOM SEG"):
        read_seg(source.frames[0].path, source)
    (tmp_path / "text.dcm").write_bytes(b"text")
    with pytest.raises(InputError, match="no DICOM file"):
        read_seg(tmp_path / "text.dcm", source)
    data = written.read_bytes()
    for share in (0.3, 0.9, 0.98):
        (tmp_path / "cut.dcm").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"cut.dcm: "):
            read_seg(tmp_path / "cut.dcm", source)


@pytest.mark.parametrize("missing", ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "Rows"])
def test_a_damaged_seg(written: Path, source: SourceSeries, tmp_path: Path, missing: str) -> None:
    with pytest.raises(InputError, match=r"other.dcm: "):
        read_seg(other_seg(written, tmp_path / "other.dcm", lambda seg: delattr(seg, missing)), source)


@pytest.mark.parametrize(
    ("group", "name", "vr", "value"),
    [
        ("DerivationImageSequence", "SourceImageSequence", "SQ", b"\xfe\xff"),
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber", "US", b"\0"),
    ],
)
def test_a_value_that_is_cut_off(
    written: Path, source: SourceSeries, monkeypatch: pytest.MonkeyPatch, group: str, name: str, vr: str, value: bytes
) -> None:
    seg = pydicom.dcmread(written)
    item, tag = seg.PerFrameFunctionalGroupsSequence[0][group][0], pydicom.tag.Tag(name)
    # pydicom looks at it when it is asked for, and would not write it so
    item[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    monkeypatch.setattr("polycl.dicomseg.reading._open", lambda path: seg)
    with pytest.raises(InputError, match=r"is a damaged DICOM SEG"):
        read_seg(written, source)


def test_labels_that_cannot_be_written(source: SourceSeries, tmp_path: Path) -> None:
    label = source.grid.with_voxels(labels())
    with pytest.raises(InputError, match="values without a name: 5"):
        make_seg(label, [Segment("a", 2)], source, IDENTITY)
    with pytest.raises(InputError, match="nothing to write"):
        make_seg(label, [], source, IDENTITY)
    with pytest.raises(InputError, match="must differ"):
        make_seg(label, [Segment("a", 2), Segment("b", 2)], source, IDENTITY)
    moved = Volume(labels(), affine() @ np.diag([1, 1, 1.2, 1]))
    with pytest.raises(InputError, match="not on the grid"):
        make_seg(moved, [Segment("a", 2), Segment("b", 5)], source, IDENTITY)
    bare = replace(source, frames=tuple(replace(frame, sop_uid="") for frame in source.frames))
    for frame in bare.frames:
        image = pydicom.dcmread(frame.path)
        del image.SOPInstanceUID
        image.save_as(frame.path)
    with pytest.raises(InputError, match="without SOPInstanceUID"):
        make_seg(label, [Segment("a", 2), Segment("b", 5)], bare, IDENTITY)
