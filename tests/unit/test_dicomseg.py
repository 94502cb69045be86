"""DICOM SEG: exact round trips, what other programs make of it, and each way it cannot be used."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydicom.sr._concepts_dict import concepts
from scipy.spatial.transform import Rotation

from polycl.dicomseg import Algorithm, Identity, Segment, SourceSeries, make_seg, read_seg, term_of, write_seg
from polycl.dicomseg.terms import ALIASES, TERMS, cielab
from polycl.errors import InputError
from polycl.phantom import write_dicom_series
from polycl.volume import Volume, read_series, read_volume

pytestmark = pytest.mark.unit

SHAPE = (13, 11, 6)  # 143 pixels a frame: frames do not begin at whole bytes
SPACING = (1.5, 2.0, 5.0)
IDENTITY = Identity.of("test", creator="user-xyz")
MODEL = Algorithm("AUTOMATIC", "polycl-liver", "0123abcd")


def affine(oblique: bool = False, down: bool = False) -> np.ndarray:
    matrix = np.diag([-SPACING[0], -SPACING[1], -SPACING[2] if down else SPACING[2], 1.0])
    if oblique:
        matrix[:3, :3] = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix() @ matrix[:3, :3]
    matrix[:3, 3] = (31.25, -17.5, 402.125)
    return matrix


def labels(seed: int = 0) -> np.ndarray:
    """Values 0, 2 and 5, scattered, with nothing on the first slice and no 5 on the last two."""
    voxels = np.random.default_rng(seed).choice(np.array([0, 2, 5], np.uint8), SHAPE)
    voxels[:, :, 0] = 0
    voxels[:, :, -2:] = np.where(voxels[:, :, -2:] == 5, 0, voxels[:, :, -2:])
    return voxels


def series(folder: Path, *, seed: int = 1, decreasing: bool = False, **geometry: bool) -> SourceSeries:
    grid = Volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine(**geometry))
    write_dicom_series(grid, folder, seed=seed, decreasing=decreasing)
    return SourceSeries.read(folder)


def write(folder: Path, source: SourceSeries, label: Volume, names: Mapping[str, int]) -> Path:
    path = folder / "seg.dcm"
    write_seg(label, [Segment(name, value, MODEL) for name, value in names.items()], source, path, IDENTITY)
    return path


@pytest.fixture
def source(tmp_path: Path) -> SourceSeries:
    return series(tmp_path / "ct")


@pytest.fixture
def written(source: SourceSeries, tmp_path: Path) -> Path:
    return write(tmp_path, source, source.grid.with_voxels(labels()), {"spleen": 2, "left kidney": 5})


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


# What other programs say


def require_valid(path: Path) -> None:
    """dciodvfy finds no error; not checked where it is not installed."""
    if (program := shutil.which("dciodvfy")) is not None:
        said = subprocess.run([program, "-new", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said


def test_dciodvfy_finds_no_error(written: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    said = subprocess.run(["dciodvfy", "-new", written], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert "Error" not in said


def test_highdicom_reads_it(written: Path, source: SourceSeries) -> None:
    seg = highdicom.seg.segread(written)
    uids = [frame.sop_uid for frame in source.frames]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels[..., 0].astype(bool), labels().T == 2)
    np.testing.assert_array_equal(pixels[..., 1].astype(bool), labels().T == 5)


@pytest.mark.parametrize("oblique", [False, True])
def test_dcmqi_reads_it_and_we_read_dcmqi(tmp_path: Path, oblique: bool) -> None:
    programs = [shutil.which(name, path=search_path()) for name in ("segimage2itkimage", "itkimage2segimage")]
    if None in programs:
        pytest.skip("needs dcmqi (segimage2itkimage and itkimage2segimage)")
    source = series(tmp_path / "ct", decreasing=True, oblique=oblique)
    path = write(tmp_path, source, source.grid.with_voxels(labels()), {"spleen": 2, "left kidney": 5})
    command = [programs[0], "-t", "nrrd", "--outputDirectory", tmp_path, "--inputDICOM", path, "-p", "out"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    for number, value in ((1, 2), (2, 5)):
        theirs = read_volume(tmp_path / f"out-{number}.nrrd", kind="label")
        painted = Volume(labels()[:, :, 1:], source.grid.affine).canonical().voxels == value  # none on the first slice
        np.testing.assert_array_equal(theirs.canonical().voxels > 0, painted)
    command = [programs[1], "--inputDICOMDirectory", tmp_path / "ct", "--outputDICOM", tmp_path / "theirs.dcm"]
    command += ["--inputImageList", f"{tmp_path}/out-1.nrrd,{tmp_path}/out-2.nrrd"]
    command += ["--inputMetadata", tmp_path / "out-meta.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if not (tmp_path / "theirs.dcm").is_file():
        pytest.skip(f"dcmqi did not write: {done.stderr[-200:]}")
    back = read_seg(tmp_path / "theirs.dcm", source)
    np.testing.assert_array_equal(back.label.voxels, np.searchsorted([0, 2, 5], labels()))
    assert back.names == {1: "spleen", 2: "left kidney"}


def search_path() -> str:
    import os
    import sys

    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])


def other_seg(written: Path, path: Path, change: Any) -> Path:
    seg = pydicom.dcmread(written)
    change(seg)
    seg.save_as(path)
    return path


def test_a_seg_without_references_or_our_values(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    def strip(seg: Any) -> None:
        del seg.ReferencedSeriesSequence
        for item in seg.SegmentSequence:
            del item[0x0077, 0x1001]
        for frame in seg.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence

    back = read_seg(other_seg(written, tmp_path / "other.dcm", strip), source)
    np.testing.assert_array_equal(back.label.voxels, np.searchsorted([0, 2, 5], labels()))
    assert back.names == {1: "spleen", 2: "left kidney"}


def test_a_box_in_other_axes_of_the_same_grid(written: Path, source: SourceSeries, tmp_path: Path) -> None:
    """As a program that cuts to what is painted, and turns rows about, would write."""
    columns, rows = slice(2, 10), slice(1, 11)

    def cut(seg: Any) -> None:
        pixels = seg.pixel_array[:, rows, columns][:, :, ::-1]
        shared = seg.SharedFunctionalGroupsSequence[0]
        row = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)[:3]
        column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)[3:]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*(-row), *column]
        for frame in seg.PerFrameFunctionalGroupsSequence:
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            position = position + row * SPACING[0] * (columns.stop - 1) + column * SPACING[1] * rows.start
            frame.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in position]
        seg.Rows, seg.Columns = pixels.shape[1:]
        seg.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()

    expected = np.zeros(SHAPE, np.uint8)
    expected[columns, rows] = labels()[columns, rows]
    back = read_seg(other_seg(written, tmp_path / "other.dcm", cut), source)
    np.testing.assert_array_equal(back.label.voxels, expected)


def test_fractional_and_overlapping(source: SourceSeries, tmp_path: Path) -> None:
    headers = [pydicom.dcmread(frame.path) for frame in source.frames]
    pixels = np.zeros((SHAPE[2], SHAPE[1], SHAPE[0], 2))
    pixels[2, 3:7, 2:6, 0] = 0.9
    pixels[2, 5:9, 4:8, 1] = 0.6
    pixels[3, 0, 0, 1] = 0.2
    described = [make_seg(source.grid.with_voxels(labels()), [Segment("a", 2), Segment("b", 5)], source, IDENTITY)]
    seg = highdicom.seg.Segmentation(
        headers, pixels, "FRACTIONAL", described[0].SegmentSequence, "1.2.9", 1, "1.2.10", 1, "x", "y", "z", "0"
    )
    seg.save_as(tmp_path / "fractional.dcm")
    back = read_seg(tmp_path / "fractional.dcm", source)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:6, 3:7, 2] = 2
    expected[4:8, 5:9, 2] = 5
    np.testing.assert_array_equal(back.label.voxels, expected)
    assert back.overlapping == 4


# What cannot be used


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


# Terms


def test_codes_are_those_of_dicom() -> None:
    known: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for value, (meaning, _) in codes.items():
            known.setdefault(value, set()).add(meaning)
    for term in TERMS.values():
        for code in (term.category, term.kind, term_of("left lung").side):
            assert code is not None
            assert code.meaning in known[code.value], code
    assert set(ALIASES.values()) <= set(TERMS)


def test_names_that_nobody_knows_differ() -> None:
    first, second = term_of("my structure"), term_of("my other structure")
    assert first.kind.scheme == "99POLYCL"
    assert first.kind.value != second.kind.value
    assert term_of("My_Structure").kind.value == first.kind.value


@given(st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_every_name_has_a_term(name: str) -> None:
    term = term_of(name)
    assert 0 < len(term.kind.meaning) <= 64
    assert len(term.kind.value) <= 16
    assert all(0 <= value <= 0xFFFF for value in cielab(term.colour))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (221, 130, 101), (0, 151, 206), (10, 200, 30)])
def test_colours_are_those_of_littlecms(colour: tuple[int, int, int]) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    theirs = np.asarray(ImageCms.applyTransform(Image.new("RGB", (1, 1), colour), to_lab))[0, 0].astype(int)
    theirs[1:] = np.where(theirs[1:] > 127, theirs[1:] - 256, theirs[1:])
    ours = np.array(cielab(colour)) / 0xFFFF * (100, 255, 255) - (0, 128, 128)
    np.testing.assert_allclose(ours, theirs * (100 / 255, 1, 1), atol=1.5)
