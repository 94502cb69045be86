"""The scans of a folder: a data set, a folder that MONAI Label keeps, or DICOM series, one to a folder."""

from __future__ import annotations

from pathlib import Path

from polycl.dataset import SUFFIXES, Case, case_name, find_cases
from polycl.errors import InputError, NotFoundError
from polycl.volume import list_series


def find_scans(folder: Path) -> list[Case]:
    """The scans in `folder`, in order; with their labels where it is a data set.

    Data sets and MONAI Label's folders name a scan by its file, DICOM by its series UID. NotFoundError if there is
    none, InputError if one folder holds several CT series.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    if (folder / "images").is_dir():
        return find_cases(folder, labelled=False)
    files = {case_name(file): file for file in sorted(folder.iterdir()) if file.name.endswith(SUFFIXES)}
    if files:
        return [Case(name, file, None) for name, file in files.items()]
    series = [one for one in list_series(folder) if one.modality == "CT"]
    if not series:
        raise NotFoundError(f"{folder} holds no scans: no folder images/, no volumes, no DICOM series of CT")
    folders = [one.files[0].parent for one in series]
    if len(set(folders)) < len(series):
        raise InputError(f"a folder in {folder} holds several CT series; give each series a folder of its own")
    return [Case(one.uid, place, None) for one, place in zip(series, folders, strict=True)]
