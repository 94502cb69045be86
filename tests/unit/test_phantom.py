"""The generated CT: adult anatomy, in HU, one patient a seed on every grid, and a DICOM series that agrees."""

import subprocess
import sys

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from polycl.errors import InputError
from polycl.phantom import LABELS, liver_mask, make_phantom, merge_lesion, write_dicom_series, write_study
from polycl.volume import Volume, canonical_view, read_volume

pytestmark = pytest.mark.unit

# 384 x 384 x 288 mm, coarse: all organs lie inside and a phantom takes a fraction of a second.
COARSE = {"shape": (96, 96, 48), "spacing": (4.0, 4.0, 6.0)}
TINY = {"shape": (48, 48, 12), "spacing": (8.0, 8.0, 20.0)}
SEEDS = (0, 1, 2, 7)
ADULT_ML = {
    "liver": (1100, 2100), "spleen": (70, 350), "left kidney": (100, 230), "right kidney": (100, 230),
    "aorta": (45, 160), "stomach": (150, 600), "lungs": (1000, 4000), "lesion": (4, 80), "gallbladder": (8, 50),
}  # fmt: skip
CORE_HU = {
    "liver": (90, 120), "spleen": (100, 135), "left kidney": (130, 215), "right kidney": (130, 215),
    "aorta": (130, 180), "lungs": (-900, -790), "lesion": (40, 75), "inferior vena cava": (120, 170),
}  # fmt: skip


