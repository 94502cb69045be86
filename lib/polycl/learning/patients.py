"""Who is kept for validation: fixed by patient, once and for ever.

A patient is a DICOM PatientID where that is known, else an image. Two series of one patient look alike, so that one of
them among the training data would make a score on the other too good.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from polycl.checkpoints import Typed
from polycl.errors import InputError
from polycl.files import write_atomically

Role = Literal["train", "validate"]

EVERY = 3
"""Each so-manieth new patient is kept for validation: three of the first nine, enough to publish by."""
MOST = 9
"""So many are kept at most: scoring them takes as long as they are many."""
NAMELESS = re.compile(r"(anon|unk|none|null|de-?id|removed|patient|test)[a-z ^_-]*|[x0]*", re.IGNORECASE)
"""What is written in place of a PatientID that was removed; it tells nobody apart."""
NOTES, LOCK = ".patients.json", ".lock"


class _Roles(Typed):
    format: Literal[1] = 1
    roles: dict[str, Role] = Field(default_factory=dict)


class Patients:
    """The roles in `file`. Several processes may ask at once."""

    def __init__(self, file: Path, *, every: int = EVERY, most: int = MOST) -> None:
        self._file, self._every, self._most = file, every, most

    def roles(self, wanted: Sequence[str]) -> dict[str, Role]:
        """The role of each patient, by mark. Who has none gets one, in this order, and keeps it.

        InputError if what was kept cannot be read: to start anew would train on patients that are scored by.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_suffix(".lock")):
            roles = self._read()
            before = len(roles)
            for patient in wanted:
                roles.setdefault(patient, self._next(roles))
            if len(roles) > before:
                write_atomically(self._file, _Roles(roles=roles).model_dump_json().encode())
        return {patient: roles[patient] for patient in wanted}

    def _next(self, roles: dict[str, Role]) -> Role:
        full = sum(role == "validate" for role in roles.values()) >= self._most
        return "train" if full or (len(roles) + 1) % self._every else "validate"

    def _read(self) -> dict[str, Role]:
        try:
            return _Roles.model_validate_json(self._file.read_bytes()).roles
        except FileNotFoundError:
            return {}
        except ValidationError:
            raise InputError(
                "the list of validation patients is damaged; restore it from a backup, or remove it to choose anew",
                hint=f"it is {self._file}",
            ) from None


def mark(patient: str) -> str:
    """A short hash that stands for a patient where their id should not."""
    return hashlib.sha256(patient.encode(errors="surrogateescape")).hexdigest()[:16]


def patient_of_dicom(file: Path) -> str | None:
    """The PatientID in a DICOM file; None if there is none, or one that stands for many."""
    import pydicom

    try:
        header = pydicom.dcmread(file, specific_tags=["PatientID"], stop_before_pixels=True, force=True)
        found = str(header.get("PatientID") or "").strip()
    except Exception:  # a header by a stranger may raise nearly anything
        return None
    return None if NAMELESS.fullmatch(found) else found


def note_patient(store: Path, image: str, file: Path) -> None:
    """Note, beside a store's images, the patient of one that was made of the DICOM file given; as a hash."""
    if (patient := patient_of_dicom(file)) is None:
        return
    with FileLock(store / LOCK):
        write_atomically(store / NOTES, json.dumps(_notes(store) | {image: mark(patient)}).encode())


def patient_of(store: Path, image: str) -> str:
    """The patient of an image of the store: noted at import, or in the series kept beside it; else the image's id."""
    if (noted := _notes(store).get(image)) is not None:
        return noted
    series = store / image
    if series.is_dir() and (file := min(series.glob("*.dcm"), default=None)) is not None:
        patient = patient_of_dicom(file)
        return image if patient is None else mark(patient)
    return image


def _notes(store: Path) -> dict[str, str]:
    try:
        found = json.loads((store / NOTES).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(image): str(patient) for image, patient in found.items()} if isinstance(found, dict) else {}
