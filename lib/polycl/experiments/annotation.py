"""Annotators played over a fixed split: which way of choosing what to label next needs the fewest labels.

Round by round a strategy of `polycl.acquisition` names slices, a played person annotates them, and the segmenter goes
on learning, from its last weights, on all that is annotated; then it is tested. The first round is drawn by the seed
and the same for all strategies. A round is a row of a JSON-lines file; a row that is there is not computed again, and
weights that are gone are made anew from the rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl import checkpoints
from polycl.acquisition.scores import score
from polycl.acquisition.selection import Candidate, Method, Pick, choose, coverage, typical_sizes
from polycl.checkpoints import Header, NetworkConfig
from polycl.dataset import LabelledSlice
from polycl.devices import Device
from polycl.experiments import rows
from polycl.experiments.annotator import Knowledge, Pool, Reveal
from polycl.experiments.exam import Exam
from polycl.experiments.filling import Filling
from polycl.experiments.tasks import Task
from polycl.propagate.engine import VideoEngine
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.training import Schedule, TrainingData, finetune

STRATEGIES: tuple[Method, ...] = ("random", "first", "uncertain", "diverse", "mixed")
ALL = "all labels"
"""Stands for no strategy: everything is labelled from the start, and training takes as many steps in one run."""


@dataclass(frozen=True)
class Plan:
    """How annotating and training go. Rows of another plan are another experiment.

    Attributes:
        reveal: what is labelled of an image, see `polycl.experiments.annotator`.
        picks: images a round, of each one slice.
        first_steps, steps: of training in the first round, which starts from nothing, and in each after it.
        look: slices of each image that strategies score.
        sighted: people see on which slices there is something, and only those are scored; else strategies go by the
            model alone, as far as they ask one.
        width: channels of the network's first level; each of the next four has twice as many.
        pool: cases to annotate, the first of the training cases; None for all.
        tests: test cases of each domain, the first of them; None for all.
        domain: the only one to test in; None for all.
    """

    reveal: Reveal = "slices"
    picks: int = 4
    first_steps: int = 120
    steps: int = 40
    batch: int = 8
    learning_rate: float = 2e-3
    background: float = 0.1
    look: int = 8
    sighted: bool = True
    width: int = 8
    pool: int | None = None
    tests: int | None = None
    domain: str | None = None

    @property
    def key(self) -> str:
        """Names the plan in file names."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Round:
    """One round, from 0, of one strategy under one seed; of `ALL`, as much training as rounds up to this one have."""

    strategy: str
    seed: int
    number: int


def rounds(strategies: Iterable[str], seeds: int, count: int) -> list[Round]:
    """Every round, those of one seed together, and all strategies' first rounds before their second; of `ALL` one."""
    strategies = tuple(strategies)
    wanted = []
    for seed in range(seeds):
        wanted += [Round(ALL, seed, count - 1)] if ALL in strategies else []
        wanted += [Round(name, seed, number) for number in range(count) for name in strategies if name != ALL]
    return wanted


