"""All that decides what a training run gives. The defaults are those of the model that ships."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate

from polycl.errors import InputError
from polycl.propagate.architecture import ARCHITECTURES, MULTIPLE, Sam2Config
from polycl.propagate.header import FrameConfig
from polycl.propagate.training.clips import ClipRules
from polycl.propagate.training.loss import LossWeights
from polycl.propagate.training.views import View
from polycl.segmenter.training import warm_cosine
from polycl.window import Window

CT_FRAMES = FrameConfig(
    windows=(Window.named("soft-tissue"), Window.named("lung"), Window.named("bone")),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
"""Three windows of one slice as the channels, so that lungs, soft tissue and bones all have contrast."""


@dataclass(frozen=True)
class Stage:
    """A part of a run: so many steps of `batch` clips of `length` slices and `objects` at `size` pixels a side.

    >>> Stage.parse("900,128,12")
    Stage(steps=900, size=128, batch=12, length=5, objects=1)
    """

    steps: int
    size: int
    batch: int
    length: int = 5
    objects: int = 1

    @classmethod
    def parse(cls, text: str) -> Stage:
        """From `STEPS,SIZE,BATCH[,LENGTH[,OBJECTS]]`; InputError says so if it is anything else."""
        try:
            found = cls(*(int(part) for part in text.split(",")))
        except (ValueError, TypeError):
            raise InputError(f"{text!r} is no stage; write STEPS,SIZE,BATCH[,LENGTH[,OBJECTS]]") from None
        least = min(found.steps, found.batch, found.objects)
        if least < 1 or found.length not in (1, *range(3, 65)) or found.size < MULTIPLE or found.size % MULTIPLE:
            raise InputError(
                f"the stage {text} cannot be: steps, clips and objects are at least 1, slices of a clip 1 or 3 to 64, "
                f"and the size is a multiple of {MULTIPLE}"
            )
        return found


@dataclass(frozen=True)
class Distillation:
    """How many slices the teacher looks at, and how long the pupil learns from them.

    Attributes:
        far: weight of the squared distance of embeddings, beside their cosine.
        brightness, noise: how far the pupil's images stray from the teacher's; they are flipped as well.
    """

    slices: int = 400
    steps: int = 500
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: int = 30
    far: float = 100.0
    brightness: float = 0.07
    noise: float = 0.05
    seed: int = 4242


@dataclass(frozen=True)
class Recipe:
    """A run: the network, how clips are drawn and what they cost, how long and how fast to learn.

    Attributes:
        stages: stills first, as SAM 2 itself was trained: a still costs a tenth of a clip, and no mask can be copied
            there. Then clips, in small frames first: the same weights serve every size. Long ones last.
        gentle: share of the learning rate for SAM's own prompts and decoder, where a run starts from some weights.
        average: decay of the averaged weights.
        validate_every, keep_every: steps between two validations, and between two writings of the state.
    """

    network: Sam2Config = ARCHITECTURES["ct"]
    frames: FrameConfig = CT_FRAMES
    clips: ClipRules = field(default_factory=ClipRules)
    loss: LossWeights = field(default_factory=LossWeights)
    distillation: Distillation = field(default_factory=Distillation)
    stages: tuple[Stage, ...] = (
        Stage(250, 384, 6, 1, 4),
        Stage(3000, 192, 6, 4, 2),
        Stage(450, 192, 3, 8, 2),
        Stage(700, 256, 3, 6, 2),
    )
    learning_rate: float = 8e-4
    weight_decay: float = 0.02
    warm_up: int = 50
    gentle: float = 0.4
    clip_norm: float = 1.0
    average: float = 0.997
    validate_every: int = 100
    keep_every: int = 50
    seed: int = 0
    workers: int = 0

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        return self.learning_rate * warm_cosine(step, self.steps, self.warm_up)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def ends(self) -> list[int]:
        """The step at which each stage ends."""
        return list(accumulate(stage.steps for stage in self.stages))

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return self.stages[min(bisect_right(self.ends, step), len(self.stages) - 1)]

    def rules(self, stage: Stage) -> ClipRules:
        """How the clips of a stage are drawn."""
        return replace(self.clips, length=stage.length, objects=stage.objects)

    def view(self, size: int) -> View:
        """Views of clips: frames of this network."""
        return View(size=size, frames=self.frames)

    def decides(self) -> dict[str, object]:
        """What decides the weights, for telling whether an interrupted run may go on under this recipe."""
        parts = asdict(self)
        for name in ("workers", "keep_every"):
            del parts[name]
        return parts | {"network": self.network.model_dump(), "frames": self.frames.model_dump()}
