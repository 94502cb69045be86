"""DICOM SEG: exact round trips, and what is said of who made it, of which series, on which frames."""

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scattered_seg import IDENTITY, MODEL, SHAPE, affine, labels, series, write

from polycl.dicomseg import Algorithm, Segment, SourceSeries, read_seg, write_seg
from polycl.phantom import write_dicom_series
from polycl.volume import Volume, read_series

pytestmark = pytest.mark.unit


def require_valid(path: Path) -> None:
    """dciodvfy finds no error; not checked where it is not installed."""
    if (program := shutil.which("dciodvfy")) is not None:
        said = subprocess.run([program, "-new", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_the_round_trip_is_exact(tmp_path: Path, decreasing: bool, oblique: bool, down: bool) -> None:
    source = series(tmp_path / "ct", decreasing=decreasing, oblique=oblique, down=down)
    label = Volume(labels(), affine(oblique, down))
    back = read_seg(write(tmp_path, source, label, {"spleen": 2, "left kidney": 5}), source)
    image = read_series(tmp_path / "ct")
    assert back.label.same_grid(image, tolerance=0)
    np.testing.assert_array_equal(back.label.canonical().voxels, label.canonical().voxels)
    assert back.names == {2: "spleen", 5: "left kidney"}
    assert back.algorithms == {2: MODEL, 5: MODEL}
    assert back.overlapping == 0


@given(
    voxels=st.integers(0, 2**32 - 1).map(np.random.default_rng),
    share=st.sampled_from([0.0, 0.001, 0.3, 1.0]),
    values=st.lists(st.integers(1, 255), min_size=1, max_size=5, unique=True),
)
@settings(max_examples=15, deadline=None)
def test_any_label_comes_back(
    tmp_path_factory: pytest.TempPathFactory, voxels: np.random.Generator, share: float, values: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = series(folder / "ct")
    painted = voxels.choice(np.array(values, np.uint8), SHAPE) * (voxels.random(SHAPE) < share)
    names = {f"structure {value}": value for value in values}
    back = read_seg(write(folder, source, source.grid.with_voxels(painted.astype(np.uint8)), names), source)
    np.testing.assert_array_equal(back.label.voxels, painted)
    assert back.names == {value: name for name, value in names.items()}


def test_a_label_in_other_axes_is_turned(source: SourceSeries, tmp_path: Path) -> None:
    own = source.grid.with_voxels(labels())
    turned = write(tmp_path, source, own.canonical(), {"a": 2, "b": 5})
    np.testing.assert_array_equal(read_seg(turned, source).label.voxels, own.voxels)


def test_an_empty_label_has_one_frame(source: SourceSeries, tmp_path: Path) -> None:
    path = write(tmp_path, source, source.grid.with_voxels(np.zeros(SHAPE, np.uint8)), {"liver": 1, "spleen": 2})
    assert pydicom.dcmread(path).NumberOfFrames == 1
    back = read_seg(path, source)
    assert not back.label.voxels.any()
    assert back.names == {1: "liver", 2: "spleen"}
    require_valid(path)


def test_one_slice(source: SourceSeries, tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[3:9, 2:7, 4] = 1
    path = write(tmp_path, source, source.grid.with_voxels(voxels), {"liver": 1})
    assert pydicom.dcmread(path).NumberOfFrames == 1
    np.testing.assert_array_equal(read_seg(path, source).label.voxels, voxels)
    require_valid(path)


def test_a_series_of_one_slice(tmp_path: Path) -> None:
    grid = Volume(np.zeros((9, 7, 1), np.int16), affine())
    write_dicom_series(grid, tmp_path / "ct", seed=1)
    source = SourceSeries.read(tmp_path / "ct")
    voxels = np.zeros((9, 7, 1), np.uint8)
    voxels[2:4, 3, 0] = 1
    path = write(tmp_path, source, source.grid.with_voxels(voxels), {"liver": 1})
    np.testing.assert_array_equal(read_seg(path, source).label.voxels, voxels)
    require_valid(path)


def test_frames_refer_to_the_instances_they_lie_on(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    seg = pydicom.dcmread(written)
    assert [item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence] == [source.uid]
    positions = {
        str(header.SOPInstanceUID): list(header.ImagePositionPatient)
        for header in map(pydicom.dcmread, (tmp_path / "ct").iterdir())
    }
    on = set()
    for frame in seg.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.SpatialLocationsPreserved == "YES"
        assert positions[image.ReferencedSOPInstanceUID] == list(frame.PlanePositionSequence[0].ImagePositionPatient)
        on.add((frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber, image.ReferencedSOPInstanceUID))
    filled = sum(int((labels() == value).any(axis=(0, 1)).sum()) for value in (2, 5))
    assert len(on) == len(seg.PerFrameFunctionalGroupsSequence) == filled


def test_it_belongs_to_the_study_and_says_who_made_it(written: Path, tmp_path: Path) -> None:
    seg, ct = pydicom.dcmread(written), pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID", "StudyDate", "AccessionNumber"):
        assert seg[name].value == ct[name].value
    assert seg.ContentCreatorName == "user-xyz^"
    assert seg.SeriesInstanceUID == IDENTITY.series_uid != ct.SeriesInstanceUID
    spleen, kidney = seg.SegmentSequence
    assert (spleen.SegmentNumber, spleen.SegmentLabel, kidney.SegmentNumber) == (1, "spleen", 2)
    assert (kidney.SegmentAlgorithmType, kidney.SegmentAlgorithmName) == ("AUTOMATIC", "polycl-liver")
    assert kidney.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "0123abcd"
    (kind,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"


def test_painted_by_hand_is_manual(source: SourceSeries, tmp_path: Path) -> None:
    path = tmp_path / "seg.dcm"
    write_seg(source.grid.with_voxels(labels()), [Segment("a", 2), Segment("b", 5)], source, path, IDENTITY)
    assert {item.SegmentAlgorithmType for item in pydicom.dcmread(path).SegmentSequence} == {"MANUAL"}
    assert read_seg(path, source).algorithms == {2: Algorithm(), 5: Algorithm()}
    require_valid(path)


@pytest.mark.parametrize("name", ["x" * 150, "back\\slash", "Prüfung ä", "a=b^c", "腎臓"])
def test_any_name_comes_back(source: SourceSeries, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, source, source.grid.with_voxels(labels()), {name: 2, "liver": 5})
    assert read_seg(path, source).names == {2: name, 5: "liver"}
    require_valid(path)


def test_an_enhanced_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = series(tmp_path / "ct")
    monkeypatch.setattr(pydicom.config, "datetime_conversion", True)  # which the converter relies on
    enhanced = tmp_path / "enhanced" / "ct.dcm"
    enhanced.parent.mkdir()
    frames = [pydicom.dcmread(file) for file in sorted((tmp_path / "ct").iterdir())]
    frames = [frames[k] for k in (4, 0, 5, 2, 1, 3)]
    multi = highdicom.legacy.LegacyConvertedEnhancedCTImage(frames, "1.2.3.4", 1, "1.2.3.5", 1)
    multi.SOPClassUID = multi.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    multi.save_as(enhanced)
    multiframe = SourceSeries.read(enhanced.parent)
    path = write(tmp_path, multiframe, source.grid.with_voxels(labels()), {"a": 2, "b": 5})
    np.testing.assert_array_equal(read_seg(path, multiframe).label.voxels, labels())
    back = highdicom.seg.segread(path).get_pixels_by_source_frame("1.2.3.5", list(range(1, 7)), combine_segments=True)
    stored = multi.pixel_array
    image = read_series(enhanced.parent)
    for number in range(6):
        k = int(np.flatnonzero((stored[number].astype(int) - 1024 == image.voxels.T).all(axis=(1, 2)))[0])
        expected = np.searchsorted([0, 2, 5], labels()[:, :, k].T)
        np.testing.assert_array_equal(back[number], expected)


def test_anonymised_files(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    removed = ("PatientName", "PatientID", "StudyDate", "AccessionNumber", "FrameOfReferenceUID", "SliceThickness")
    for file in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(file)
        for name in removed:
            delattr(image, name)
        image.save_as(file)
    source = SourceSeries.read(tmp_path / "ct")
    path = write(tmp_path, source, source.grid.with_voxels(labels()), {"a": 2, "b": 5})
    np.testing.assert_array_equal(read_seg(path, source).label.voxels, labels())
    require_valid(path)
