"""NIfTI: what is read, what is refused and why, and agreement with SimpleITK and nibabel."""

import gzip
import itertools
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from polycl.errors import InputError, NotFoundError
from polycl.volume import Volume, check_ct, read_segments, read_volume, write_volume

pytestmark = pytest.mark.unit

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (20, -35, 170), degrees=True).as_matrix() * (0.7, 0.8, 2.5)
OBLIQUE[:3, 3] = (-120.5, 33.25, 800)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ct(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16) -> NDArray[Any]:
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(dtype)


def save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64] = OBLIQUE, **header: Any) -> Path:
    image = nib.Nifti1Image(voxels, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def sitk_affine(image: sitk.Image) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.int8, np.int64])
def test_round_trip_keeps_type_values_and_place(tmp_path: Path, suffix: str, dtype: Any) -> None:
    volume = Volume(ct(dtype=dtype), OBLIQUE)
    write_volume(volume, tmp_path / f"a{suffix}")
    back = read_volume(tmp_path / f"a{suffix}", allow_any_values=True)
    assert back.voxels.dtype == dtype
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.affine, OBLIQUE, rtol=1e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_simpleitk_agrees_both_ways(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = OBLIQUE.copy()
    affine[:3, :3] = (OBLIQUE[:3, :3] * signs)[:, order]
    volume = Volume(ct(), affine)
    write_volume(volume, tmp_path / "ours.nii")
    theirs = sitk.ReadImage(str(tmp_path / "ours.nii"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).T, volume.voxels)
    np.testing.assert_allclose(sitk_affine(theirs), affine, atol=1e-3)
    sitk.WriteImage(theirs, str(tmp_path / "theirs.nii"))
    back = read_volume(tmp_path / "theirs.nii")
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    assert back.same_grid(volume, tolerance=1e-3)


def test_qform_only_where_axes_are_at_right_angles(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    for name, affine, code in (("straight", OBLIQUE, 1), ("sheared", sheared, 0)):
        write_volume(Volume(ct(), affine), tmp_path / f"{name}.nii.gz")
        header = nib.load(tmp_path / f"{name}.nii.gz").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, code)
        np.testing.assert_allclose(header.get_sform(), affine, rtol=1e-6)
        np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    np.testing.assert_allclose(nib.load(tmp_path / "straight.nii.gz").header.get_qform(), OBLIQUE, atol=1e-4)


def test_qform_alone_is_enough(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ct(), OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8", ">u2"])
def test_big_endian_becomes_native(tmp_path: Path, dtype: str) -> None:
    image = nib.Nifti1Image(ct(dtype=dtype), OBLIQUE, nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "big")
    back = read_volume(tmp_path / "a.nii.gz", allow_any_values=True)
    assert back.voxels.dtype.isnative
    np.testing.assert_array_equal(back.voxels, ct(dtype=dtype))


def test_nifti2_and_header_extensions(tmp_path: Path) -> None:
    image = nib.Nifti2Image(ct(), OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, ct())


@pytest.mark.parametrize(("slope", "inter"), [(1.0, -1024.0), (0.5, 0.0), (2.0, 10.0)])
def test_scaled_voxels_become_float32(tmp_path: Path, slope: float, inter: float) -> None:
    stored = np.arange(2000, 2120, dtype=np.uint16).reshape(4, 5, 6)
    path = save(tmp_path / "a.nii", stored)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(data)
    back = read_volume(path, allow_any_values=True)
    assert back.voxels.dtype == np.float32
    np.testing.assert_allclose(back.voxels, nib.load(path).get_fdata())


def test_64_bit_floats_become_32_bit(tmp_path: Path) -> None:
    back = read_volume(save(tmp_path / "a.nii", ct(dtype=np.float64) + 0.25))
    assert back.voxels.dtype == np.float32
    np.testing.assert_array_equal(back.voxels, ct() + 0.25)


def test_axial_slices_are_contiguous_and_slabs_join_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polycl.volume import checks, raster

    monkeypatch.setattr(raster, "SLAB_BYTES", 100)
    monkeypatch.setattr(checks, "SLAB_BYTES", 100)
    write_volume(Volume(ct(), OBLIQUE), tmp_path / "a.nii.gz")
    voxels = read_volume(tmp_path / "a.nii.gz").voxels
    np.testing.assert_array_equal(voxels, ct())
    assert voxels[:, :, 0].T.flags.c_contiguous


def test_units_of_metres(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ct(), np.diag([0.001, 0.001, 0.002, 1]), xyzt_units=1)
    assert read_volume(path).spacing == pytest.approx((1, 1, 2))


@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5, 6, 1), (1, 5, 6)])
def test_one_slice_and_a_single_frame_work(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert read_volume(save(tmp_path / "a.nii", ct(shape))).shape == shape[:3]


@pytest.mark.parametrize(
    "voxels",
    [
        np.where(ct() > 1200, -3024, ct()),
        np.where(ct() > 1200, -2000, ct()),
        np.clip(ct(), -160, 240),
        ct().astype(np.float32) / 1.5,
        np.where(ct() > 1200, -32768, ct()),
    ],
    ids=["padding -3024", "padding -2000", "clipped", "float", "padding at the 16-bit limit"],
)
def test_ct_values_are_accepted(voxels: NDArray[Any]) -> None:
    check_ct(voxels)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.abs(ct()) % 256, "8-bit picture"),
        (ct() + 1024, "rescale intercept"),
        (np.where(ct() > 1200, -2000, ct() + 1024), "rescale intercept"),
        (np.zeros((2, 2, 2), np.int16), "constant"),
        (ct() / 1000, "normalised"),
        (ct().astype(np.int32) * 100, "out of the range"),
        (np.where(ct() > 1400, 1e9, ct()), "out of the range"),
    ],
    ids=["picture", "stored", "stored and padded", "constant", "normalised", "scaled up", "huge"],
)
def test_values_that_are_no_ct_are_refused_and_overridable(tmp_path: Path, voxels: NDArray[Any], message: str) -> None:
    path = save(tmp_path / "a.nii", voxels.astype(np.float32))
    with pytest.raises(InputError, match=f"{message}.*--any-values"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, allow_any_values=True).voxels, voxels.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.int64])
