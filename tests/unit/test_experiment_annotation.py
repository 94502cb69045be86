"""Played annotators: their figures by hand, what they reveal, and a small form of the whole experiment."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_sam2 import FakeSam2
from polycl import devices
from polycl.acquisition.scores import Scores, score
from polycl.acquisition.selection import Candidate, Pick, choose
from polycl.dataset import LabelledSlice
from polycl.errors import InputError
from polycl.experiments import annotation
from polycl.experiments import annotation_report as report
from polycl.experiments import rows as row_file
from polycl.experiments.annotation import ALL, Annotation, Plan, Round, rounds
from polycl.experiments.annotation_report import Point
from polycl.experiments.annotator import (
    CHECK_MINUTES,
    END_MINUTES,
    OPEN_MINUTES,
    OUTLINE_MINUTES,
    Effort,
    Ends,
    Knowledge,
    Pool,
)
from polycl.experiments.filling import Filling
from polycl.experiments.tasks import Task, task
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.volume import Volume, write_volume

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Four tiny patients laid out as the head-and-neck set is, with ids that it has; two slices hold nothing."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "openkbp"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(4):
        patient = make_phantom(seed, shape=(28, 28, 6), spacing=(14.0, 14.0, 40.0))
        write_volume(patient.image, folder / "images" / f"p{seed}.nii.gz")
        patient.labels.voxels[:, :, :2] = 0
        write_volume(patient.labels, folder / "labels" / f"p{seed}.nii.gz")
    return task("headneck", data, patients=3)


@pytest.fixture(scope="module")
def pool(small: Task) -> Pool:
    return Pool(small.train, small.targets)


def outlines(pool: Pool, name: str, z: int) -> int:
    return len(set(np.unique(pool.slices[name][z].classes)) - {0})


def test_the_pool_knows_which_slices_hold_something(pool: Pool) -> None:
    for name, slices in pool.slices.items():
        assert [bool(one.classes.any()) for one in slices] == pool.holding[name].tolist()
        assert pool.holding[name].any()


def test_slices_are_revealed_one_by_one(pool: Pool) -> None:
    known = Knowledge.of([[Pick("p0", 4, 0.0)], [Pick("p0", 0, 0.0), Pick("p1", 3, 0.0)]], pool, "slices", None)
    assert [(one.case, one.index) for one in known.slices] == [("p0", 4), ("p0", 0), ("p1", 3)]
    assert known.effort == Effort(opened=3, slices=3, outlines=outlines(pool, "p0", 4) + outlines(pool, "p1", 3))
    assert list(known.left("p0", 6)) == [1, 2, 3, 5]
    assert list(known.covered("p0", 6)) == [True, False, False, False, True, False]  # type: ignore[arg-type]
    assert list(known.left("p2", 6)) == list(range(6))


def test_a_volume_is_revealed_at_once(pool: Pool) -> None:
    known = Knowledge.of([[Pick("p1", 0, 0.0)]], pool, "volumes", None)
    assert len(known.slices) == 6
    assert known.effort.slices == int(pool.holding["p1"].sum())
    assert len(known.left("p1", 6)) == 0
    assert known.covered("p1", 6) is None


def test_propagation_fills_a_volume_from_a_slice_that_holds_something(pool: Pool) -> None:
    asked = []

    def fill(case: str, z: int, ends: Ends) -> NDArray[np.uint8]:
        asked.append((case, z))
        assert not ends
        return np.full((28, 28, 6), 1, np.uint8)

    known = Knowledge.of([[Pick("p2", 0, 0.0)]], pool, "propagated", fill)
    nearest = int(np.flatnonzero(pool.holding["p2"])[0])
    assert asked == [("p2", nearest)]
    here = pool.slices["p2"][nearest].classes
    assert known.effort == Effort(opened=1, slices=1, outlines=outlines(pool, "p2", nearest), checked=1)
    radius = float(np.sqrt((here == 1).sum() * 14.0**2 / np.pi))
    for one in known.slices:
        if one.index == nearest:
            assert one.known is None
            assert one is pool.slices["p2"][nearest], "what was annotated is as it was annotated"
        else:
            assert one.known == (1,), "what was not painted is unknown, never background"
            assert (one.classes == 1).all()
            assert abs(one.index - nearest) * 40.0 <= radius, "far away propagation is not believed"
    with pytest.raises(InputError, match="propagates"):
        Knowledge.of([[Pick("p2", 0, 0.0)]], pool, "propagated", None)


def painted(**slices: list[int]) -> Pool:
    """A pool of one image "a": each list has, slice by slice, the pixels of a class, the first those of class 1."""
    pool = Pool([], [])
    stacks = list(slices.values())
    for z in range(len(stacks[0])):
        classes = np.zeros((10, 10), np.uint8)
        for row, counts in enumerate(stacks):
            classes[row, : counts[z]] = row + 1
        pool.slices.setdefault("a", []).append(LabelledSlice(classes.astype(np.int16), classes, (10.0, 10.0), "a", z))
    pool.holding["a"] = np.array([one.classes.any() for one in pool.slices["a"]])
    pool.images["a"] = Volume(np.zeros((10, 10, len(stacks[0])), np.int16), np.diag([10.0, 10.0, 5.0, 1.0]))
    return pool


def test_the_slice_is_outlined_on_which_structures_are_widest() -> None:
    pool = painted(large=[3, 3, 6, 8, 4, 3, 3, 0, 0], small=[0, 0, 0, 0, 1, 2, 1, 1, 1])

    def fill(case: str, z: int, ends: Ends) -> NDArray[np.uint8]:
        asked.append((z, ends))
        return np.zeros((10, 10, 9), np.uint8)

    asked: list[tuple[int, Ends]] = []
    known = Knowledge.of([[Pick("a", 0, 0.0)]], pool, "checked", fill)
    assert asked == [(5, {1: (0, 6), 2: (4, 8)})], "3 of 8 and all of 2 is more than 8 of 8 and nothing"
    assert known.effort == Effort(opened=1, slices=1, outlines=2, checked=1, bounded=2)
    Knowledge.of([[Pick("a", 4, 0.0)]], pool, "propagated", fill)
    assert asked[-1] == (4, {}), "nobody chooses"


def test_a_propagation_is_believed_as_far_as_half_the_diameter() -> None:
    pool = painted(large=[0, 0, 0, 0, 7, 0, 0, 0, 0], small=[0, 0, 0, 0, 1, 0, 0, 0, 0])

    def fill(case: str, z: int, ends: Ends) -> NDArray[np.uint8]:
        found = np.zeros((10, 10, 9), np.uint8)
        found[0], found[1] = 1, 2
        return found

    known = Knowledge.of([[Pick("a", 4, 0.0)]], pool, "propagated", fill)
    # discs of 700 and 100 mm² have radii of 14.9 and 5.6 mm; slices are 5 mm apart
    assert {one.index: one.known for one in known.slices} == {2: (1,), 3: (1, 2), 4: None, 5: (1, 2), 6: (1,)}
    assert set(np.unique(known.slices[0].classes)) == {0, 1}, "what is not believed is cleared"


def test_what_is_bounded_is_believed_between_its_ends_and_absent_beyond() -> None:
    pool = painted(large=[0, 0, 7, 7, 8, 7, 7, 0, 0], small=[0, 0, 0, 1, 2, 1, 1, 1, 0])

    def fill(case: str, z: int, ends: Ends) -> NDArray[np.uint8]:
        found = np.zeros((10, 10, 9), np.uint8)
        found[0, :6, 3:7] = 1
        found[1:, :, 3:8] = 2  # far more than it should be
        return found

    known = Knowledge.of([[Pick("a", 4, 0.0)]], pool, "checked", fill)
    assert {one.index: one.known for one in known.slices} == {
        0: (1, 2), 1: (1, 2), 2: (2,), 3: (1,), 4: None, 5: (1,), 6: (1,), 7: (1,), 8: (1, 2),
    }  # fmt: skip
    by_index = {one.index: one.classes for one in known.slices}
    assert not by_index[2].any(), "nothing was found of the large one, and the small one begins after it"
    assert set(np.unique(by_index[5])) == {0, 1}, "what is plainly wrong is thrown away"
    assert not by_index[7].any()


def test_volumes_are_filled_between_ends_once(tmp_path: Path) -> None:
    body = np.zeros((48, 40, 20), bool)
    body[15:30, 12:26, 3:17] = True
    pool, engine = Pool([], []), FakeSam2()
    image = Volume(np.where(body, 100, -100).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    pool.images["a"] = image
    pool.slices["a"] = [
        LabelledSlice(image.voxels[:, :, z], body[:, :, z].astype(np.uint8), (1.0, 1.0), "a", z) for z in range(20)
    ]
    fill = Filling(pool, engine, tmp_path)
    bounded, free = ({1: (6, 12)}, [*range(6, 13)]), ({}, [*range(3, 17)])
    for ends, expected in (bounded, free, bounded):
        steps = len(engine.steps)
        found = fill("a", 9, ends)
        assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == expected
    assert len(engine.steps) == steps, "what is there is not computed again"
    np.testing.assert_array_equal(found[:, :, 9], body[:, :, 9])


def test_what_was_outlined_is_seen_as_often_as_what_was_propagated_from_it() -> None:
    whole = painted(one=[1, 2]).slices["a"]
    partial = [replace(one, known=(1,)) for one in painted(one=[1, 2, 3, 4, 5]).slices["a"]]
    shared = annotation._balanced([*partial, *whole])
    assert [sum(one is other for one in shared) for other in whole] == [2, 2]
    assert [sum(one is other for one in shared) for other in partial] == [1] * 5
    assert annotation._balanced(whole) == whole
    assert annotation._balanced(partial) == partial


def test_minutes_are_the_sum_of_what_was_done() -> None:
    effort = Effort(2, 5, 7, 1, 4) + Effort(1, 0, 0, 1)
    assert effort.minutes == 3 * OPEN_MINUTES + 7 * OUTLINE_MINUTES + 2 * CHECK_MINUTES + 4 * END_MINUTES


def test_chance_takes_other_images_and_slices_that_hold_something() -> None:
    numbers = np.arange(5)
    pool = [Candidate.unscored(str(at), numbers, numbers == at) for at in range(5)]
    pool.append(Candidate.unscored("none", numbers, numbers > 9))
    nothing = np.zeros((0, 1), np.float32)
    seen = set()
    for seed in range(20):
        picks = choose("random", pool, nothing, 4, seed=seed)
        assert picks == choose("random", pool, nothing, 4, seed=seed)
        assert len({pick.image for pick in picks}) == 4
        assert all(pick.image == "none" or pick.slice == int(pick.image) for pick in picks)
        seen |= {pick.image for pick in picks}
    assert len(seen) == 6
    assert [pick.image for pick in choose("first", pool, nothing, 2)] == ["0", "1"]


def row(strategy: str, seed: int, number: int, slices: int, dice: float) -> dict[str, Any]:
    scores = {"test": {"a": {"organ": {"dice": dice}}}}
    minutes = None if strategy == ALL else 2.0 * slices
    named = {"strategy": strategy, "seed": seed, "round": number, "slices": slices, "minutes": minutes}
    return named | {"scores": scores}


ROWS = [
    row(ALL, 0, 2, 100, 0.9),
    row(ALL, 1, 2, 100, 0.7),
    *(row("random", 0, number, 10 * (number + 1), dice) for number, dice in enumerate((0.5, 0.66, 0.86))),
    *(row("random", 1, number, 10 * (number + 1), dice) for number, dice in enumerate((0.5, 0.6, 0.7))),
    *(row("uncertain", 0, number, 10 * (number + 1), dice) for number, dice in enumerate((0.5, 0.76, 0.75))),
    *(row("uncertain", 1, number, 10 * (number + 1), dice) for number, dice in enumerate((0.5, 0.7, 0.8))),
]


def test_what_is_needed_is_read_off_straight_lines() -> None:
    curve = [Point(4, 8.0, 0.5), Point(8, 20.0, 0.7), Point(12, 30.0, 0.6), Point(16, 40.0, 0.9)]
    assert report.needed(curve, 0.6, "slices") == pytest.approx(6)
    assert report.needed(curve, 0.6, "minutes") == pytest.approx(14)
    assert report.needed(curve, 0.4, "slices") == 4
    assert report.needed(curve, 0.75, "slices") == pytest.approx(14)
    assert report.needed(curve, 0.95, "slices") is None


def test_savings_are_paired_by_seed() -> None:
    whole = report.full(ROWS, "test")
    assert whole == pytest.approx(0.8)
    curves = report.curves(ROWS, "test")
    # 0.76 is reached by random after 25 slices with seed 0 and not with seed 1, by uncertain after 20 and 26
    assert report.needed(curves["random"][0], 0.76, "slices") == pytest.approx(25)
    assert report.saving(curves, "uncertain", 0.76, "slices") == (pytest.approx(1 - 20 / 25), 1)
    assert report.saving(curves, "mixed", 0.76, "slices") is None
    under_way = report.curves([*ROWS, row("random", 2, 0, 10, 0.9)], "test")
    assert set(under_way["random"]) == {0, 1}
    lines = report.table(ROWS, "test").splitlines()
    assert lines[2].startswith("| random | 2 | 25 (1 of 2 seeds) | 50 (1 of 2 seeds) |  |  |")
    assert lines[3].startswith("| uncertain | 2 | 23 ± 4 | 46 ± 8 | +20% (1 seeds) | +20% (1 seeds) |")
    assert "0.800" in report.summary(ROWS, "test")
    assert "0.760" in report.summary(ROWS, "test")
    assert "no run" in report.summary(ROWS[2:], "test")


def test_half_a_row_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert row_file.read(path) == []
    row_file.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')  # as of a process that was killed
    assert row_file.read(path) == [{"a": 1}]
    row_file.append(path, {"a": 3})
    assert row_file.read(path) == [{"a": 1}, {"a": 3}]


PLAN = Plan(picks=2, first_steps=2, steps=1, batch=2, look=4, width=2)


def experiment(small: Task, folder: Path, plan: Plan = PLAN) -> Annotation:
    return Annotation(small, plan, folder / "rows.jsonl", folder / "cache", devices.choose("cpu", "fp32"))


@pytest.mark.slow
def test_a_small_form_runs_resumes_and_reports(small: Task, tmp_path: Path) -> None:
    one = experiment(small, tmp_path)
    strategies = ("random", "uncertain", "mixed")
    wanted = rounds((ALL, *strategies), 1, 3)
    for each in wanted[:6]:
        one.run(each)
    again = experiment(small, tmp_path)
    assert again.missing(wanted) == wanted[6:]
    for file in (tmp_path / "cache").glob("*/uncertain-*"):
        file.unlink()  # weights are made anew from the rows
    for each in again.missing(wanted):
        again.run(each)
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [Round(row["strategy"], row["seed"], row["round"]) for row in found] == wanted
    firsts = [row["picks"] for row in found if row["round"] == 0]
    assert all(picks == firsts[0] for picks in firsts), "the first round is the same for all"
    for strategy in strategies:
        mine = [row for row in found if row["strategy"] == strategy]
        assert [row["slices"] for row in mine] == [2, 4, 6]
        picks = [tuple(pick) for row in mine for pick in row["picks"]]
        assert len(set(picks)) == 6, "no slice is asked for twice"
        assert all(one.pool.holding[image][z] for image, z in picks), "people pass over slices that hold nothing"
        assert {image for image, _ in picks[:3]} == {image for image, _ in picks[3:]} == set(one.pool.images)
    assert set(found[0]["scores"]["in domain"]) == {"p0", "p1", "p2"}
    report.plot(found, "in domain", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert experiment(small, tmp_path, Plan()).rows() == [], "rows of another plan are another experiment"


@pytest.mark.slow
def test_the_blind_may_ask_for_slices_that_hold_nothing(
    small: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(segmenter: Segmenter, image: Volume, **options: Any) -> Scores:
        asked.append(options["among"])
        return score(segmenter, image, **options)

    monkeypatch.setattr(annotation, "score", spy)
    for plan in (PLAN, replace(PLAN, sighted=False)):
        one = experiment(small, tmp_path, plan)
        for each in rounds(["uncertain"], 1, 2):
            one.run(each)
    assert [list(numbers) for numbers in asked[:3]] == [[2, 3, 4, 5]] * 3
    assert asked[3:] == [None] * 3


@pytest.mark.slow
def test_strategies_end_when_all_volumes_are_labelled(small: Task, tmp_path: Path) -> None:
    one = experiment(small, tmp_path, Plan(reveal="volumes", picks=2, first_steps=1, steps=1, batch=2, look=4, width=2))
    slices = [one.run(each)["slices"] for each in rounds(["diverse"], 1, 3)]
    assert slices[0] < slices[1] == slices[2] == sum(int(one.sum()) for one in one.pool.holding.values())


@pytest.mark.slow
def test_checked_volumes_are_learned_from(small: Task, tmp_path: Path) -> None:
    plan = replace(PLAN, reveal="checked")
    parts = tmp_path / "rows.jsonl", tmp_path / "cache", devices.choose("cpu", "fp32"), FakeSam2()
    one = Annotation(small, plan, *parts)
    found = [one.run(each) for each in rounds([ALL, "random"], 1, 2)]
    assert [row["slices"] for row in found[1:]] == [2, 3], "one slice of each of three images"
    assert found[2]["minutes"] > found[1]["minutes"]
    assert list((tmp_path / "cache" / "filled").rglob("*-bounded.npz"))


def test_the_command(run: Any, tmp_path: Path) -> None:
    code, _, err = run("experiment", "annotation", "knee", "--data", tmp_path)
    assert (code, "headneck, liver" in err) == (1, True)