@pytest.fixture(scope="module", params=SEEDS)
def coarse(request):
    return make_phantom(request.param, **COARSE)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def labels_at(volume, world):
    """Labels at RAS points [N, 3], nearest voxel; all points must be inside."""
    index = (world - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    return volume.voxels[tuple(np.rint(index).astype(int).T)]


def test_organs_have_adult_volumes(coarse):
    for name, (low, high) in ADULT_ML.items():
        millilitres = coarse.labels.millilitres(coarse.labels.voxels == LABELS[name])
        assert low < millilitres < high, name


def test_organs_have_the_hu_of_a_portal_venous_ct(coarse):
    for name, (low, high) in CORE_HU.items():
        mask = coarse.labels.voxels == LABELS[name]
        core = ndimage.binary_erosion(mask)
        hu = np.median(coarse.image.voxels[core if core.any() else mask])
        assert low < hu < high, name
    bone = coarse.image.voxels[coarse.labels.voxels == LABELS["vertebrae"]]
    assert 150 < np.median(bone) < 600
    assert bone.max() > 500


def test_image_is_int16_over_air_with_fat_muscle_and_gas(coarse):
    voxels = coarse.image.voxels
    assert voxels.dtype == np.int16
    assert coarse.labels.voxels.dtype == np.uint8
    assert voxels.min() == -1024
    # Air around the patient is noise cut off at the bottom of the scale.
    assert np.median(voxels[:4, -4:]) < -1000
    body = voxels[voxels > -250]
    share, edges = np.histogram(body, bins=np.arange(-250, 300, 20))
    peaks = edges[:-1][(share > np.roll(share, 1)) & (share > np.roll(share, -1))]
    assert any(-130 <= p <= -80 for p in peaks), "a peak of fat"
    stomach = voxels[coarse.labels.voxels == LABELS["stomach"]]
    assert stomach.min() < -700
    assert np.median(stomach) > -50


def test_every_label_is_present_and_organs_hang_together(coarse):
    voxels = coarse.labels.voxels
    assert set(np.unique(voxels)) == {0, *LABELS.values()}
    for mask in (liver_mask(coarse.labels).voxels, *(voxels == LABELS[n] for n in ("spleen", "aorta", "left kidney"))):
        pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() >= 0.99 * sizes.sum(), count


def test_lesions_lie_inside_the_liver(coarse):
    lesion = coarse.labels.voxels == LABELS["lesion"]
    around = ndimage.binary_dilation(lesion) & ~lesion
    inside = np.isin(coarse.labels.voxels[around], (LABELS["liver"],))
    assert inside.mean() > 0.9
    merged = merge_lesion(coarse.labels).voxels
    assert not (merged == LABELS["lesion"]).any()
    np.testing.assert_array_equal(merged == LABELS["liver"], liver_mask(coarse.labels).voxels == 1)


def test_organs_lie_on_their_sides(coarse):
    where = {}
    for name, value in LABELS.items():
        index = np.argwhere(coarse.labels.voxels == value).mean(0)
        where[name] = coarse.labels.affine[:3, :3] @ index + coarse.labels.affine[:3, 3]
    right, front, head = 0, 1, 2
    assert where["liver"][right] > 40
    assert where["spleen"][right] < -60
    assert where["stomach"][right] < -20
    assert where["right kidney"][right] > 40 > -40 > where["left kidney"][right]
    assert where["left kidney"][head] > where["right kidney"][head] + 10
    assert where["inferior vena cava"][right] > where["aorta"][right] + 15
    assert where["stomach"][front] > where["aorta"][front] > where["vertebrae"][front]
    assert where["lungs"][head] > where["liver"][head] > where["colon"][head]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_flip_passes_unseen(coarse, axis):
    liver = liver_mask(coarse.labels).voxels == 1
    assert dice(liver, np.flip(liver, axis)) < 0.6
    organs = coarse.labels.voxels
    both = (organs > 0) | (np.flip(organs, axis) > 0)
    assert (organs != np.flip(organs, axis))[both].mean() > 0.5


def test_one_seed_gives_the_same_bytes_and_another_gives_another_patient():
    first, again, other = (make_phantom(seed, **TINY) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image.voxels, again.image.voxels)
    np.testing.assert_array_equal(first.labels.voxels, again.labels.voxels)
    np.testing.assert_array_equal(first.image.affine, again.image.affine)
    assert (first.labels.voxels != other.labels.voxels).mean() > 0.03
    assert (first.image.voxels != other.image.voxels).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [
        {"shape": (50, 60, 72), "spacing": (5.5, 5.0, 5.0), "axcodes": "SAR"},
        {"shape": (72, 72, 56), "spacing": (5.0, 4.6, 5.5), "axcodes": "LPS", "oblique_degrees": 20.0},
    ],
)
def test_two_grids_of_one_seed_show_one_patient(grid):
    fine = make_phantom(5, shape=(96, 96, 64), spacing=(4.0, 4.0, 5.0)).labels
    other = make_phantom(5, **grid).labels
    assert other.axcodes == grid["axcodes"]
    # Voxel centres of one grid, so that only the other's rounding to its nearest voxel is left.
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0.05 * n, 0.95 * n, 20000) for n in other.shape], axis=1)
    world = index @ other.affine[:3, :3].T + other.affine[:3, 3]
    inside = (world - fine.affine[:3, 3]) @ np.linalg.inv(fine.affine[:3, :3]).T
    world = world[((inside > 0) & (inside < np.array(fine.shape) - 1)).all(axis=1)]
    assert len(world) > 5000
    agree = labels_at(other, world) == labels_at(fine, world)
    assert agree.mean() > 0.97
    # Away from surfaces they agree everywhere, in organs too.
    inner = np.zeros(fine.shape, np.uint8)
    for value in LABELS.values():
        inner[ndimage.binary_erosion(fine.voxels == value, np.ones((3, 3, 3)))] = 1
    deep = labels_at(Volume(inner, fine.affine), world) == 1
    assert np.count_nonzero(deep) > 200
    assert agree[deep].mean() > 0.99


def test_axis_codes_only_turn_the_array():
    straight = make_phantom(1, **TINY, axcodes="LPS").image
    turned = make_phantom(1, shape=(12, 48, 48), spacing=(20.0, 8.0, 8.0), axcodes="IRA").image
    assert turned.axcodes == "IRA"
    np.testing.assert_array_equal(
        canonical_view(turned.voxels, turned.affine), canonical_view(straight.voxels, straight.affine)
    )
    np.testing.assert_allclose(turned.canonical().affine, straight.canonical().affine, atol=1e-9)