class Annotation:
    """One task under one plan, with its results file and a folder for weights that can be made again."""

    def __init__(
        self, task: Task, plan: Plan, results: Path, cache: Path, where: Device, engine: VideoEngine | None = None
    ) -> None:
        """`engine` propagates a reference from one slice; it is needed where volumes are filled."""
        domains = [plan.domain] if plan.domain is not None else list(task.tests)
        tests = {domain: task.tests[domain][: plan.tests] for domain in domains}
        self.task, self.plan, self.results, self.where = replace(task, tests=tests), plan, results, where
        self.header = Header(
            network=NetworkConfig(features=_features(plan.width), classes=len(task.targets) + 1),
            preprocessing=task.preprocessing,
            labels=task.labels,
            largest=dict.fromkeys(task.labels, 1),
        )
        self._weights = cache / f"{task.name}-{plan.key}"
        self._engine, self._filled = engine, cache / "filled"
        self._exam = Exam(self.task.tests, distances=False)

    @cached_property
    def pool(self) -> Pool:
        """The cases to annotate, read when first asked for."""
        return Pool(self.task.train[: self.plan.pool], self.task.targets)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this task and plan that the results file holds."""
        mine = {"task": self.task.name, "plan": asdict(self.plan)}
        return [row for row in rows.read(self.results) if {key: row.get(key) for key in mine} == mine]

    def missing(self, wanted: Iterable[Round]) -> list[Round]:
        """The rounds without a row."""
        done = {Round(row["strategy"], row["seed"], row["round"]) for row in self.rows()}
        return [one for one in wanted if one not in done]

    def run(self, one: Round) -> dict[str, Any]:
        """Choose, annotate, train, test, and add the row to the results file. The rounds before it must be there.

        A round in which nothing is left to choose trains on what there is.
        """
        start = time.perf_counter()
        everything = one.strategy == ALL
        picks = [] if everything else self._history(one)
        if not everything:
            picks.append(self._choose(one, picks))
        chosen = time.perf_counter()
        known = self._known(picks)
        annotated = time.perf_counter()
        segmenter = self._load(self._all(one) if everything else self._trained(one, picks))
        trained = time.perf_counter()
        scores = self._exam.scores(segmenter)
        tested = time.perf_counter()
        holding = sum(int(one.sum()) for one in self.pool.holding.values())
        row = {
            "task": self.task.name,
            "strategy": one.strategy,
            "seed": one.seed,
            "round": one.number,
            "plan": asdict(self.plan),
            "picks": [] if everything else [[pick.image, pick.slice] for pick in picks[-1]],
            "slices": holding if everything else known.effort.slices,
            "minutes": None if everything else known.effort.minutes,
            "scores": scores,
            "seconds": {
                "choose": round(chosen - start, 1),
                "annotate": round(annotated - chosen, 1),
                "train": round(trained - annotated, 1),
                "test": round(tested - trained, 1),
            },
        }
        rows.append(self.results, row)
        return row

    def _history(self, one: Round) -> list[list[Pick]]:
        mine = {row["round"]: row for row in self.rows() if (row["strategy"], row["seed"]) == (one.strategy, one.seed)}
        return [[Pick(image, z, 0.0) for image, z in mine[number]["picks"]] for number in range(one.number)]

    def _known(self, picks: Sequence[Sequence[Pick]]) -> Knowledge:
        fill = None if self._engine is None else Filling(self.pool, self._engine, self._filled)
        return Knowledge.of(picks, self.pool, self.plan.reveal, fill)

    def _choose(self, one: Round, before: Sequence[Sequence[Pick]]) -> list[Pick]:
        """The picks of a round: by chance in the first, by the strategy, from what the model says, after it."""
        known, seed = self._known(before), (one.seed, one.number)
        nothing = np.zeros((0, 1), np.float32)
        if one.number == 0 or one.strategy == "random":
            return _spread("random", self.pool.unscored(known), known, nothing, self.plan.picks, seed)
        segmenter = self._load(self._trained(replace(one, number=one.number - 1), before))
        candidates, covered = [], []
        for name, image in self.pool.images.items():
            depth, seen = image.shape[2], np.flatnonzero(self.pool.holding[name] & self.plan.sighted)
            scores = score(segmenter, image, most=self.plan.look, among=seen if len(seen) else None)
            taken = np.setdiff1d(np.arange(depth), known.left(name, depth))
            if (candidate := Candidate.of(name, scores, taken.tolist(), holding=len(seen) > 0)) is not None:
                candidates.append(candidate)
            covered.append(coverage(scores, known.covered(name, depth)))
        method: Method = one.strategy  # type: ignore[assignment]  # the name was checked against `STRATEGIES`
        return _spread(method, candidates, known, np.concatenate(covered), self.plan.picks, seed)

    def _trained(self, one: Round, picks: Sequence[Sequence[Pick]]) -> Path:
        """Weights after a round, from those of the round before; trained unless they are there."""
        name = f"{one.strategy}-{one.seed}-{one.number}" if one.number else f"start-{one.seed}"
        file = self._weights / f"{name}.safetensors"
        if file.is_file():
            return file
        before = None if not one.number else self._trained(replace(one, number=one.number - 1), picks[: one.number])
        steps = self.plan.steps if one.number else self.plan.first_steps
        known = self._known(picks[: one.number + 1])
        return self._train(known.slices, file, steps, _seed(one.seed, one.number), before)

    def _all(self, one: Round) -> Path:
        file = self._weights / f"all-{one.seed}-{one.number}.safetensors"
        steps = self.plan.first_steps + one.number * self.plan.steps
        everything = [slice_ for slices in self.pool.slices.values() for slice_ in slices]
        return file if file.is_file() else self._train(everything, file, steps, _seed(one.seed, 0), None)

    def _train(self, slices: Sequence[LabelledSlice], file: Path, steps: int, seed: int, before: Path | None) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        holding = _balanced([one for one in slices if one.classes.any()])
        without = [one for one in slices if not one.classes.any()]
        schedule = Schedule(
            steps=steps,
            batch=self.plan.batch,
            learning_rate=self.plan.learning_rate,
            background=self.plan.background,
            warm_up=min(20, max(1, steps // 4)),
            validate_every=steps,
            seed=seed,
        )
        start = None if before is None else checkpoints.load(before)[1]
        data = TrainingData(holding or without, [without] if holding else [], [])
        finetune(
            self.header,
            data,
            file,
            schedule=schedule,
            augmentation=Augmentation(),
            start=start,
            where=self.where,
        )
        return file

    def _load(self, file: Path) -> Segmenter:
        return Segmenter.load(file, device=str(self.where.device), precision=self.where.precision)


def _balanced(slices: Sequence[LabelledSlice]) -> list[LabelledSlice]:
    """Slices of which all is known as often as those of which only a part is: these never tell what is nowhere."""
    whole = [one for one in slices if one.known is None]
    partial = [one for one in slices if one.known is not None]
    return whole * (max(1, len(partial) // len(whole)) if whole else 1) + partial


def _spread(
    method: Method,
    candidates: Sequence[Candidate],
    known: Knowledge,
    covered: NDArray[np.float32],
    count: int,
    seed: tuple[int, int],
) -> list[Pick]:
    """Picks among the images with the fewest annotated slices first: the server hands out those without a label."""
    picks: list[Pick] = []
    sizes = typical_sizes(candidates)
    for done in sorted({known.count(one.image) for one in candidates}):
        few = [one for one in candidates if known.count(one.image) == done]
        picks += choose(method, few, covered, count - len(picks), seed=seed, sizes=sizes)
    return picks


def _seed(seed: int, number: int) -> int:
    """A seed for training in one round: the same for all strategies."""
    return 1000 * seed + number


def _features(width: int) -> tuple[int, int, int, int, int, int]:
    return (width, 2 * width, 4 * width, 8 * width, 16 * width, width)