def test_labels_are_uint8(tmp_path: Path, dtype: Any) -> None:
    labels = (np.arange(120) % 4).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(labels.astype(dtype), OBLIQUE, dtype=dtype), tmp_path / "a.nii.gz")
    back = read_volume(tmp_path / "a.nii.gz", kind="label")
    assert back.voxels.dtype == np.uint8
    np.testing.assert_array_equal(back.voxels, labels)


@pytest.mark.parametrize(
    ("value", "message"), [(-1, "outside 0 to 255"), (256, "outside 0 to 255"), (1.5, "whole numbers")]
)
def test_values_that_are_no_label_are_refused(tmp_path: Path, value: float, message: str) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[1, 2, 3] = value
    with pytest.raises(InputError, match=message):
        read_volume(save(tmp_path / "a.nii", labels), kind="label")


@pytest.mark.parametrize("kind", ["ct", "label"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_voxel_must_be_finite(tmp_path: Path, kind: Any, value: float) -> None:
    voxels = ct(dtype=np.float32)
    voxels[3, 4, 5] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        read_volume(save(tmp_path / "a.nii", voxels), kind=kind, allow_any_values=True)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 9), "not a volume"), ((4, 5, 6, 3), "3 frames"), ((4, 5, 6, 1, 3), "vectors or colours")],
)
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_volume(save(tmp_path / "a.nii", ct(shape)))


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64])
def test_colour_and_complex_are_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match="colours or complex"):
        read_volume(save(tmp_path / "a.nii", np.zeros((4, 5, 6), dtype)))