def test_noise_is_there_and_is_correlated_as_in_ct():
    phantom = make_phantom(0, shape=(96, 96, 4), spacing=(1.5, 1.5, 1.5))
    again = make_phantom(0, shape=(96, 96, 4), spacing=(1.5, 1.5, 1.5))
    assert phantom.image.voxels.tobytes() == again.image.voxels.tobytes()
    # The same plane is there twice: as slice 1 of two grids a slice apart, with one anatomy and other noise.
    shifted = make_phantom(0, shape=(96, 96, 6), spacing=(1.5, 1.5, 1.5))
    noise = (phantom.image.voxels[:, :, 1].astype(float) - shifted.image.voxels[:, :, 2]) / np.sqrt(2)
    assert 9 < noise.std() < 18
    beside = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    apart = np.corrcoef(noise[:-8].ravel(), noise[8:].ravel())[0, 1]
    assert 0.1 < beside < 0.9
    assert abs(apart) < 0.1


def test_edges_are_blurred_over_a_voxel_or_two():
    phantom = make_phantom(0, shape=(128, 128, 3), spacing=(1.5, 1.5, 1.5))
    liver = liver_mask(phantom.labels).voxels[:, :, 1] == 1
    hu = phantom.image.voxels[:, :, 1]
    fat = ndimage.binary_dilation(liver, iterations=1) & ~liver
    # Just outside the liver lie values between liver and fat, which an edge without partial volume would not have.
    assert ((hu[fat] > -40) & (hu[fat] < 60)).mean() > 0.2


def test_slice_thickness_averages_in_depth():
    thin = make_phantom(0, shape=(64, 64, 33), spacing=(4.0, 4.0, 2.0))
    thick = make_phantom(0, shape=(64, 64, 3), spacing=(4.0, 4.0, 16.0))
    # Planes 8, 16 and 24 are the faces and the middle of the thick slice in the middle.
    planes = thin.image.voxels[:, :, [12, 16, 20]].astype(float) @ [0.25, 0.5, 0.25]
    middle = thick.image.voxels[:, :, 1]
    assert np.median(np.abs(planes - middle)) < 12
    assert np.abs(thin.image.voxels[:, :, 16] - planes).mean() > 0


def test_whole_body_field_ends_in_air():
    phantom = make_phantom(0, shape=(24, 24, 60), spacing=(16.0, 16.0, 20.0))
    assert np.median(phantom.image.voxels[:, :, 0]) < -1000
    assert np.median(phantom.image.voxels[:, :, -1]) < -1000
    assert liver_mask(phantom.labels).voxels.any()


def test_one_slice_and_one_voxel():
    assert make_phantom(0, shape=(32, 32, 1), spacing=(12.0, 12.0, 3.0)).image.shape == (32, 32, 1)
    assert make_phantom(0, shape=(1, 1, 1), spacing=(2.0, 2.0, 2.0)).image.shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"shape": (0, 8, 8)}, "shape"),
        ({"shape": (8, 8)}, "shape"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing"),
        ({"axcodes": "LRS"}, "letters"),
        ({"axcodes": "LP"}, "letters"),
        ({"oblique_degrees": 80.0}, "45 degrees"),
        ({"oblique_degrees": float("nan")}, "45 degrees"),
    ],
)
def test_a_bad_grid_is_refused(options, word):
    with pytest.raises(InputError, match=word):
        make_phantom(**options)


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("oblique", [0.0, 15.0])
def test_dicom_series_holds_the_volume_and_its_geometry(tmp_path, decreasing, oblique):
    volume = make_phantom(2, shape=(40, 36, 6), spacing=(9.0, 10.0, 30.0), oblique_degrees=oblique).image
    paths = write_dicom_series(volume, tmp_path, seed=2, decreasing=decreasing)
    assert paths == sorted(tmp_path.iterdir())
    lps = np.diag([-1.0, -1.0, 1.0])
    for number, path in enumerate(paths):
        data = pydicom.dcmread(path)
        k = 5 - number if decreasing else number
        assert data.InstanceNumber == number + 1
        assert (data.Rows, data.Columns) == (36, 40)
        row, column = np.array(data.ImageOrientationPatient).reshape(2, 3)
        down, across = (float(v) for v in data.PixelSpacing)
        world = lps @ volume.affine[:3, :3]
        np.testing.assert_allclose(
            np.array(data.ImagePositionPatient), lps @ (volume.affine @ [0, 0, k, 1])[:3], atol=1e-6
        )
        np.testing.assert_allclose(row * across, world[:, 0], atol=1e-6)
        np.testing.assert_allclose(column * down, world[:, 1], atol=1e-6)
        hu = data.pixel_array.astype(int) * int(data.RescaleSlope) + int(data.RescaleIntercept)
        np.testing.assert_array_equal(hu, volume.voxels[:, :, k].T)


