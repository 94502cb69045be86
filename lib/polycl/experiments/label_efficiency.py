"""How much a way of pre-training is worth at few labels: method x labelled slices x seed on a fixed split.

For one seed all methods learn from the same labelled slices, start from the same random decoder, and take the same
number of steps, so figures are paired. Results are rows of a JSON-lines file; a row that is there is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from polycl import checkpoints
from polycl.checkpoints import Header, NetworkConfig
from polycl.contrast import presence
from polycl.contrast.objective import Recipe
from polycl.contrast.pretraining import pretrain
from polycl.contrast.selection import Triplets
from polycl.contrast.store import SliceStore
from polycl.contrast.views import Views
from polycl.dataset import LabelledSlice, Target, labelled_slices
from polycl.devices import Device
from polycl.experiments import rows
from polycl.experiments.exam import Exam
from polycl.experiments.tasks import Task
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.budget import draw_slices
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.self_training import finetune_twice
from polycl.segmenter.training import Schedule, TrainingData, finetune

ALL = 0
"""The budget that stands for every labelled slice."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "batch": {"negatives": "batch"},
    "grid": {"pooling": "grid"},
    "local": {"pooling": "grid", "local": 2.0, "learning_rate": 2e-3},
}
"""What differs from the published form in a method of that ending: `mixed-local` is `mixed` with local contrast."""

Tell = Callable[[str, int, int], None]
"""What is under way, steps done and in all."""


@dataclass(frozen=True)
class Tuning:
    """How a method fine-tunes.

    Attributes:
        absent: on slices known to hold no target too; the bits by which `organ` and `mixed` choose their examples say
            which those are.
        rounds: so many times as many steps as the plan has.
        outline: after one such round so many slices are outlined by the network itself, and a second learns from these
            too (`self_training.finetune_twice`).
        freeze: the encoder keeps its weights for so many steps.
    """

    absent: bool = False
    rounds: int = 1
    outline: int = 0
    freeze: int = 0


TUNINGS: dict[str, Tuning] = {
    "absent": Tuning(absent=True),
    "long": Tuning(rounds=2),
    "frozen": Tuning(freeze=200),
    "self": Tuning(absent=True, outline=400),
}
"""By the ending of a method: `mixed-local-self` pre-trains as `mixed-local`."""


def parts(method: str) -> tuple[str, Tuning]:
    """The way of pre-training in a method's name, and how it fine-tunes."""
    before, _, ending = method.rpartition("-")
    return (before, TUNINGS[ending]) if ending in TUNINGS else (method, Tuning())


@dataclass(frozen=True)
class Plan:
    """How long each part trains, and what the background weighs. Rows of another plan are another experiment."""

    pretrain_steps: int = 600
    pretrain_batch: int = 24
    finetune_steps: int = 400
    finetune_batch: int = 8
    learning_rate: float = 2e-3
    background: float = 0.1
    tighten: float = 0.6

    def schedule(self, seed: int, tuning: Tuning) -> Schedule:
        """How a method fine-tunes."""
        steps = self.finetune_steps * tuning.rounds
        return Schedule(
            steps=steps,
            batch=self.finetune_batch,
            learning_rate=self.learning_rate,
            background=self.background,
            tighten=self.tighten,
            validate_every=steps,
            seed=seed,
            freeze=tuning.freeze,
        )


@dataclass(frozen=True)
class Run:
    """One cell of the table."""

    method: str
    budget: int
    seed: int


def runs(task: Task, seeds: int, methods: Iterable[str], budgets: Iterable[int]) -> list[Run]:
    """Every run, all methods of one seed and budget together, small budgets first."""
    methods = tuple(methods)
    return [Run(method, budget, seed) for seed in range(seeds) for budget in budgets for method in methods]


