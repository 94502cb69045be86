"""Writes a volume as a CT series of single-slice DICOM files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from polycl.errors import InputError
from polycl.volume import Volume

INTERCEPT = -1024
_LPS = np.diag([-1.0, -1.0, 1.0])


def write_dicom_series(
    volume: Volume, folder: Path | str, *, seed: int, decreasing: bool = False, series: int = 1
) -> list[Path]:
    """One CT Image Storage file a slice, in `folder` (made if need be); returns the paths in the order of their names.

    Slices run along the volume's third axis, columns along its first and rows along its second, so that `LPS` gives
    the usual axial series. Names, patient and UIDs follow from `seed` and `series` (the number of the series in its
    study): a second call writes the same files. `decreasing` numbers the slices from the last to the first. Raises
    `InputError` for a volume whose voxels are not int16 or whose axes are not at right angles.
    """
    voxels = volume.voxels
    if voxels.dtype != np.int16:
        raise InputError(f"A CT series holds int16 HU, not {voxels.dtype}.")
    step = _LPS @ volume.affine[:3, :3]
    spacing = np.linalg.norm(step, axis=0)
    direction = step / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise InputError("A CT series has axes at right angles; this volume's are sheared.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origin = _LPS @ volume.affine[:3, 3]
    count = voxels.shape[2]
    paths = []
    for number in range(count):
        k = count - 1 - number if decreasing else number
        path = folder / f"CT{number + 1:04d}.dcm"
        data = _dataset(path, seed, series, number + 1)
        _set_plane(data, direction, spacing, origin + step[:, 2] * k)
        # Rescaled by 1 and -1024, HU from -1024 are stored unsigned in 16 bits.
        stored = (np.clip(voxels[:, :, k].T.astype(np.int32), INTERCEPT, 32767) - INTERCEPT).astype("<u2")
        data.Rows, data.Columns = stored.shape
        data.PixelData = np.ascontiguousarray(stored).tobytes()
        data.save_as(path, write_like_original=False)
        paths.append(path)
    return paths


def _uid(*parts: object) -> str:
    return str(generate_uid(entropy_srcs=["polycl-phantom", *(str(p) for p in parts)]))


def _dataset(path: Path, seed: int, series: int, number: int) -> FileDataset:
    """Everything but the plane and the pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(seed, series, number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyDate": "20240101", "SeriesDate": "20240101", "AcquisitionDate": "20240101", "ContentDate": "20240101",
        "StudyTime": "120000", "SeriesTime": "120000", "AcquisitionTime": "120000", "ContentTime": "120000",
        "AccessionNumber": f"PHANTOM{seed}", "Modality": "CT", "Manufacturer": "PolyCL phantom",
        "ReferringPhysicianName": "", "StudyDescription": "Abdomen phantom", "SeriesDescription": "Portal venous",
        "PatientName": f"PHANTOM^SEED{seed}", "PatientID": f"PHANTOM{seed}", "PatientBirthDate": "", "PatientSex": "O",
        "BodyPartExamined": "ABDOMEN", "KVP": "120", "PatientPosition": "HFS", "ConvolutionKernel": "B30",
        "StudyInstanceUID": _uid(seed, "study"), "SeriesInstanceUID": _uid(seed, series, "series"),
        "FrameOfReferenceUID": _uid(seed, "frame"), "PositionReferenceIndicator": "",
        "StudyID": str(seed), "SeriesNumber": series, "AcquisitionNumber": 1, "InstanceNumber": number,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
        "RescaleIntercept": str(INTERCEPT), "RescaleSlope": "1", "RescaleType": "HU",
        "WindowCenter": "40", "WindowWidth": "400",
    }  # fmt: skip
    for name, value in values.items():
        setattr(data, name, value)
    return data


def _set_plane(
    data: FileDataset,
    direction: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    position: npt.NDArray[np.float64],
) -> None:
    """Where the slice lies: first the direction of a row (along the columns), then that of a column (DICOM C.7.6.2)."""
    data.ImagePositionPatient = [_decimal(v) for v in position]
    data.ImageOrientationPatient = [_decimal(v) for v in (*direction[:, 0], *direction[:, 1])]
    data.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    data.SliceThickness = _decimal(spacing[2])
    data.SliceLocation = _decimal(float(position @ direction[:, 2]))


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    for digits in range(12, 0, -1):
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
        if len(text) <= 16:
            return "0" if text in ("", "-0") else text
    return f"{value:.9e}"
