"""Which model is let through, and which patients say so."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset

from polycl.errors import InputError
from polycl.learning.gate import Rule, decide
from polycl.learning.patients import Patients, mark, note_patient, patient_of, patient_of_dicom
from polycl.learning.scores import Cell, Scores

pytestmark = pytest.mark.unit

Table = dict[str, dict[str, float | None]]


def scores(table: Table) -> Scores:
    """Of each patient, who has one image, the Dice of each label."""
    return Scores(
        cells=tuple(
            Cell(image=f"image of {patient}", patient=patient, label=label, dice=dice)
            for patient, row in table.items()
            for label, dice in row.items()
        )
    )


def liver(*values: float | None) -> Scores:
    return scores({f"p{index}": {"liver": value} for index, value in enumerate(values)})


@pytest.mark.parametrize(
    ("before", "after", "publish", "reason"),
    [
        (liver(0.5, 0.6, 0.7), liver(0.6, 0.7, 0.8), True, "mean Dice 0.600 before, 0.700 after"),
        (liver(0.5, 0.6, 0.7), liver(0.5, 0.6, 0.7), False, "a gain of 0.005 is needed"),
        (liver(0.5, 0.6, 0.7), liver(0.501, 0.601, 0.701), False, "a gain of 0.005 is needed"),
        (liver(0.5, 0.6), liver(0.8, 0.8), False, "3 validation patients are needed"),
        (liver(0.5, 0.6, 0.9), liver(0.9, 0.9, 0.8), False, "1 patient falls by more than 0.05"),
        (liver(), liver(), False, "no validation patient"),
        (liver(None, None, None), liver(None, None, None), False, "no validation patient"),
        # an organ that is not there: finding none is right, and inventing one is wrong
        (liver(0.5, 0.5, None), liver(0.9, 0.9, 0.0), False, "falls by more than"),
        (liver(0.5, 0.5, 0.0), liver(0.5, 0.5, None), True, "mean Dice 0.333 before, 0.667 after"),
    ],
)
def test_what_is_let_through(before: Scores, after: Scores, publish: bool, reason: str) -> None:
    decision = decide(before, after, Rule())
    assert decision.publish is publish
    assert reason in decision.reason


def test_no_structure_may_pay_for_another() -> None:
    before = scores({f"p{index}": {"liver": 0.5, "spleen": 0.9} for index in range(3)})
    after = scores({f"p{index}": {"liver": 0.9, "spleen": 0.88} for index in range(3)})
    decision = decide(before, after, Rule())
    assert not decision.publish
    assert "spleen falls from 0.900 to 0.880" in decision.reason


def test_a_patient_counts_once_however_many_images() -> None:
    cells = [Cell(image=f"i{index}", patient="a", label="liver", dice=0.9) for index in range(9)]
    both = Scores(cells=(*cells, Cell(image="j", patient="b", label="liver", dice=0.1)))
    assert both.dice == pytest.approx(0.5)
    assert "on 2 validation patients" in decide(both, both, Rule()).reason


def test_models_scored_on_other_labels_are_not_compared() -> None:
    with pytest.raises(InputError, match="same labels"):
        decide(liver(0.5, 0.6), liver(0.5), Rule())


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 0.2))
def test_nothing_worse_is_ever_let_through(pairs: list[tuple[float, float]], margin: float) -> None:
    before, after = liver(*(was for was, _ in pairs)), liver(*(now for _, now in pairs))
    if decide(before, after, Rule(margin=margin, patients=1)).publish:
        gain = sum(now - was for was, now in pairs) / len(pairs)
        assert gain > 0
        assert gain >= margin - 1e-9
        assert all(was - now <= 0.05 + 1e-9 for was, now in pairs)


def test_every_third_new_patient_is_kept_for_validation_up_to_a_number(tmp_path: Path) -> None:
    patients = Patients(tmp_path / "patients.json", every=3, most=2)
    roles = patients.roles([f"p{index}" for index in range(1, 11)])
    assert [name for name, role in roles.items() if role == "validate"] == ["p3", "p6"]


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=6))
def test_a_role_is_for_ever(tmp_path_factory: pytest.TempPathFactory, rounds: list[list[int]]) -> None:
    file = tmp_path_factory.mktemp("patients") / "patients.json"
    known: dict[str, str] = {}
    for numbers in rounds:
        roles = Patients(file).roles([str(number) for number in numbers])
        assert set(roles) == {str(number) for number in numbers}
        assert all(known.setdefault(name, role) == role for name, role in roles.items())


def test_a_damaged_list_of_patients_is_not_started_anew(tmp_path: Path) -> None:
    (tmp_path / "patients.json").write_text("{")
    with pytest.raises(InputError, match="validation patients is damaged"):
        Patients(tmp_path / "patients.json").roles(["a"])


def dicom(path: Path, patient: str | None) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.SOPInstanceUID = "1.2.3"
    if patient is not None:
        dataset.PatientID = patient
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, write_like_original=False)
    return path


@pytest.mark.parametrize("patient", ["", "  ", None, "ANONYMOUS", "anon", "unknown", "xxx", "000", "De-identified"])
def test_an_id_that_stands_for_many_is_none(tmp_path: Path, patient: str | None) -> None:
    assert patient_of_dicom(dicom(tmp_path / "a.dcm", patient)) is None


@pytest.mark.parametrize("patient", ["123", "ANON-0012", "LITS_3", "x1"])
def test_an_id_of_one_patient_is_taken(tmp_path: Path, patient: str) -> None:
    assert patient_of_dicom(dicom(tmp_path / "a.dcm", patient)) == patient


def test_series_of_one_patient_are_one_patient_and_the_id_is_not_kept(tmp_path: Path) -> None:
    for series in ("1.1", "1.2"):
        note_patient(tmp_path, series, dicom(tmp_path / "in" / f"{series}.dcm", "Jane-42"))
    dicom(tmp_path / "1.3" / "000000.dcm", "Jane-42")  # as the series of a PACS are kept
    assert {patient_of(tmp_path, series) for series in ("1.1", "1.2", "1.3")} == {mark("Jane-42")}
    assert patient_of(tmp_path, "case_7") == "case_7"
    assert "Jane" not in json.dumps(json.loads((tmp_path / ".patients.json").read_text()))


def test_a_file_that_is_no_dicom_tells_no_patient(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    assert patient_of_dicom(tmp_path / "a.dcm") is None
    assert patient_of_dicom(tmp_path / "missing.dcm") is None
