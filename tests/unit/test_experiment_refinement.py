"""The refinement experiment: its tables by hand, and a small form of all of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_sam import FakeSam
from polycl import devices
from polycl.errors import InputError, NotFoundError
from polycl.experiments import refinement_report as report
from polycl.experiments.coarse import Organ, few_label_model, organ
from polycl.experiments.refinement import CEILING, PROPOSED, SHIPPED, WITHIN, Study, Trial, within_reach
from polycl.experiments.remembering import Remembering
from polycl.experiments.tasks import headneck
from polycl.phantom import LABELS, make_phantom
from polycl.refinement import RefineParameters
from polycl.sam import Prompts
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit


def row(
    case: str, variant: str, before: tuple[float, float], after: tuple[float, float], **trial: Any
) -> dict[str, Any]:
    figures = [{"dice": dice, "hd95_mm": mm, "surface_dice": None} for dice, mm in (before, after)]
    return {
        "trial": {"case": case, "part": "validation", "budget": 10, "seed": 0, "variant": variant} | trial,
        "before": figures[0],
        "after": figures[1],
        "report": {"encodings": 6},
    }


ROWS = [
    row("a", PROPOSED, (0.8, 20.0), (0.9, 10.0)),
    row("b", PROPOSED, (0.9, 10.0), (0.88, 11.0)),
    row("a", "no band", (0.8, 20.0), (0.7, 30.0)),
    row("c", "no band", (0.8, 20.0), (0.1, 90.0)),
    row("a", CEILING, (0.8, 20.0), (0.95, 5.0)),
    row("a", WITHIN, (0.8, 20.0), (0.99, 1.0)),
    row("t", PROPOSED, (0.7, 30.0), (0.7, 30.0), part="test"),
    row("a", PROPOSED, (0.97, 4.0), (0.97, 4.0), budget=SHIPPED),
]


def test_the_sweep_compares_masks_that_the_defaults_have_too() -> None:
    lines = report.sweep(ROWS).splitlines()
    assert lines[2] == f"| {PROPOSED} | 2 | +0.0400 | -0.0200 | -30.0% | 6 |"
    assert lines[3] == "| no band | 1 | -0.1000 | -0.1000 | +50.0% | 6 |"
    assert len(lines) == 4


def test_the_gain_by_labelled_slices_with_its_limits() -> None:
    lines = report.by_budget(ROWS, "validation").splitlines()
    assert lines[2] == ("| 10 | 2 | 0.850 | 0.890 | -0.0200 | 15.0 | 10.5 | -30.0% | 0.990, 1.0 mm | 0.950, 5.0 mm |")
    assert lines[3].startswith("| the model that ships | 1 | 0.970 | 0.970 | +0.0000")
    assert report.by_budget(ROWS, "test").splitlines()[2].startswith("| 10 | 1 | 0.700 | 0.700")


def test_losses_are_named(tmp_path: Path) -> None:
    assert "1 of 4 masks lose more than 0.005" in report.worse(ROWS)
    assert "- b, 10, seed 0: 0.900 to 0.880" in report.worse(ROWS)
    assert report.worse(ROWS[:1]) == "None of 1 masks loses more than 0.005."
    ends = report.extremes(ROWS, ("a", "b"))
    assert {title: trial.case for title, trial in ends.items()} == {"better": "a", "worse": "b"}
    assert set(report.extremes(ROWS, ("a",))) == {"better"}
    assert report.extremes(ROWS, ("z",)) == {}
    report.plot(ROWS, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_within_reach_of_each_component_on_its_slice() -> None:
    coarse, reference = (np.zeros((30, 30, 3), np.uint8) for _ in range(2))
    coarse[10:15, 10:15, 1] = 1
    reference[4:28, 12, :] = 1
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    result = within_reach(Volume(coarse, affine), Volume(reference, affine), RefineParameters(reach=3.0)).voxels
    assert np.flatnonzero(result[:, 12, 1]).tolist() == list(range(7, 18))
    assert result.sum() == 11
    held = within_reach(Volume(coarse, affine), Volume(reference, affine), RefineParameters(reach=3.0, band=4.0)).voxels
    assert np.flatnonzero(held[:, 12, 1]).tolist() == list(range(8, 17))
    assert held[12, 12, 1] == 1  # the middle, which is beyond the band, is as it was
    assert held[10, 12, 1] == 1
    assert held[11, 11, 1] == 0


def test_answers_are_remembered_until_forgotten() -> None:
    class Counting(FakeSam):
        asked = 0

        def decode(self, embedding: Any, prompts: Prompts) -> Any:
            self.asked += 1
            return super().decode(embedding, prompts)

    inner = Counting()
    engine = Remembering(inner)
    one, other = (engine.encode(np.full((9, 9), grey, np.float32)) for grey in (0.6, 0.7))
    box, point = Prompts(box=np.array([1, 1, 4, 4])), Prompts([[2, 2]], [1])
    first = engine.decode_many(one, [box, point])
    assert engine.decode_many(one, [point, box]) == first[::-1]
    assert inner.asked == 2
    engine.decode(other, box)
    engine.decode(one, Prompts([[2, 2]], [1], box=np.array([1, 1, 4, 4])))
    assert inner.asked == 4
    engine.forget()
    engine.decode(one, box)
    assert inner.asked == 5


@pytest.fixture
def small(tmp_path: Path) -> Organ:
    """Two tiny patients to learn from, one to choose parameters on, one to test."""
    folder = tmp_path / "data" / "openkbp"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(4):
        patient = make_phantom(seed, shape=(28, 28, 6), spacing=(14.0, 14.0, 40.0))
        write_volume(patient.image, folder / "images" / f"p{seed}.nii.gz")
        labels = (patient.labels.voxels == LABELS["liver"]).astype(np.uint8) * np.uint8(7)
        write_volume(patient.labels.with_voxels(labels), folder / "labels" / f"p{seed}.nii.gz")
    task = headneck(tmp_path / "data")
    targets = task.targets[:1]
    cases = [(case, targets) for case in task.train]
    return Organ(
        "mandible", "polycl-headneck", replace(task, targets=targets, train=task.train[:2]), (cases[2],), (cases[3],)
    )


@pytest.mark.slow
def test_a_small_form_runs_resumes_and_reports(small: Organ, tmp_path: Path) -> None:
    where = devices.choose("cpu", "fp32")
    study = Study(small, FakeSam(), tmp_path / "rows.jsonl", tmp_path / "cache", where, steps=2)
    wanted = [*study.trials("validation", [3], 1, [PROPOSED, "no band", CEILING, WITHIN])]
    wanted += study.trials("test", [3], 1, [PROPOSED])
    for trial in study.missing(wanted):
        study.run(trial)
    assert study.missing(wanted) == []
    assert study.missing([*wanted, replace(wanted[0], seed=1)]) == [replace(wanted[0], seed=1)]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [one["trial"]["variant"] for one in rows] == [PROPOSED, "no band", CEILING, WITHIN, PROPOSED]
    assert len({json.dumps(one["before"]) for one in rows[:4]}) == 1
    assert (tmp_path / "cache" / "coarse" / "mandible-3-0-2.safetensors").is_file()
    assert Study(small, FakeSam(), study.results, tmp_path, where, steps=3).rows() == []
    old = rows[0] | {"parameters": rows[0]["parameters"] | {"reach": 1.0}}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(rows[1]) + "\n")
    assert Study(small, FakeSam(), tmp_path / "old.jsonl", tmp_path, where, steps=2).rows() == [rows[1]]
    study.draw(wanted[0], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_model_that_does_not_ship(small: Organ, tmp_path: Path) -> None:
    study = Study(small, FakeSam(), tmp_path / "rows.jsonl", tmp_path / "cache", devices.choose("cpu", "fp32"))
    with pytest.raises(InputError, match="no model that ships"):
        study.run(Trial("p2", "validation", SHIPPED, 0, PROPOSED))
    with pytest.raises(InputError, match="asked for"):
        few_label_model(small, 500, 0, 1, tmp_path, devices.choose("cpu", "fp32"))
    with pytest.raises(NotFoundError, match="liver, mandible"):
        organ("knee", tmp_path)