def test_both_orientation_codes_zero_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ct(), OBLIQUE)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(InputError, match="no orientation"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(("row", "value"), [("srow_x", 0.0), ("srow_y", np.nan), ("srow_z", np.inf)])
def test_a_broken_affine_is_refused(tmp_path: Path, row: str, value: float) -> None:
    path = tmp_path / "a.nii"
    write_volume(Volume(ct(), np.diag([1.0, 1, 1, 1])), path)
    data = bytearray(path.read_bytes())
    start = {"srow_x": 280, "srow_y": 296, "srow_z": 312}[row]
    data[start : start + 16] = np.full(4, value, "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="affine"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".dcm", ""])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(InputError, match="is empty"):
        read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [5, 300, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_volume(Volume(ct((20, 20, 20)), OBLIQUE), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"a\.nii.*(truncated|corrupt)"):
        read_volume(path)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.999])
def test_a_corrupt_gzip_is_refused(tmp_path: Path, at: float) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(Volume(ct((20, 20, 20)), OBLIQUE), path)
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"corrupt|truncated"):
        read_volume(path)


def test_the_voxel_limit_is_checked_before_the_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ct())
    path.write_bytes(path.read_bytes()[:360])
    with pytest.raises(InputError, match="4x5x6 voxels; the limit is 100"):
        read_volume(path, max_voxels=100)


def test_a_header_that_promises_more_than_the_file_can_hold(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ct(), OBLIQUE)
    header = image.header.copy()
    header.set_data_shape((1000, 1000, 1000))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(header.binaryblock + bytes(1000))
    with pytest.raises(InputError, match="too small"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.nii.gz", "is NIfTI by its content, but its name says gzip NIfTI"),
        ("a.nrrd", "is NIfTI by its content, but its name says NRRD"),
        ("a.dcm", "is NIfTI by its content, but its name says DICOM"),
    ],
)
def test_a_wrong_extension_is_said(tmp_path: Path, name: str, message: str) -> None:
    save(tmp_path / "right.nii", ct()).rename(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / name)


def test_content_decides_where_the_name_says_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", ct()).rename(tmp_path / "upload")
    assert read_volume(tmp_path / "upload").shape == (4, 5, 6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.nrrd", "a.dcm"])
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(500), gzip.compress(b"hello" * 200)])
def test_other_content_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name) + ": is not .* by its content"):
        read_volume(tmp_path / name)


def test_a_header_without_voxels_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(ct(), OBLIQUE), tmp_path / "a.hdr")
    with pytest.raises(InputError, match="header without voxels"):
        read_volume(tmp_path / "a.hdr")


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(NotFoundError, match="no such file"):
        read_segments(tmp_path / "a.seg.nrrd")


def test_bytes_at_random_never_raise_anything_else(tmp_path: Path) -> None:
    """Flip bytes of the header: the file is read, or refused by one of our errors."""
    path = save(tmp_path / "a.nii", ct())
    original = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        for at in rng.integers(0, 352, 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_volume(path, allow_any_values=True)
        except InputError:
            refused += 1
    assert 0 < refused < 150


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"])
def test_masks_of_any_memory_layout_are_written_as_uint8(tmp_path: Path, suffix: str) -> None:
    mask = (ct() > 0)[::-1].transpose(2, 0, 1)
    write_volume(Volume(mask, OBLIQUE), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{suffix}", kind="label").voxels, mask)


def test_writing_is_reproducible_and_leaves_one_file(tmp_path: Path) -> None:
    write_volume(Volume(ct(), OBLIQUE), tmp_path / "a.nii.gz")
    first = (tmp_path / "a.nii.gz").read_bytes()
    write_volume(Volume(ct(), OBLIQUE), tmp_path / "a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_volume(Volume(ct(), OBLIQUE), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_unwritable_targets_are_refused(tmp_path: Path) -> None:
    volume = Volume(ct(), OBLIQUE)
    with pytest.raises(InputError, match="there is no folder"):
        write_volume(volume, tmp_path / "missing" / "a.nii.gz")
    with pytest.raises(InputError, match=r"name it \.nii\.gz"):
        write_volume(volume, tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot store voxels of type complex64"):
        write_volume(Volume(ct().astype(np.complex64), OBLIQUE), tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []
