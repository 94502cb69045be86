"""The fixed splits: what is learnt, from which cases, and on which it is tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polycl.checkpoints import Preprocessing
from polycl.dataset import Case, Target, find_cases
from polycl.errors import NotFoundError

Scored = tuple[Case, tuple[Target, ...]]
"""A case and, for each label of the network, the ids that make it up in that case's label map."""


@dataclass(frozen=True)
class Task:
    """One comparison.

    Attributes:
        targets: the network's labels, in the training cases' ids.
        train: cases to learn from, with or without their labels.
        tests: scored cases by domain.
        preprocessing: the grid where few networks are trained.
        coarse: the grid where hundreds are, to compare ways of training them.
        methods: those that the data can serve.
        budgets: labelled slices.
    """

    name: str
    targets: tuple[Target, ...]
    train: tuple[Case, ...]
    tests: dict[str, tuple[Scored, ...]]
    preprocessing: Preprocessing
    coarse: Preprocessing
    methods: tuple[str, ...]
    budgets: tuple[int, ...]

    @property
    def labels(self) -> dict[str, int]:
        return {target.name: index for index, target in enumerate(self.targets, start=1)}


def headneck(data: Path, *, patients: int | None = None) -> Task:
    """Mandible, right parotid and brainstem in OpenKBP: the first 80 patients train, the last 30 test."""
    cases = find_cases(data / "openkbp")
    targets = (Target("mandible", (7,)), Target("right parotid", (3,)), Target("brainstem", (1,)))
    return Task(
        name="headneck",
        targets=targets,
        train=tuple(cases[:80][:patients]),
        tests={"in domain": tuple((case, targets) for case in cases[-30:][:patients])},
        preprocessing=Preprocessing(size=64, spacing=4.0),
        coarse=Preprocessing(size=64, spacing=4.0),
        methods=(
            *("none", "none-long", "none-absent", "none-self", "simclr", "scan", "organ", "mixed", "mixed-frozen"),
            *("mixed-self", "mixed-local", "mixed-local-absent"),
        ),
        budgets=(10, 25, 50, 100),
    )


def liver(data: Path, *, patients: int | None = None) -> Task:
    """Liver in LiTS: 8 cases train; 3 of LiTS test in domain, CHAOS, 3D-IRCADb and TotalSegmentator out of it.

    Every training slice holds liver, so strategies that ask for slices without it cannot be served.
    """
    cases = find_cases(data / "lits")
    inside = (Target("liver", (1, 2)),)
    outside = (("chaos", (1,)), ("ircad", (1, 6)), ("totalseg", (40,)))
    return Task(
        name="liver",
        targets=inside,
        train=tuple(cases[:8][:patients]),
        tests={
            "in domain": tuple((case, inside) for case in cases[8:11][:patients]),
            "out of domain": tuple(
                (find_cases(data / folder)[0], (Target("liver", ids),)) for folder, ids in outside[:patients]
            ),
        },
        preprocessing=Preprocessing(size=128, spacing=3.0),
        coarse=Preprocessing(size=64, spacing=5.0),
        methods=("none", "simclr", "scan", "scan-local"),
        budgets=(10, 25, 50, 100),
    )


TASKS = {"headneck": headneck, "liver": liver}


def task(name: str, data: Path, *, patients: int | None = None) -> Task:
    """The task called `name` on the data in `data`; `patients` keeps only so many of each group, to try things out."""
    if name not in TASKS:
        raise NotFoundError(f"no task is called {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name](data, patients=patients)


def chosen(names: Sequence[str] | None, known: Sequence[str], what: str) -> tuple[str, ...]:
    """`names`, or all that are known; NotFoundError for one that is not."""
    if unknown := [name for name in names or () if name not in known]:
        raise NotFoundError(f"no {what} is called {', '.join(unknown)}; there are: {', '.join(known)}")
    return tuple(names or known)
