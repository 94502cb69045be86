"""Saved labels as a training run uses them: which image, which patient, what is known where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.checkpoints import Typed
from polycl.errors import InputError
from polycl.labels.record import LabelRecord, SavedLabel
from polycl.learning.patients import Patients, mark
from polycl.volume import Volume, read_volume


class Example(Typed):
    """One labelled image. `patient` is a mark that tells patients apart and names none."""

    patient: str
    image: Path
    label: Path
    record: LabelRecord

    def read(self) -> tuple[Volume, Volume]:
        """Image and label in canonical axes; InputError if they are not on one grid, or are not what was recorded."""
        image = read_volume(self.image, allow_any_values=True)
        label = read_volume(self.label, kind="label")
        image.require_same_grid(label, "the label")
        image, label = image.canonical(), label.canonical()
        if image.shape != self.record.shape:
            raise InputError(f"the image has another shape than when it was labelled: {image.shape}")
        return image, label

    def where(self, label: Volume, name: str) -> NDArray[np.bool_]:
        """The voxels of the structure `name` in this example's label map."""
        value = self.record.labels.get(name)
        if value is None:  # known without a segment of its own: marked as absent
            return np.zeros(label.shape, dtype=bool)
        return label.voxels == value

    def knows(self, labels: Iterable[str]) -> list[str]:
        """Those of the names that this label tells of, somewhere."""
        return [name for name in labels if self.record.known_slices(name).any()]


def split(
    saved: Sequence[SavedLabel], labels: Mapping[str, int], patient_of: Callable[[str], str], patients: Patients
) -> tuple[list[Example], list[Example]]:
    """The labels that tell of any of `labels`: those to train on, and those of the patients kept for validation.

    Args:
        patient_of: the patient of an image, by its id.
        patients: who was which so far; those who are new join in the order in which they were labelled.
    """
    examples = [
        Example(patient=mark(patient_of(one.image_id)), image=one.image, label=one.label, record=one.record)
        for one in saved
    ]
    examples = sorted((one for one in examples if one.knows(labels)), key=lambda one: one.record.saved)
    roles = patients.roles([one.patient for one in examples])
    train = [one for one in examples if roles[one.patient] == "train"]
    return train, [one for one in examples if roles[one.patient] == "validate"]
