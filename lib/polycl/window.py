"""HU windows: the range of Hounsfield units a network or a reader sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from polycl.errors import InputError

if TYPE_CHECKING:
    import torch


class Window(BaseModel):
    """A level and a width in HU, as a reading station has them.

    >>> Window(level=40, width=400).low, Window(level=40, width=400).high
    (-160.0, 240.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float
    width: float = Field(gt=0)

    @property
    def low(self) -> float:
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        return self.level + self.width / 2

    def apply(self, hu: torch.Tensor) -> torch.Tensor:
        """HU of any shape and dtype to float32 in [0, 1], clipped at the window's ends."""
        return hu.float().sub(self.low).div_(self.width).clamp_(0.0, 1.0)

    @classmethod
    def of_dicom(cls, centre: float, width: float, function: str = "LINEAR") -> Self | None:
        """The window of DICOM's VOI attributes (PS3.3 C.11.2.1.2); None for values that are none.

        LINEAR means grey levels of whole values, so it is half a HU lower and one narrower than it says. SIGMOID
        becomes the straight line that touches it at its centre.
        """
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        usable = math.isfinite(centre) and math.isfinite(width) and width > 0
        return cls(level=centre, width=width) if usable and function in VOI_FUNCTIONS else None

    @classmethod
    def named(cls, name: str) -> Self:
        """A window by its usual name."""
        try:
            level, width = WINDOWS[name]
        except KeyError:
            raise InputError(f"no window is called {name!r}; windows are {', '.join(WINDOWS)}") from None
        return cls(level=level, width=width)


WINDOWS: dict[str, tuple[float, float]] = {
    "soft-tissue": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
"""Level and width in HU by name."""

VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
FromHeader = Literal["header"]
HEADER: FromHeader = "header"
"""What is asked for to see an image through the window that its own file suggests."""


def window_from(value: object) -> Window | FromHeader:
    """A window by name ("lung"), as [level, width] in HU, or "header"; InputError for anything else."""
    if isinstance(value, Window):
        return value
    if value == HEADER:
        return HEADER
    if isinstance(value, str) and value in WINDOWS:
        return Window.named(value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(part) for part in value) and value[1] > 0:
        return Window(level=value[0], width=value[1])
    raise InputError(
        f"window must be one of {', '.join(WINDOWS)}, {HEADER!r} for the image's own, or [level, width] in HU with a "
        "width above 0"
    )


def seen_through(choice: Window | FromHeader, own: Window | None) -> Window:
    """The window that `choice` means for an image whose own is `own`; InputError if it has none and that is asked."""
    if isinstance(choice, Window):
        return choice
    if own is None:
        raise InputError(f"this image's header has no window; choose one of {', '.join(WINDOWS)}, or [level, width]")
    return own


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
