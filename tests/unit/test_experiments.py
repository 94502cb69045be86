"""The label-efficiency experiment: its figures by hand, and a small form of all of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from polycl import devices
from polycl.contrast.health import Health
from polycl.contrast.pretraining import Report
from polycl.errors import NotFoundError
from polycl.experiments import collapse, report
from polycl.experiments.label_efficiency import ALL, Experiment, Plan, Run, runs
from polycl.experiments.tasks import task
from polycl.phantom import make_phantom
from polycl.volume import write_volume

pytestmark = pytest.mark.unit


def row(method: str, budget: int, seed: int, dice: dict[str, float]) -> dict[str, Any]:
    scores = {case: {"organ": {"dice": d, "hd95_mm": None, "surface_dice": d}} for case, d in dice.items()}
    return {"task": "t", "method": method, "budget": budget, "seed": seed, "scores": {"test": scores}}


ROWS = [
    row("none", 10, 0, {"a": 0.2, "b": 0.4, "c": 0.6}),
    row("none", 10, 1, {"a": 0.4, "b": 0.4, "c": 0.4}),
    row("mixed", 10, 0, {"a": 0.3, "b": 0.6, "c": 0.9}),
    row("mixed", 10, 1, {"a": 0.5, "b": 0.5, "c": 0.5}),
    row("mixed", ALL, 0, {"a": 1.0, "b": 1.0, "c": 1.0}),
]


def test_a_cell_is_the_mean_and_spread_over_seeds() -> None:
    cell = report.cells(ROWS, "test", "dice")["mixed", 10]
    assert cell.by_seed == pytest.approx({0: 0.6, 1: 0.5})
    assert cell.mean == pytest.approx(0.55)
    assert cell.spread == pytest.approx(0.1 / np.sqrt(2))


def test_differences_are_paired_by_seed_and_case() -> None:
    found = report.paired_difference(ROWS, "test", "mixed", "none", 10)
    assert found is not None
    by_case = [(0.1 + 0.1) / 2, (0.2 + 0.1) / 2, (0.3 + 0.1) / 2]
    assert found[0] == pytest.approx(np.mean(by_case))
    assert found[1] == pytest.approx(stats.wilcoxon(by_case).pvalue)
    assert report.paired_difference(ROWS, "test", "mixed", "none", ALL) is None


def test_tables_have_a_row_a_method_and_a_column_a_budget() -> None:
    lines = report.table(ROWS, "test", ["none", "mixed"], "dice").splitlines()
    assert lines[0] == "| method | 10 slices | all slices |"
    assert lines[2] == "| none | 0.400 ± 0.000 (2) |  |"
    assert lines[3] == "| mixed | 0.550 ± 0.071 (2) | 1.000 (1) |"
    assert "+0.150" in report.differences(ROWS, "test", ["none", "mixed"], "none")
    assert "|  |" in report.table(ROWS, "test", ["none"], "hd95_mm")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four tiny patients laid out as the head-and-neck set is, with ids that it has."""
    folder = tmp_path / "data" / "openkbp"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(4):
        patient = make_phantom(seed, shape=(28, 28, 6), spacing=(14.0, 14.0, 40.0))
        write_volume(patient.image, folder / "images" / f"p{seed}.nii.gz")
        patient.labels.voxels[:, :, :2] = 0
        write_volume(patient.labels, folder / "labels" / f"p{seed}.nii.gz")
    return tmp_path / "data"


def test_unknown_tasks_are_refused(data: Path) -> None:
    with pytest.raises(NotFoundError, match="headneck, liver"):
        task("knee", data)


@pytest.mark.slow
def test_a_small_form_runs_resumes_and_reports(data: Path, tmp_path: Path) -> None:
    small = task("headneck", data, patients=2)
    plan = Plan(pretrain_steps=2, pretrain_batch=4, finetune_steps=2, finetune_batch=2)
    results = tmp_path / "rows.jsonl"
    experiment = Experiment(small, plan, results, tmp_path / "cache", devices.choose("cpu", "fp32"))
    methods = (
        "none",
        "none-long",
        "simclr",
        "mixed",
        "mixed-frozen",
        "mixed-local",
        "mixed-local-absent",
        "mixed-self",
    )
    wanted = runs(small, 1, methods, (3,))
    for run in experiment.missing(wanted):
        experiment.run(run)
    assert experiment.missing(wanted) == []
    assert experiment.missing([*wanted, Run("none", 3, 1)]) == [Run("none", 3, 1)]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [one["method"] for one in rows] == list(methods)
    assert not any(one.classes.any() for one in experiment.absent())
    assert len(experiment.absent()) + len(experiment.pool()) == 2 * 6
    encoders = {file.name.split("-0-")[0] for file in (tmp_path / "cache" / "encoders").iterdir()}
    assert encoders == {"headneck-simclr", "headneck-mixed", "headneck-mixed-local"}, (
        "how a method fine-tunes makes no other encoder"
    )
    for one in rows:
        scores = one["scores"]["in domain"]
        assert set(scores["p0"]) == {"mandible", "right parotid", "brainstem"}
        assert all(0 <= figures["dice"] <= 1 for figures in scores["p0"].values() if figures["dice"] is not None)
    report.plot(rows, "in domain", ("none", "mixed"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    other = Experiment(small, Plan(), results, tmp_path / "cache", devices.choose("cpu", "fp32"))
    assert other.rows() == [], "rows of another plan are another experiment"


@pytest.mark.slow
def test_collapse_is_told_of_each_norm_and_pooling(data: Path, tmp_path: Path) -> None:
    small = task("headneck", data, patients=2)
    plan = Plan(pretrain_steps=12, pretrain_batch=8)
    study = Experiment(small, plan, tmp_path / "rows.jsonl", tmp_path / "cache", devices.choose("cpu", "fp32"))
    views, recipe = study.views("scan", 0), study.recipe("scan", 0)
    outcomes = collapse.compare(small.coarse, views, recipe, study.where, tmp_path)
    assert len({(one.norm, one.pooling) for one in outcomes}) == 6
    assert all(0 <= one.spread <= 1 and 1 <= one.rank <= 24 and one.loss >= 0 for one in outcomes)
    assert len(collapse.table(outcomes).splitlines()) == 2 + 6


def test_a_run_that_recovers_has_not_collapsed() -> None:
    def look(step: int, warning: str | None) -> Report:
        return Report(step, 40, 0.5, 1.0, None, Health(0.05, 3.0, warning))

    recovered = [look(10, "collapse"), look(20, None), look(30, "collapse"), look(40, None)]
    assert collapse.outcome("batch", "grid", recovered, 256).collapsed_at is None
    assert collapse.outcome("batch", "grid", recovered[:3], 256).collapsed_at == 30
    assert collapse.outcome("batch", "grid", recovered[:1], 256).collapsed_at == 10
    assert collapse.outcome("batch", "grid", recovered, 256).spread == pytest.approx(0.05 * 16)
