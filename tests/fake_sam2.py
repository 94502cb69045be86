"""A SAM 2 without weights: it follows what is bright and lies where one of its memories lies."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from polycl.propagate.engine import Features, FramePrompt, Memory, Recall, Tracked, VideoEngine
from polycl.propagate.header import FrameConfig
from polycl.settings import Settings
from polycl.window import Window

BRIGHT = 0.5
NAME = "polycl-sam2-ct"


class FakeSam2:
    """Deterministic. Notes what it encodes, and of which slots and pointers each step was made."""

    name, sha256, size = "fake", "f" * 64, 64
    memories, pointers = 4, 6

    def __init__(self) -> None:
        self.frames = FrameConfig(
            windows=(Window(level=50, width=100),), mean=(0, 0, 0), std=(1, 1, 1), least_mm=16, coverage=2
        )
        self.encoded = 0
        self.batches: list[int] = []
        self.steps: list[list[Recall]] = []
        self.prompts: list[FramePrompt] = []

    def encode(self, frames: torch.Tensor) -> list[Features]:
        self.encoded += len(frames)
        self.batches.append(len(frames))
        small = torch.nn.functional.avg_pool2d(frames[:, :1], 4)
        return [Features(one, (one, one)) for one in small]

    def prompt(self, features: Features, prompts: Sequence[FramePrompt]) -> list[Tracked]:
        self.prompts += prompts
        results = []
        for one in prompts:
            if one.mask is not None:
                mask = torch.nn.functional.avg_pool2d(one.mask[None, None], 4)[0, 0] >= 0.5
            else:
                corners, labels = one.corners
                bright = (features.top[0] > BRIGHT).numpy()
                components, _ = ndimage.label(bright)
                columns, rows = np.clip(np.round(corners / 4), 0, len(bright) - 1).astype(int).T
                mask = np.zeros_like(bright)
                for row, column, label in zip(rows, columns, labels, strict=True):
                    if label == 1 and components[row, column]:
                        mask |= components == components[row, column]
                if (labels == 2).any():
                    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
                    mask &= bright
                mask = torch.from_numpy(mask)
            results.append(self._tracked(mask))
        return results

    def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        self.steps.append(list(recalls))
        results = []
        for feature, recall in zip(features, recalls, strict=True):
            before = np.zeros(feature.top.shape[1:], bool)
            for _, memory in recall.spatial:
                before |= memory.features.numpy()
            bright = (feature.top[0] > BRIGHT).numpy()
            components, _ = ndimage.label(bright)
            kept = np.setdiff1d(np.unique(components[ndimage.binary_dilation(before)]), [0])
            mask = torch.from_numpy(np.isin(components, kept))
            results.append(self._tracked(recall.told(mask * 12.0 - 6) > 0))
        return results

    def _tracked(self, mask: torch.Tensor) -> Tracked:
        mask = torch.as_tensor(mask, dtype=torch.bool)
        there = bool(mask.any())
        return Tracked(mask.float() * 12 - 6, 5.0 if there else -5.0, 0.9, Memory(mask, torch.zeros(4)))


class Told(FakeSam2):
    """Where the object is known to be, and nothing is bright, it takes the mask before for it."""

    def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        results = super().track(features, recalls)
        return [
            self._tracked(recall.previous > 0) if recall.there and one.presence < 0 else one
            for one, recall in zip(results, recalls, strict=True)
        ]


def installed() -> Iterator[FakeSam2]:
    """The app finds this network alone, for as long as this generator is not resumed."""
    engine = FakeSam2()

    def load(name: str, settings: Settings, *, size: int | None = None) -> VideoEngine:
        assert name == NAME
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polycl.monailabel.propagators.load_propagator", load)
        patch.setattr("polycl.monailabel.propagators.at_hand", lambda catalogue: [NAME])
        yield engine


def install() -> None:
    """The same for as long as the process runs."""
    _kept.append(installed())
    next(_kept[0])


_kept: list[Iterator[FakeSam2]] = []
