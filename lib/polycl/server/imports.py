"""DICOM series into a local store, as NIfTI files named by their SeriesInstanceUID."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polycl.errors import InputError, PolyclError
from polycl.learning.patients import note_patient
from polycl.volume import SeriesInfo, check_ct, list_series, read_series, write_volume

Progress = Callable[[int, int], None]
"""Called with series done and series in all."""

UID = re.compile(r"[0-9.]{1,64}")


@dataclass
class ImportReport:
    """What became of each series, by UID; `refused` holds the reasons."""

    imported: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def import_studies(folder: str | Path, store: str | Path, progress: Progress | None = None) -> ImportReport:
    """Write every CT series found in `folder`, and below, to `store/<SeriesInstanceUID>.nii.gz`.

    Series that are in the store already are not read again. A series that cannot be used (no CT, missing slices, gantry
    tilt, …) is refused with the reason and does not stop the others. Raises InputError if there is no DICOM at all, or
    if the store cannot be written.
    """
    found = list_series(Path(folder))
    if not found:
        raise InputError(f"{folder} holds no NIfTI, NRRD or DICOM files")
    store = Path(store)
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the store {store}: {error.strerror}") from None
    report = ImportReport()
    for done, series in enumerate(found, start=1):
        _import(series, store, report)
        if progress is not None:
            progress(done, len(found))
    return report


def _import(series: SeriesInfo, store: Path, report: ImportReport) -> None:
    target = store / f"{series.uid}.nii.gz"
    if not UID.fullmatch(series.uid):
        report.refused[series.uid] = "its SeriesInstanceUID is not one"
    elif target.exists():
        report.present.append(series.uid)
    else:
        try:
            volume = read_series(series.files)
            check_ct(volume.voxels)
            note_patient(store, series.uid, series.files[0])
            write_volume(volume, target)
        except PolyclError as error:
            report.refused[series.uid] = str(error)
        else:
            report.imported.append(series.uid)
