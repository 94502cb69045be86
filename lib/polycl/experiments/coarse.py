"""Segmenters that learned from a few labelled slices, and their masks: what refinement by SAM starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from polycl.checkpoints import Header, NetworkConfig
from polycl.dataset import find_cases, labelled_slices
from polycl.devices import Device
from polycl.errors import NotFoundError
from polycl.experiments.tasks import Scored, Task, headneck, liver
from polycl.segmenter.augment import Augmentation
from polycl.segmenter.budget import draw_slices
from polycl.segmenter.inference import Segmenter
from polycl.segmenter.training import Schedule, TrainingData, finetune

BATCH, LEARNING_RATE = 8, 2e-3


@dataclass(frozen=True)
class Organ:
    """One organ of the fixed splits: parameters are chosen on `validation`, figures are told on `test`.

    `shipped` is the name of the model that ships for it.
    """

    name: str
    shipped: str
    task: Task
    validation: tuple[Scored, ...]
    test: tuple[Scored, ...]

    @property
    def label(self) -> int:
        """Its id in the masks of the models here."""
        return self.task.labels[self.name]


def organ(name: str, data: Path) -> Organ:
    """The organ called `name` in the data sets of the folder `data`; NotFoundError for another."""
    if name == "liver":
        task = liver(data)
        return Organ(name, "polycl-liver", task, task.tests["in domain"], task.tests["out of domain"])
    if name == "mandible":
        task = headneck(data)
        targets = tuple(target for target in task.targets if target.name == name)
        validation = tuple((case, targets) for case in find_cases(data / "openkbp")[80:95])
        test = tuple((case, targets) for case, _ in task.tests["in domain"])
        return Organ(name, "polycl-headneck", replace(task, targets=targets), validation, test)
    raise NotFoundError(f"no organ is called {name!r}; there are: liver, mandible")


def few_label_model(organ: Organ, budget: int, seed: int, steps: int, cache: Path, where: Device) -> Segmenter:
    """A segmenter from `budget` slices that hold the organ, drawn by `seed`; kept in `cache`, and trained once."""
    file = cache / f"{organ.name}-{budget}-{seed}-{steps}.safetensors"
    if not file.is_file():
        header = Header(
            network=NetworkConfig(classes=len(organ.task.targets) + 1),
            preprocessing=organ.task.preprocessing,
            labels=organ.task.labels,
            largest=dict.fromkeys(organ.task.labels, 1),
        )
        slices = draw_slices(list(labelled_slices(organ.task.train, organ.task.targets)), budget, seed)
        schedule = Schedule(steps=steps, batch=BATCH, learning_rate=LEARNING_RATE, validate_every=steps, seed=seed)
        cache.mkdir(parents=True, exist_ok=True)
        data = TrainingData(slices, [], [])
        finetune(header, data, file, schedule=schedule, augmentation=Augmentation(), where=where)
    return Segmenter.load(file, device=str(where.device), precision=where.precision)
