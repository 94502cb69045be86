"""What travels with the weights of a corrector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polycl.checkpoints import Provenance, Typed
from polycl.window import Window

Length = Annotated[float, Field(gt=0)]
Triple = tuple[Length, Length, Length]
Channels = Annotated[int, Field(gt=0)]


class CorrectorHeader(Typed):
    """Whose findings it corrects, how it sees them, and where the weights come from."""

    kind: Literal["corrector"] = "corrector"
    format: Literal[1] = 1
    segmenter: str = Field(default="", description="name of the segmenter, whatever its version")
    labels: tuple[str, ...] = Field(default=(), description="of that segmenter: those that it learned from")
    spacing: Triple = Field(default=(3.9, 3.9, 2.7), description="mm between the voxels that the network sees")
    windows: tuple[Window, ...] = Field(
        default=(Window(level=40, width=400), Window(level=500, width=1400)), description="one channel each"
    )
    features: tuple[Channels, Channels, Channels, Channels, Channels, Channels] = Field(
        default=(16, 32, 64, 128, 128, 16), description="channels of the U-Net's levels, and of its last one"
    )
    provenance: Provenance = Provenance()