class Experiment:
    """One task under one plan, with its results file and a folder for encoders that can be made again."""

    def __init__(self, task: Task, plan: Plan, results: Path, cache: Path, where: Device) -> None:
        self.task, self.plan, self.results, self.where = task, plan, results, where
        self.encoders = cache / "encoders"
        self.header = Header(
            network=NetworkConfig(classes=len(task.targets) + 1),
            preprocessing=task.coarse,
            labels=task.labels,
            largest=dict.fromkeys(task.labels, 1),
        )
        self._cache = cache
        self._slices: list[LabelledSlice] | None = None
        self._exam = Exam(task.tests, distances=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this task and plan that the results file holds."""
        return [
            row for row in rows.read(self.results) if row["task"] == self.task.name and row["plan"] == asdict(self.plan)
        ]

    def missing(self, wanted: Iterable[Run]) -> list[Run]:
        """The runs without a row."""
        done = {Run(row["method"], row["budget"], row["seed"]) for row in self.rows()}
        return [run for run in wanted if run not in done]

    def run(self, run: Run, report: Tell = lambda *_: None) -> dict[str, Any]:
        """Pre-train if that encoder is not there yet, fine-tune, test, and add the row to the results file."""
        start = time.perf_counter()
        pretraining, tuning = parts(run.method)
        encoder = None if pretraining == "none" else self.encoder(pretraining, run.seed, report)
        checkpoint = self._cache / f"{self.task.name}-{run.method}-{run.budget}-{run.seed}.safetensors"
        segmenter = self._tuned(run, tuning, encoder, checkpoint, report)
        scores = self._exam.scores(segmenter)
        checkpoint.unlink()
        row = {
            "task": self.task.name,
            **asdict(run),
            "plan": asdict(self.plan),
            "scores": scores,
            "seconds": round(time.perf_counter() - start, 1),
        }
        rows.append(self.results, row)
        return row

    def _tuned(
        self, run: Run, tuning: Tuning, encoder: dict[str, torch.Tensor] | None, checkpoint: Path, report: Tell
    ) -> Segmenter:
        """Fine-tune as the method asks; the checkpoint holds the result."""
        data = TrainingData(self.drawn(run), [self.absent()] if tuning.absent else [], [])
        common: dict[str, Any] = {
            "augmentation": Augmentation(),
            "encoder": encoder,
            "schedule": self.plan.schedule(run.seed, tuning),
            "where": self.where,
            "report": lambda now: report("fine-tuning", now.step, now.steps),
        }
        if tuning.outline:
            pool = self.pool()
            unlabelled = draw_slices(pool, min(tuning.outline, len(pool)), run.seed + 1)
            finetune_twice(self.header, data, unlabelled, checkpoint, **common)
        else:
            finetune(self.header, data, checkpoint, **common)
        return Segmenter.load(checkpoint, device=str(self.where.device), precision=self.where.precision)

    def pool(self) -> list[LabelledSlice]:
        """Every training slice that holds a target, in a fixed order."""
        return [one for one in self._training() if one.classes.any()]

    def absent(self) -> list[LabelledSlice]:
        """Every training slice that holds none."""
        return [one for one in self._training() if not one.classes.any()]

    def _training(self) -> list[LabelledSlice]:
        if self._slices is None:
            self._slices = list(labelled_slices(self.task.train, self.task.targets))
        return self._slices

    def drawn(self, run: Run) -> list[LabelledSlice]:
        """The labelled slices of a run, the same for every method."""
        return self.pool() if run.budget == ALL else draw_slices(self.pool(), run.budget, run.seed)

    def encoder(self, method: str, seed: int, report: Tell) -> dict[str, torch.Tensor]:
        """The encoder that `method` makes of the training images, from the cache if it is there."""
        name = f"{self.task.name}-{method}-{seed}-{self.plan.pretrain_steps}x{self.plan.pretrain_batch}.safetensors"
        file = self.encoders / name
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            pretrain(
                self.header,
                self.views(method, seed),
                file,
                recipe=self.recipe(method, seed),
                where=self.where,
                report=lambda now: report(f"pre-training {method}", now.step, now.steps),
            )
        return checkpoints.load(file)[1]

    def recipe(self, method: str, seed: int) -> Recipe:
        """A method is a strategy, or one with a variant: `scan`, `scan-batch`."""
        strategy, _, variant = method.partition("-")
        return Recipe(
            strategy=strategy,  # type: ignore[arg-type]  # the method's name was checked against the task's
            steps=self.plan.pretrain_steps,
            batch=self.plan.pretrain_batch,
            seed=seed,
            **VARIANTS[variant],
        )

    def views(self, method: str, seed: int) -> Views:
        """Examples from the training images; presence is that of any target."""
        store = SliceStore.build(self.task.train, self.task.coarse, self._cache / "slices", strict=True)
        strategy = method.partition("-")[0]
        if strategy == "simclr":
            return Views(store, None, seed=seed)
        present = None
        if strategy != "scan":
            ids = tuple(index for target in self.task.targets for index in target.ids)
            present = presence.from_labels(store, self.task.train, Target("any target", ids))
        triplets = Triplets(strategy, store.scan, present, seed=seed)  # type: ignore[arg-type]  # see `recipe`
        return Views(store, triplets, seed=seed, present=present)
