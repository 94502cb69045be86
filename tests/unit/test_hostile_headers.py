"""Headers with any value in any field: the file is read to a volume that makes sense, or refused with a reason."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polycl.errors import PolyclError
from polycl.phantom import make_phantom, write_dicom_series
from polycl.volume import Volume, read_segments, read_series, read_volume

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]  # pydicom has much to say of such files

MAX_VOXELS = 20_000
SHAPE = (6, 5, 4)
INTEGERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 7, 127, 255, 32_767, -32_768]) | st.integers(-(2**15), 2**15 - 1)
REALS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-30, 1e30])
USUAL = nib.Nifti1Header()
USUAL.set_data_shape(SHAPE)
USUAL.set_sform(np.diag([-2.0, -2, 3, 1]), 1)
NIFTI = {
    **dict.fromkeys(("dim", "datatype", "bitpix", "qform_code", "sform_code"), INTEGERS),
    **dict.fromkeys(("pixdim", "srow_x", "srow_y", "srow_z", "scl_slope", "scl_inter", "vox_offset"), REALS),
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "cal_min", "cal_max"), REALS),
    **dict.fromkeys(("xyzt_units", "dim_info"), st.integers(0, 255)),
    "sizeof_hdr": st.sampled_from([348, 540, 0, -1]),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b"", b"xxxx"]),
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(2,0,0) (0,2,0) (0,0,3)",
    "space origin": "(0,0,0)",
    "kinds": "domain domain domain",
    "encoding": "raw",
    "endian": "little",
}
WORDS = st.sampled_from(
    (
        *("6", "5", "4", "0", "-1", "1e999", "nan", "9" * 30, "none", "", "(", ")", "(1,0,0)", "(nan,0,0)", "(0,0,0)"),
        *("gzip", "bzip2", "hex", "ascii", "block", "double", "uchar", "list", "vector", "RAS", "scanner-xyz", "big"),
    )
)
DICOM = {
    "Rows": st.integers(0, 2**16 - 1),
    "Columns": st.integers(0, 2**16 - 1),
    "BitsAllocated": st.sampled_from([0, 1, 8, 16, 32, 12]),
    "BitsStored": st.integers(0, 40),
    "PixelRepresentation": st.integers(0, 3),
    "SamplesPerPixel": st.integers(0, 4),
    "NumberOfFrames": st.integers(-1, 2**31 - 1),
    "ImagePositionPatient": st.lists(REALS, max_size=4),
    "ImageOrientationPatient": st.lists(REALS, max_size=7),
    "PixelSpacing": st.lists(REALS, max_size=3),
    "RescaleSlope": REALS,
    "RescaleIntercept": REALS,
    "WindowCenter": st.lists(REALS, max_size=2),
    "SeriesInstanceUID": st.sampled_from(["", "1.2", "../x", "1." * 40]),
    "Modality": st.sampled_from(["CT", "MR", "", "SEG"]),
}
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def some_of(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the fields, each with a value of its own."""
    return st.sets(st.sampled_from(sorted(fields)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in sorted(names)})
    )


def read(path: Path) -> list[Volume]:
    """What the readers give of a file."""
    found = []
    for kind in ("ct", "label"):
        with suppress(PolyclError):
            found.append(read_volume(path, kind=kind, max_voxels=MAX_VOXELS, allow_any_values=True))
    with suppress(PolyclError):
        read_segments(path)
    return found


def makes_sense(volume: Volume) -> None:
    assert volume.voxels.ndim == 3
    assert 0 < volume.voxels.size <= MAX_VOXELS
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine[:3, :3])) > 0


@given(some_of(NIFTI), st.data())
@QUICK
def test_nifti(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.nii"
    block = USUAL.structarr.copy()
    block["magic"], block["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        if block[name].shape:
            block[name][data.draw(st.integers(0, block[name].size - 1))] = value
        else:
            block[name] = value
    path.write_bytes(block.tobytes() + bytes(4) + np.arange(np.prod(SHAPE), dtype="<f4").tobytes())
    for volume in read(path):
        makes_sense(volume)


@given(some_of(dict.fromkeys(NRRD, st.lists(WORDS, max_size=5).map(" ".join))))
@QUICK
def test_nrrd(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.nrrd"
    lines = [f"{name}: {value}\n" for name, value in (NRRD | fields).items()]
    path.write_bytes("".join(["NRRD0004\n", *lines, "\n"]).encode() + np.arange(np.prod(SHAPE), dtype="<i2").tobytes())
    for volume in read(path):
        makes_sense(volume)


@given(some_of(DICOM))
@QUICK
def test_dicom(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile-series"
    if not folder.is_dir():
        phantom = make_phantom(0, shape=(9, 8, 4), spacing=(40.0, 40.0, 100.0))
        write_dicom_series(phantom.image, folder, seed=0)
    file = sorted(folder.iterdir())[1]
    whole = file.read_bytes()
    dataset = pydicom.dcmread(file)
    try:
        for name, value in fields.items():
            setattr(dataset, name, value)
        dataset.save_as(file)
    except (ValueError, TypeError, OverflowError):  # what no program could write
        file.write_bytes(whole)
        return
    try:
        with suppress(PolyclError):
            makes_sense(read_series(folder, max_voxels=MAX_VOXELS))
    finally:
        file.write_bytes(whole)
