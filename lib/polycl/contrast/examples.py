"""From a folder of scans to what a pre-training step looks at: slices, presence of the target, triplets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.checkpoints import Preprocessing
from polycl.contrast import presence
from polycl.contrast.objective import Method
from polycl.contrast.scans import find_scans
from polycl.contrast.selection import Triplets
from polycl.contrast.store import SliceStore
from polycl.contrast.views import Views
from polycl.dataset import Case, Target
from polycl.errors import InputError, NotFoundError


@dataclass(frozen=True)
class Examples:
    """Which slices to learn from, and by which rule.

    Attributes:
        dataset: a data set, a folder that MONAI Label keeps, or a folder of DICOM series.
        strategy: how examples are chosen.
        cache: folder of the slice store.
        targets: what is present or not; several count as one.
        table: a CSV of slice ranges that tells it instead of labels.
        patterns: of the names of scans.
        slice_range: part of each scan, as fractions of its slices.
        workers: processes that read scans.
        strict: a scan that cannot be used is an error; otherwise it is left out.
    """

    dataset: Path
    strategy: Method
    cache: Path
    targets: Sequence[Target] = ()
    table: Path | None = None
    patterns: Sequence[str] = ("*",)
    slice_range: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    workers: int = 0
    strict: bool = False

    def views(
        self, preprocessing: Preprocessing, progress: Callable[[int, int], None] = lambda *_: None
    ) -> tuple[Views, Mapping[str, str]]:
        """What to learn from, and the scans that were left out with the reason.

        `progress` is told scans done and scans in all. Raises InputError or NotFoundError where there are no such
        scans, none can be used, or they cannot serve the strategy.
        """
        cases = self._cases()
        store = SliceStore.build(
            cases,
            preprocessing,
            self.cache,
            slice_range=self.slice_range,
            workers=self.workers,
            strict=self.strict,
            progress=progress,
        )
        if self.strategy == "simclr":
            return Views(store, None, seed=self.seed), store.skipped
        if self.strategy == "scan":
            triplets = Triplets("scan", store.scan, None, seed=self.seed)
            return Views(store, triplets, seed=self.seed), store.skipped
        try:
            present = self._present(store, cases)
        except presence.UnusableLabelsError as error:
            if self.strict:
                raise
            store = store.without(error.reasons)
            present = self._present(store, cases)
        triplets = Triplets(self.strategy, store.scan, present, seed=self.seed)
        return Views(store, triplets, seed=self.seed, present=present), store.skipped

    def _cases(self) -> list[Case]:
        found = find_scans(self.dataset)
        cases = [case for case in found if any(fnmatch(case.name, pattern) for pattern in self.patterns)]
        if not cases:
            raise NotFoundError(f"none of the {len(found)} scans in {self.dataset} matches {' '.join(self.patterns)}")
        return cases

    def _present(self, store: SliceStore, cases: Sequence[Case]) -> NDArray[np.bool_]:
        if self.table is not None:
            return presence.from_ranges(store, self.table)
        if not self.targets:
            raise InputError(
                f"the strategy {self.strategy} must know where the organ is: give --target NAME=ID for the ids in the "
                "labels, or --presence with a CSV of scan,first,last; the strategies scan and simclr need neither"
            )
        if (self.dataset / "images").is_dir():
            found = [presence.from_labels(store, cases, target) for target in self.targets]
        else:
            found = [presence.from_saved_labels(store, self.dataset, target) for target in self.targets]
        return np.logical_or.reduce(found)