def test_dicom_series_identifies_itself(tmp_path):
    volume = make_phantom(0, shape=(16, 16, 3), spacing=(24.0, 24.0, 60.0)).image
    write_dicom_series(volume, tmp_path / "a", seed=0)
    write_dicom_series(volume, tmp_path / "b", seed=0)
    write_dicom_series(volume, tmp_path / "c", seed=0, series=2)
    first = [pydicom.dcmread(p) for p in sorted((tmp_path / "a").iterdir())]
    assert first[0].PatientName == "PHANTOM^SEED0"
    assert first[0].file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first[0].SOPClassUID == pydicom.uid.CTImageStorage
    assert len({d.SOPInstanceUID for d in first}) == 3
    assert len({(d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID) for d in first}) == 1
    for name in ("a", "b"):
        assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
            p.read_bytes() for p in sorted((tmp_path / name).iterdir())
        ]
    second = pydicom.dcmread(tmp_path / "c" / "CT0001.dcm")
    assert second.StudyInstanceUID == first[0].StudyInstanceUID
    assert second.SeriesInstanceUID != first[0].SeriesInstanceUID


def test_dicom_series_reads_back_as_the_same_volume(tmp_path):
    volume = make_phantom(1, **TINY).image
    write_dicom_series(volume, tmp_path, seed=1)
    back = read_volume(tmp_path).canonical()
    np.testing.assert_array_equal(back.voxels, volume.canonical().voxels)
    np.testing.assert_allclose(back.affine, volume.canonical().affine, atol=1e-4)


def test_dicom_series_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(InputError, match="int16"):
        write_dicom_series(Volume(np.zeros((4, 4, 2), np.float32), np.eye(4)), tmp_path, seed=0)
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(InputError, match="right angles"):
        write_dicom_series(Volume(np.zeros((4, 4, 2), np.int16), sheared), tmp_path, seed=0)


def test_study_writes_images_and_labels(tmp_path):
    paths = write_study(tmp_path, [0, 4], labels=True, **TINY)
    assert [p.name for p in paths] == ["phantom_000.nii.gz", "phantom_004.nii.gz"]
    expected = make_phantom(4, **TINY)
    np.testing.assert_array_equal(read_volume(paths[1]).voxels, expected.image.voxels)
    stored = read_volume(tmp_path / "labels" / "phantom_004.nii.gz", kind="label")
    np.testing.assert_array_equal(stored.voxels, expected.labels.voxels)


def test_study_writes_dicom_folders_and_refuses_another_format(tmp_path):
    (folder,) = write_study(tmp_path, [1], format="dicom", **TINY)
    assert len(list(folder.glob("*.dcm"))) == 12
    with pytest.raises(InputError, match="nifti or dicom"):
        write_study(tmp_path, [1], format="nrrd")


@pytest.mark.slow
def test_import_needs_no_torch():
    code = "import sys, polycl.phantom; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
