"""DICOM series: geometry against SimpleITK, HU, and each way a folder can be no volume."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from polycl.errors import InputError, NotFoundError
from polycl.volume import list_series, read_series, read_volume

pytestmark = pytest.mark.unit

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SERIES = generate_uid(entropy_srcs=["series"])
AXIAL = np.eye(3)
STEP = 2.5
SIZE = (4, 3)  # rows, columns


def stored(n: int = 5) -> NDArray[np.int16]:
    """Stored values [slice, row, column]: HU + 1024, all different."""
    return (np.arange(n * SIZE[0] * SIZE[1], dtype=np.int16) * 7 + 100).reshape(n, *SIZE)


def slice_dataset(
    pixels: NDArray[Any], position: Sequence[float], directions: NDArray[np.float64] = AXIAL, **changes: Any
) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CT_STORAGE
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = SERIES
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [0.75, 0.5]  # between rows, between columns
    dataset.SliceThickness = 3
    dataset.ImagePositionPatient = [float(f"{x:.6f}") for x in position]
    dataset.ImageOrientationPatient = [float(f"{x:.8f}") for x in directions[:2].ravel()]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, write_like_original=False)
    return path


def series(folder: Path, n: int = 5, *, order: Sequence[int] | None = None, **changes: Any) -> Path:
    """An axial series; `order` gives the slice that each file holds. Rows of `changes` go to every slice."""
    directions = changes.pop("directions", AXIAL)
    for name, k in enumerate(range(n) if order is None else order):
        position = np.array([-10.0, -20, 30]) + directions[2] * STEP * k
        save(slice_dataset(stored(n)[k], position, directions, **changes), folder / f"{name:03}.dcm")
    return folder


def change(folder: Path, name: str, **changes: Any) -> None:
    """Rewrite one file with other attributes; None deletes one."""
    dataset = pydicom.dcmread(folder / name)
    for key, value in changes.items():
        if value is None:
            delattr(dataset, key)
        else:
            setattr(dataset, key, value)
    save(dataset, folder / name)


def test_an_axial_series(tmp_path: Path) -> None:
    volume = read_volume(series(tmp_path))
    assert volume.shape == (3, 4, 5)
    assert volume.voxels.dtype == np.int16
    assert volume.spacing == pytest.approx((0.5, 0.75, STEP))
    assert volume.axcodes == "LPS"
    np.testing.assert_array_equal(volume.voxels, stored().T - 1024)
    np.testing.assert_allclose(volume.affine[:3, 3], (10, 20, 30))


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_the_order_of_files_does_not_matter(tmp_path: Path, order: list[int]) -> None:
    one, other = read_series(series(tmp_path / "a")), read_series(series(tmp_path / "b", order=order))
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(one.affine, other.affine)


def test_a_feet_first_table_gives_the_same_patient_space(tmp_path: Path) -> None:
    """The same slices, stored mirrored and turned: canonical voxels and affine agree."""
    turned = np.diag([-1.0, 1, -1])
    for k in range(5):
        pixels = np.ascontiguousarray(stored()[k][:, ::-1])
        position = (-10 + 0.5 * (SIZE[1] - 1), -20, 30 + STEP * k)
        save(slice_dataset(pixels, position, turned), tmp_path / "b" / f"{k}.dcm")
    one, other = read_series(series(tmp_path / "a")).canonical(), read_series(tmp_path / "b").canonical()
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-9)


@given(st.tuples(*[st.integers(-180, 180)] * 3), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_simpleitk_agrees_on_any_orientation(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[int, ...], random: Any
) -> None:
    order = random.sample(range(5), 5)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    folder = series(tmp_path_factory.mktemp("dicom"), order=order, directions=turn)
    volume = read_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    theirs[:3, 3] = image.GetOrigin()
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.affine, LPS_TO_RAS @ theirs, atol=1e-4)


def test_rescale_differs_from_slice_to_slice(tmp_path: Path) -> None:
    change(series(tmp_path), "002.dcm", RescaleIntercept=-1000)
    volume = read_series(tmp_path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels[:, :, 2], stored()[2].T - 1000)
    np.testing.assert_array_equal(volume.voxels[:, :, 1], stored()[1].T - 1024)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1024), (1, -1024.5), (1, 32500)])
def test_what_does_not_fit_16_bits_becomes_float32(tmp_path: Path, slope: float, intercept: float) -> None:
    series(tmp_path, RescaleSlope=slope, RescaleIntercept=intercept)
    volume = read_series(tmp_path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, stored().T.astype(float) * slope + intercept)


def test_padding_survives(tmp_path: Path) -> None:
    pixels = stored()[0]
    pixels[0, 0] = -2000
    save(slice_dataset(pixels, (0, 0, 0)), tmp_path / "a.dcm")
    assert read_volume(tmp_path).voxels.min() == -3024


def test_unsigned_pixels(tmp_path: Path) -> None:
    save(slice_dataset(stored()[0].astype(np.uint16), (0, 0, 0)), tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).voxels[:, :, 0], stored()[0].T - 1024)


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"])
def test_compressed_pixels(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 2000, (64, 64)).astype(np.int16)
    path = save(slice_dataset(pixels, (0, 0, 0)), tmp_path / "a.dcm")
    reader, change_syntax, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change_syntax.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change_syntax.SetInput(reader.GetImage())
    assert change_syntax.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change_syntax.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_volume(path).voxels[:, :, 0], pixels.T - 1024)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    path = save(slice_dataset(stored()[0], (0, 0, 0)), tmp_path / "a.dcm")
    assert read_volume(path).shape == (3, 4, 1)
    assert read_volume(tmp_path).spacing[2] == 3
    change(tmp_path, "a.dcm", SliceThickness=None, SpacingBetweenSlices=1.5)
    assert read_volume(tmp_path).spacing[2] == 1.5
    change(tmp_path, "a.dcm", SpacingBetweenSlices=None)
    with pytest.raises(InputError, match="without a slice thickness"):
        read_volume(tmp_path)


def test_files_below_the_folder_and_other_files(tmp_path: Path) -> None:
    series(tmp_path / "deep" / "er")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "deep" / "empty").touch()
    assert read_volume(tmp_path).shape == (3, 4, 5)


def test_a_list_of_files(tmp_path: Path) -> None:
    files = sorted(series(tmp_path).iterdir())
    assert read_series(files[1:]).shape == (3, 4, 4)


def test_copies_of_an_instance_are_ignored(tmp_path: Path) -> None:
    series(tmp_path)
    shutil.copy(tmp_path / "001.dcm", tmp_path / "copy.dcm")
    assert read_series(tmp_path).shape == (3, 4, 5)


def test_equal_images_at_one_position_are_ignored_and_different_ones_refused(tmp_path: Path) -> None:
    series(tmp_path)
    position = pydicom.dcmread(tmp_path / "001.dcm").ImagePositionPatient
    save(slice_dataset(stored()[1], position), tmp_path / "again.dcm")
    assert read_series(tmp_path).shape == (3, 4, 5)
    save(slice_dataset(stored()[3], position), tmp_path / "again.dcm")
    with pytest.raises(InputError, match="different images at the same position"):
        read_series(tmp_path)


def test_anonymised_files_without_instance_uids(tmp_path: Path) -> None:
    series(tmp_path, SOPInstanceUID="", SeriesInstanceUID="")
    assert read_series(tmp_path).shape == (3, 4, 5)


def test_several_series_need_a_choice(tmp_path: Path) -> None:
    other = generate_uid()
    series(tmp_path / "a")
    series(tmp_path / "b", 3, SeriesInstanceUID=other)
    assert {(info.uid, info.modality, len(info.files)) for info in list_series(tmp_path)} == {
        (SERIES, "CT", 5),
        (other, "CT", 3),
    }
    with pytest.raises(InputError, match=r"holds 2 series; choose one by its series UID"):
        read_volume(tmp_path)
    assert read_series(tmp_path, series_uid=other).shape == (3, 4, 3)
    with pytest.raises(NotFoundError, match=r"no series 1\.2\.3"):
        read_series(tmp_path, series_uid="1.2.3")


def test_a_segmentation_beside_the_ct_is_passed_over(tmp_path: Path) -> None:
    series(tmp_path / "a")
    series(tmp_path / "b", 1, SeriesInstanceUID=generate_uid(), Modality="SEG")
    assert read_volume(tmp_path).shape == (3, 4, 5)


def test_missing_slices_are_located(tmp_path: Path) -> None:
    series(tmp_path, 8, order=[0, 1, 2, 4, 5, 6, 7])
    with pytest.raises(InputError, match=r"5\.00 mm instead of 2\.50 mm after slice 3 of 7, 5\.0 mm from the first"):
        read_volume(tmp_path)


def test_positions_rounded_to_a_tenth_are_even_enough(tmp_path: Path) -> None:
    for k in range(9):
        save(slice_dataset(stored(9)[k], (0, 0, round(1.25 * k, 1))), tmp_path / f"{k}.dcm")
    assert read_volume(tmp_path).spacing[2] == pytest.approx(1.25)


def test_a_gantry_tilt_is_named(tmp_path: Path) -> None:
    tilted = Rotation.from_euler("x", 15, degrees=True).as_matrix().T
    for k in range(5):
        save(slice_dataset(stored()[k], (0, 0, STEP * k), tilted), tmp_path / f"{k}.dcm")
    with pytest.raises(InputError, match=r"gantry tilt of 15\.0 degrees"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "mixes orientations"),
        ({"PixelSpacing": [0.7, 0.7]}, "mixes pixel spacings"),
        ({"Rows": 3, "Columns": 4}, "mixes image sizes"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary capture"),
        ({"ImagePositionPatient": None}, "without position"),
        ({"ImageOrientationPatient": None}, "without position"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "right angles"),
        ({"PixelSpacing": None}, "without position"),
        ({"Rows": None}, "no images"),
        ({"RescaleSlope": 0}, "rescale slope"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"PixelData": b"\0\0"}, "cannot be decoded"),
        ({"PixelData": None}, "cannot be decoded"),
    ],
)
def test_one_odd_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    change(series(tmp_path), "003.dcm", **changes)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path)


@pytest.mark.parametrize("changes", [{"RescaleIntercept": "1e300"}, {"RescaleSlope": "1e300"}])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    series(tmp_path, **changes)
    with pytest.raises(InputError, match="finite"):
        read_series(tmp_path)


def test_an_attribute_of_no_type_is_refused(tmp_path: Path) -> None:
    series(tmp_path)
    file = next(tmp_path.iterdir())
    slope = b"\x28\x00\x53\x10"
    assert slope + b"DS" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(slope + b"DS", slope + b"S\x02"))
    with pytest.raises(InputError, match="broken attribute"):
        read_series(tmp_path)


def test_another_modality_is_refused_and_overridable(tmp_path: Path) -> None:
    series(tmp_path, Modality="MR")
    with pytest.raises(InputError, match="modality MR; a CT is needed"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, allow_any_values=True).shape == (3, 4, 5)


def test_stored_values_without_intercept_are_refused(tmp_path: Path) -> None:
    series(tmp_path, RescaleIntercept=None)
    with pytest.raises(InputError, match="rescale intercept"):
        read_volume(tmp_path)


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DICOM files"):
        read_volume(tmp_path)
    assert list_series(tmp_path) == []
    with pytest.raises(NotFoundError, match="no such"):
        read_series(tmp_path / "missing")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.99])
def test_a_truncated_file_is_refused_and_not_passed_over(tmp_path: Path, share: float) -> None:
    path = series(tmp_path) / "004.dcm"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError):
        read_volume(tmp_path)


def test_dicom_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a label must be a labelmap"):
        read_volume(series(tmp_path), kind="label")


def test_the_voxel_limit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit is 50"):
        read_volume(series(tmp_path), max_voxels=50)


def test_messages_hold_no_patient_data(tmp_path: Path) -> None:
    series(tmp_path, 4, order=[0, 1, 3], PatientName="Doe^Jane", PatientID="4711", SeriesDescription="Doe abdomen")
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert not any(word in str(caught.value) for word in ("Doe", "Jane", "4711"))


def item(**values: Any) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def sequence(**values: Any) -> DicomSequence:
    return DicomSequence([item(**values)])


def enhanced(path: Path, order: Sequence[int]) -> Path:
    changes = dict.fromkeys(
        ["PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"], None
    ) | dict.fromkeys(["RescaleSlope", "RescaleIntercept"], None)
    dataset = slice_dataset(stored(), (0, 0, 0), **changes)
    dataset.PixelData = stored()[list(order)].tobytes()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = len(order)
    dataset.SharedFunctionalGroupsSequence = sequence(
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=sequence(PixelSpacing=[0.75, 0.5], SliceThickness=3),
        PixelValueTransformationSequence=sequence(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
    )
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(
        [item(PlanePositionSequence=sequence(ImagePositionPatient=[-10, -20, 30 + STEP * k])) for k in order]
    )
    return save(dataset, path)


@pytest.mark.parametrize("order", [range(5), [3, 1, 4, 0, 2]])
def test_an_enhanced_ct_is_the_same_volume(tmp_path: Path, order: Sequence[int]) -> None:
    classic = read_series(series(tmp_path / "a"))
    multi = read_volume(enhanced(tmp_path / "b.dcm", order))
    np.testing.assert_array_equal(multi.voxels, classic.voxels)
    np.testing.assert_allclose(multi.affine, classic.affine)


def test_an_enhanced_ct_without_positions_is_refused(tmp_path: Path) -> None:
    enhanced(tmp_path / "a.dcm", range(5))
    change(tmp_path, "a.dcm", PerFrameFunctionalGroupsSequence=None)
    with pytest.raises(InputError, match="without per-frame positions"):
        read_volume(tmp_path)
