"""Segmenters that know what is being propagated, and then have a say in it.

Each is asked about the annotated slices alone, which costs little. If one of its labels is what was annotated there,
whatever that is called, it is asked about the whole volume, and what it finds is blended into what the network finds on
each slice. Where an annotated slice contradicts it, as a correction does, it loses its say in the runs from there.

On LiTS `lits_08`-`lits_10` (validation) a share of 0.3, 0.45, 0.55 and 0.7 at most gave nearly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from polycl.metrics import dice

if TYPE_CHECKING:
    from polycl.segmenter import Segmenter
    from polycl.volume import Volume

Mask = NDArray[np.bool_]
STRANGER, FRIEND = 0.6, 0.8
"""Dice on annotated slices: up to the first a segmenter has no say, from the second on its full share."""
SHARE = 0.45
LARGEST = 8.0
"""What a segmenter finds is as sure as this logit; those of the network are clamped to it before they are blended."""


class Guide(Protocol):
    """What finds structures in one volume, canonical [X, Y, Z]."""

    @property
    def name(self) -> str:
        """Who is asked."""

    def on_slice(self, z: int) -> Mapping[str, Mask]:
        """What it finds on one slice, by its own labels: bool [X, Y]."""

    def everywhere(self, label: str, check: Callable[[], None]) -> Mask:
        """Where it finds `label`, bool [X, Y, Z]; `check` is called now and then, and may raise to stop it."""


@dataclass(eq=False)
class SegmenterGuide:
    """A segmenter of ours. What it found is kept."""

    segmenter: Segmenter
    name: str
    volume: Volume
    _slices: dict[int, Mapping[str, Mask]] = field(default_factory=dict)
    _whole: dict[str, Mask] = field(default_factory=dict)

    def on_slice(self, z: int) -> Mapping[str, Mask]:
        """See `Guide`."""
        if z not in self._slices:
            found = self.segmenter.segment(self.volume, only=range(z, z + 1)).voxels[:, :, z]
            self._slices[z] = {label: found == index for label, index in self.segmenter.header.labels.items()}
        return self._slices[z]

    def everywhere(self, label: str, check: Callable[[], None]) -> Mask:
        """See `Guide`."""
        if label not in self._whole:
            found = self.segmenter.segment(self.volume, [label], lambda done, total: check())
            self._whole[label] = found.voxels == self.segmenter.header.labels[label]
        return self._whole[label]


@dataclass(frozen=True)
class Recognised:
    """An object that a guide knows by the name `label`, and where it finds it: bool [X, Y, Z]."""

    guide: str
    label: str
    mask: Mask


class Guides:
    """Those of one volume, and which of them knows which object. One call at a time."""

    def __init__(self, guides: Sequence[Guide] = ()) -> None:
        self._guides = tuple(guides)
        self.recognised: dict[int, Recognised] = {}

    def ask(
        self, label: int, seen: Mapping[int, Mask], on_frame: Callable[[Mask], Mask], check: Callable[[], None]
    ) -> None:
        """Find out who knows the object `label`, unless that is known.

        Args:
            label: the object.
            seen: its masks over a frame by annotated slice; empty ones tell nothing.
            on_frame: a plane [X, Y] as that frame shows it.
            check: may raise to stop.
        """
        shown = {z: mask for z, mask in seen.items() if mask.any()}
        if label in self.recognised or not shown:
            return
        best: tuple[float, Guide, str] | None = None
        for guide in self._guides:
            found = {z: guide.on_slice(z) for z in shown}
            check()
            for name in next(iter(found.values())):
                agreement = float(np.mean([likeness(on_frame(found[z][name]), mask) for z, mask in shown.items()]))
                if agreement > (best[0] if best else STRANGER):
                    best = agreement, guide, name
        if best is not None:
            _, guide, name = best
            self.recognised[label] = Recognised(guide.name, name, guide.everywhere(name, check))

    def forget(self, labels: Collection[int]) -> None:
        """Other objects than these have no seeds any more."""
        self.recognised = {label: known for label, known in self.recognised.items() if label in labels}

    def find(self, label: int, z: int) -> Mask | None:
        """Where the object is on a slice, bool [X, Y]; None if nobody knows it."""
        known = self.recognised.get(label)
        return None if known is None else known.mask[:, :, z]


def likeness(one: Mask, other: Mask) -> float:
    """Dice, and 1 if both are empty."""
    score = dice(one, other)
    return 1.0 if score is None else score


def share(agreements: Sequence[float]) -> float:
    """How much of a say a guide has that agrees so well with the annotated slices that a run starts from."""
    if not agreements:
        return 0.0
    mean = sum(agreements) / len(agreements)
    return SHARE * min(1.0, max(0.0, (mean - STRANGER) / (FRIEND - STRANGER)))


def blended(logits: torch.Tensor, known: Mask, share: float) -> torch.Tensor:
    """Logits [s, s] of the network, with what a guide finds there."""
    guide = torch.from_numpy(known).to(logits) * (2 * LARGEST) - LARGEST
    return (1 - share) * logits.clamp(-LARGEST, LARGEST) + share * guide
