"""HU windows: the range of Hounsfield units a network or a reader sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

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
