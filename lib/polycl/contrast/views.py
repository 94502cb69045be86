"""What a pre-training step looks at: item i is drawn from (seed, i) alone, whoever draws it.

So any number of workers and processes, and a run that was resumed, see the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from polycl.contrast.simclr import SimclrViews

Batch = dict[str, torch.Tensor]
"""`images` uint8 `[B, V, S, S]`; `scan` and `present` int64 `[B, V]`: of the V views of each of B items."""


class Store(Protocol):
    """What is used of `polycl.contrast.store.SliceStore`."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def scan(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...
    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]: ...


class Selection(Protocol):
    """What is used of `polycl.contrast.selection.Triplets`."""

    def draw(self, items: NDArray[np.int64]) -> NDArray[np.int64]: ...


class Views(Dataset[Batch]):
    """Triplets (anchor, positive, negative) of slices, or two augmented views of one slice where `triplets` is None.

    Args:
        present: bool `[N]`, whether each slice of `store` holds the target, where the strategy asks for it.
        augment: draws a view of each slice; always for SimCLR, where it makes the task.
    """

    def __init__(
        self,
        store: Store,
        triplets: Selection | None,
        *,
        seed: int,
        present: NDArray[np.bool_] | None = None,
        augment: SimclrViews | None = None,
    ) -> None:
        self.store, self.triplets, self.seed = store, triplets, seed
        self.present = np.zeros(len(store), dtype=bool) if present is None else present
        self.augment = augment or (SimclrViews() if triplets is None else None)

    @property
    def count(self) -> int:
        """Views of an item."""
        return 2 if self.triplets is None else 3

    def __getitem__(self, item: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """A batch at once: the store is read in one go."""
        chosen = self._slices(items)
        images = self.store.read(chosen.ravel())
        if self.augment is not None:
            for row, item in enumerate(items):
                random = np.random.default_rng((self.seed, 1, item))
                for view in range(row * self.count, (row + 1) * self.count):
                    images[view] = self.augment(images[view], random)
        return {
            "images": torch.from_numpy(images.reshape(len(items), self.count, *images.shape[1:])),
            "scan": torch.from_numpy(self.store.scan[chosen].astype(np.int64)),
            "present": torch.from_numpy(self.present[chosen].astype(np.int64)),
        }

    def _slices(self, items: Sequence[int]) -> NDArray[np.int64]:
        if self.triplets is not None:
            return self.triplets.draw(np.array(items, dtype=np.int64))
        one = [np.random.default_rng((self.seed, 0, item)).integers(len(self.store)) for item in items]
        return np.repeat(np.array(one, dtype=np.int64)[:, None], 2, axis=1)


class Batches(Sampler[list[int]]):
    """Item numbers, a list a step, from step `first` on: `batch` consecutive items, shared out over the processes."""

    def __init__(self, first: int, steps: int, batch: int, *, rank: int = 0, processes: int = 1) -> None:
        self.first, self.steps, self.batch = first, steps, batch
        self.share = batch // processes
        self.start = rank * self.share

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            begin = step * self.batch + self.start
            yield list(range(begin, begin + self.share))
