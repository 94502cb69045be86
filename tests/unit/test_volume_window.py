"""The window that an image's own header suggests: from DICOM, kept in NIfTI, and asked for by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from polycl.errors import InputError
from polycl.phantom import make_phantom, write_dicom_series
from polycl.server.imports import import_studies
from polycl.volume import Volume, read_series, read_volume, write_volume
from polycl.window import WINDOWS, Window, seen_through, window_from

pytestmark = pytest.mark.unit

IMAGE = make_phantom(0, shape=(20, 16, 5), spacing=(18.0, 18.0, 30.0)).image
ABSENT = "absent"


def series(folder: Path, **changes: Any) -> Path:
    """A series whose middle slice has these attributes; `ABSENT` takes one out of all slices."""
    files = write_dicom_series(IMAGE, folder, seed=0)
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        for name, value in changes.items():
            if value == ABSENT:
                delattr(dataset, name)
            elif number == len(files) // 2:
                setattr(dataset, name, value)
        dataset.save_as(file)
    return folder


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [
        ({}, -160, 239),  # 40 and 400 in whole grey levels: DICOM PS3.3 C.11.2.1.2.1
        ({"VOILUTFunction": "LINEAR"}, -160, 239),
        ({"VOILUTFunction": "LINEAR_EXACT"}, -160, 240),
        ({"VOILUTFunction": "SIGMOID"}, -160, 240),
        ({"WindowCenter": [-600, 40], "WindowWidth": [1500, 400], "VOILUTFunction": "LINEAR_EXACT"}, -1350, 150),
        ({"WindowCenter": "400.5", "WindowWidth": "1801"}, -500, 1300),
    ],
)
def test_the_window_of_a_series_is_the_first_of_its_middle_slice(
    tmp_path: Path, changes: dict[str, Any], low: float, high: float
) -> None:
    window = read_series(series(tmp_path, **changes)).window
    assert window is not None
    assert (window.low, window.high) == (low, high)


@given(centre=st.integers(-2000, 3000), width=st.integers(2, 4000), hu=st.integers(-3024, 4000))
def test_linear_is_what_the_standard_says(centre: int, width: int, hu: int) -> None:
    import torch

    if hu <= centre - 0.5 - (width - 1) / 2:
        expected = 0.0
    elif hu > centre - 0.5 + (width - 1) / 2:
        expected = 1.0
    else:
        expected = (hu - (centre - 0.5)) / (width - 1) + 0.5
    window = Window.of_dicom(centre, width)
    assert window is not None
    assert float(window.apply(torch.tensor(hu))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"WindowCenter": ABSENT},
        {"WindowWidth": ABSENT},
        {"WindowWidth": 0},
        {"WindowWidth": -400},
        {"VOILUTFunction": "MAGIC"},
        {"WindowCenter": []},
        {"WindowCenter": None},
    ],
)
def test_a_series_without_a_window_is_read_all_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    volume = read_series(series(tmp_path, **changes))
    assert volume.window is None
    assert volume.shape == IMAGE.shape


def item(**values: Any) -> Sequence:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return Sequence([dataset])


def test_an_enhanced_ct_has_it_in_its_functional_groups(tmp_path: Path) -> None:
    one = pydicom.dcmread(write_dicom_series(IMAGE, tmp_path / "plain", seed=0)[0])
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    one.NumberOfFrames = 1
    one.PerFrameFunctionalGroupsSequence = item(
        PlanePositionSequence=item(ImagePositionPatient=one.ImagePositionPatient),
        FrameVOILUTSequence=item(WindowCenter=50, WindowWidth=100, VOILUTFunction="LINEAR_EXACT"),
    )
    one.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=one.ImageOrientationPatient)
    )
    one.save_as(tmp_path / "enhanced.dcm")
    assert read_volume(tmp_path / "enhanced.dcm", allow_any_values=True).window == Window(level=50, width=100)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_it_as_its_display_range(tmp_path: Path, suffix: str) -> None:
    window = Window(level=39.5, width=399)
    file = tmp_path / f"a{suffix}"
    write_volume(replace(IMAGE, window=window), file)
    header = nibabel.load(file).header
    assert (header["cal_min"], header["cal_max"]) == (-160, 239)
    assert read_volume(file).window == window
    assert read_volume(file).canonical().window == window
    assert read_volume(file).with_voxels(np.zeros(IMAGE.shape, np.uint8)).window is None
    write_volume(IMAGE, file)
    assert read_volume(file).window is None


@pytest.mark.parametrize("ends", [(0, 0), (5, 5), (10, -10), (float("nan"), 3), (0, float("inf"))])
def test_a_display_range_that_is_none(tmp_path: Path, ends: tuple[float, float]) -> None:
    image = nibabel.Nifti1Image(IMAGE.voxels, IMAGE.affine)
    image.header["cal_min"], image.header["cal_max"] = ends
    nibabel.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").window is None


def test_a_label_has_none(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = 0, 7
    nibabel.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii", kind="label").window is None


def test_imported_series_have_it_still(tmp_path: Path) -> None:
    series(tmp_path / "in", WindowCenter=[-600, 40], WindowWidth=[1500, 400])
    (uid,) = import_studies(tmp_path / "in", tmp_path / "store").imported
    assert read_volume(tmp_path / "store" / f"{uid}.nii.gz").window == Window(level=-600.5, width=1499)


def test_asked_for_by_name() -> None:
    own = Window(level=7, width=70)
    assert window_from("header") == "header"
    assert seen_through("header", own) == own
    assert seen_through(Window.named("lung"), own) == Window.named("lung")
    with pytest.raises(InputError, match="no window") as caught:
        seen_through("header", None)
    assert all(name in str(caught.value) for name in WINDOWS)


def test_a_volume_on_another_grid_is_built_without_it() -> None:
    assert Volume(IMAGE.voxels, IMAGE.affine).window is None
