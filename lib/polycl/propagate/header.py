"""What travels with the weights of a SAM 2 of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from polycl.checkpoints import Provenance, Typed
from polycl.errors import InputError
from polycl.propagate.architecture import Sam2Config
from polycl.window import Window

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]


class FrameConfig(Typed):
    """How a slice becomes a frame. It travels in the header of a checkpoint.

    The defaults are what the official weights were trained on: the same grey in three channels, as a photograph.
    """

    windows: tuple[Window, ...] = Field(default=(Window(level=40, width=400),), description="1, or one a channel")
    mean: Triple = Field(default=(0.485, 0.456, 0.406), description="of a channel in [0, 1]")
    std: Triple = (0.229, 0.224, 0.225)
    coverage: float = Field(default=2.0, gt=1, description="side of the region for one of the object")
    least_mm: float = Field(default=96.0, gt=0, description="shortest side of a region")

    @model_validator(mode="after")
    def _one_or_three(self) -> FrameConfig:
        if len(self.windows) not in (1, 3):
            raise InputError(f"{len(self.windows)} windows were given; a frame takes 1 or 3")
        return self

    def channels(self, hu: torch.Tensor) -> torch.Tensor:
        """HU [B, H, W] through the windows: [B, 1 or 3, H, W] in [0, 1], NaN as black."""
        import torch

        seen = torch.stack([window.apply(hu) for window in self.windows], dim=1)
        return torch.nan_to_num_(seen, nan=0.0)

    def normalised(self, seen: torch.Tensor) -> torch.Tensor:
        """Channels [B, 1 or 3, H, W] in [0, 1] as the network's input [B, 3, H, W]."""
        import torch

        shift, scale = (torch.tensor(values, device=seen.device)[:, None, None] for values in (self.mean, self.std))
        return seen.sub(shift).div_(scale)


class Sam2Header(Typed):
    """The network, what its frames look like, and where the weights come from."""

    kind: Literal["sam2"] = "sam2"
    format: Literal[1] = 1
    network: Sam2Config = Sam2Config()
    frames: FrameConfig = FrameConfig()
    provenance: Provenance = Provenance()
