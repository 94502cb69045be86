"""What propagation asks of a network: see a slice, take a prompt, and follow objects from slice to slice.

Nothing here computes: the algorithm in `polycl.propagate.sweep` and `session` works with anything that has this shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError

if TYPE_CHECKING:
    import torch

    from polycl.propagate.header import FrameConfig


LARGEST = 8.0
"""Logits are clamped to it before they are blended: "absent" is -1024, which nothing could outvote."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the image encoder made of one frame; the same for all objects and both directions.

    Attributes:
        top: [C, S / 16, S / 16], what memory works on.
        fine: [C / 8, S / 4, S / 4] and [C / 4, S / 8, S / 8], for sharp outlines.
    """

    top: torch.Tensor
    fine: tuple[torch.Tensor, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.top, *self.fine))


@dataclass(frozen=True, eq=False)
class Hint:
    """What somebody else thinks of where an object is on a frame.

    Attributes:
        odds: log-odds [S / 4, S / 4] of each pixel to be the object.
        share: how much they count, 0 to 1, beside what the network thinks.
    """

    odds: NDArray[np.float32]
    share: float

    def blend(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [S / 4, S / 4] of the network with these, none of either beyond `LARGEST`."""
        import torch

        odds = torch.from_numpy(self.odds).to(logits).clamp(-LARGEST, LARGEST)
        return (1 - self.share) * logits.clamp(-LARGEST, LARGEST) + self.share * odds


@dataclass(frozen=True, eq=False)
class Lean:
    """What speaks for an object, or against it, on a frame: log-odds [S / 4, S / 4], 0 where nothing does."""

    odds: NDArray[np.float32]

    def blend(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [S / 4, S / 4] of the network, none beyond `LARGEST`, and these."""
        import torch

        return logits.clamp(-LARGEST, LARGEST) + torch.from_numpy(self.odds).to(logits)


@dataclass(frozen=True, eq=False)
class Memory:
    """What one frame leaves for the next about one object.

    Attributes:
        features: [C_memory, S / 16, S / 16], bfloat16 as the authors keep it.
        pointer: [C], the object in one vector.
    """

    features: Any
    pointer: Any


@dataclass(frozen=True, eq=False)
class Tracked:
    """One object on one frame.

    Attributes:
        logits: float32 [S / 4, S / 4], above 0 inside.
        presence: the logit that the object is on this frame at all.
        quality: the IoU that the network expects of the mask.
        memory: for the frames after this one.
    """

    logits: torch.Tensor
    presence: float
    quality: float
    memory: Memory


@dataclass(frozen=True)
class Recall:
    """Which memories a frame looks at.

    Attributes:
        spatial: pairs of slot and memory. Slot 0 is for seeds; slot n for the n-th oldest of the last frames.
        pointers: pairs of how many frames back in the direction of travel, and memory.
        reach: frames back that count as far, the most that a distance is.
        previous: logits [S / 4, S / 4] of the frame before in the direction of travel, where the network asks for them.
        hints: blended into what the network finds, one after the other, before that is remembered.
        there: the object is known to be on the frame, whether the network thinks so or not.
        presence: added to its logit that the object is on the frame at all.
    """

    spatial: tuple[tuple[int, Memory], ...]
    pointers: tuple[tuple[int, Memory], ...]
    reach: int
    previous: Any = None
    hints: tuple[Hint | Lean, ...] = ()
    there: bool = False
    presence: float = 0.0

    def told(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [S / 4, S / 4] of the network with the hints blended in."""
        return functools.reduce(lambda so_far, hint: hint.blend(so_far), self.hints, logits)


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """What is said about one object on one frame: a mask, or points and a box.

    Attributes:
        mask: [S, S], above 0.5 inside.
        points: float [N, 2], (column, row) of frame pixels.
        labels: int [N], 1 in the object and 0 outside it.
        box: left, top, right, bottom in frame pixels.
    """

    mask: torch.Tensor | None = None
    points: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None
    box: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        clicks = 0 if self.points is None else len(self.points)
        if clicks != (0 if self.labels is None else len(self.labels)):
            raise InputError("each point needs a label: 1 in the object, 0 outside it")
        if (self.mask is None) == (clicks == 0 and self.box is None):
            raise InputError("a prompt is a mask, or else points, a box, or both")

    @property
    def corners(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Box and points as SAM 2 takes them: the box is two points with the labels 2 and 3, before the others."""
        points = np.zeros((0, 2)) if self.points is None else self.points
        labels = np.zeros(0, np.int64) if self.labels is None else self.labels
        if self.box is None:
            return points, labels
        return np.concatenate([self.box.reshape(2, 2), points]), np.concatenate([[2, 3], labels])


class VideoEngine(Protocol):
    """A network that follows objects through slices. Calls may come from several threads."""

    name: str
    sha256: str
    size: int
    """Pixels a side of a frame."""
    memories: int
    """Slots for memories: one for seeds, the others for the last frames."""
    pointers: int
    """Pointers that a frame looks at."""
    frames: FrameConfig

    def encode(self, frames: torch.Tensor) -> list[Features]:
        """Features of frames [B, 3, S, S]."""
        ...

    def prompt(self, features: Features, prompts: Sequence[FramePrompt]) -> list[Tracked]:
        """One object for each of `prompts`, all on the same frame, without any memory."""
        ...

    def track(self, features: Sequence[Features], recalls: Sequence[Recall]) -> list[Tracked]:
        """Object n on frame `features[n]`, from the memories `recalls[n]`."""
        ...
