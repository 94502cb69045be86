"""Writes phantoms into a folder, as a sample store of studies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from polycl.errors import InputError
from polycl.phantom.dicom import write_dicom_series
from polycl.phantom.scanner import make_phantom
from polycl.volume import write_volume


def write_study(
    folder: Path | str,
    seeds: Iterable[int],
    *,
    format: Literal["nifti", "dicom"] = "nifti",
    shape: tuple[int, int, int] = (256, 256, 64),
    spacing: tuple[float, float, float] = (1.5, 1.5, 4.0),
    labels: bool = False,
) -> list[Path]:
    """One phantom a seed: `phantom_000.nii.gz`, or a folder `phantom_000` of DICOM files; returns what was written.

    With `labels`, the label maps (numbered by `LABELS`) go to `labels/` beside them, under the same names as NIfTI.
    Raises `InputError` for another format.
    """
    if format not in ("nifti", "dicom"):
        raise InputError(f"A phantom is written as nifti or dicom, not {format!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for seed in seeds:
        phantom = make_phantom(seed, shape=shape, spacing=spacing)
        name = f"phantom_{seed:03d}"
        if format == "nifti":
            path = folder / f"{name}.nii.gz"
            write_volume(phantom.image, path)
        else:
            path = folder / name
            write_dicom_series(phantom.image, path, seed=seed)
        written.append(path)
        if labels:
            (folder / "labels").mkdir(exist_ok=True)
            write_volume(phantom.labels, folder / "labels" / f"{name}.nii.gz")
    return written
