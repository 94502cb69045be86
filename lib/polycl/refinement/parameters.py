"""What may be set in the refinement stage, typed and frozen."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from polycl.parameters import Parameters
from polycl.window import FromHeader, Window, window_from

Ask = Literal["box", "box+point", "box+mask", "box+point+mask"]


class RefineParameters(Parameters):
    """Lengths are in mm, areas in mm², agreements are Dice with the coarse component, scores SAM's own."""

    of: ClassVar[str] = "refinement"

    window: Window | FromHeader | None = Field(
        default=None,
        description="what SAM sees: a name, [level, width], or header; null: around the organ's own middle value",
    )
    contrast: float = Field(default=100.0, gt=0, description="width in HU of the window around that value")
    min_area: float = Field(default=60.0, ge=0, description="smaller components on a slice are kept as they are")
    min_depth: float = Field(
        default=4.0,
        ge=0,
        description="and so are thinner ones: the least distance in pixels of their innermost pixel from outside; "
        "SAM's outline is off by a pixel, which is much of a thin structure",
    )
    max_pixel: float = Field(
        default=2.5,
        gt=0,
        description="SAM is not asked where pixels are larger: its outline, off by a pixel, is worse there than "
        "the coarse one; a network that was trained on such CTs is asked all the same",
    )
    box_margin: float = Field(default=2.0, ge=0, description="added to each side of a component's box")
    reach: float = Field(
        default=6.0, ge=0, description="how far beyond the component's bounds an answer may go, each pass"
    )
    asks: tuple[Ask, ...] = Field(
        default=("box", "box+mask", "box+point+mask"),
        min_length=1,
        description="what SAM is told of a component, its innermost pixel being the point; the answers are averaged",
    )
    unanimous: float = Field(
        default=0.95,
        ge=0,
        description="where its first two answers agree to this Dice SAM is not told the rest; above 1: always",
    )
    passes: int = Field(default=2, ge=1, le=4, description="times that SAM is asked, then about what came of it")
    asks_again: tuple[Ask, ...] = Field(
        default=("box+point+mask",),
        min_length=1,
        description="what it is told in later passes; a lone answer needs no consent",
    )
    at_rest: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="a slice that a pass left as it was, to this Dice, is not asked about again",
    )
    crop_margin: float | None = Field(
        default=20.0,
        ge=0,
        description="around the region that SAM sees; null: whole slices",
    )
    min_crop: float = Field(default=120.0, gt=0, description="smallest side of that region")
    tiles: int = Field(
        default=2, ge=1, le=4, description="so many by so many slices in one picture, which costs one encoding"
    )
    tiles_if_followed: int = Field(
        default=3,
        ge=1,
        le=4,
        description="the same for a ragged label, which a SAM 2 follows after one pass",
    )
    min_agreement: float = Field(default=0.8, ge=0, le=1, description="least Dice of SAM's mask with the component")
    min_score: float = Field(default=0.75, description="least score that SAM gives its own mask")
    min_consent: float = Field(default=0.85, ge=0, le=1, description="least Dice of any two of SAM's answers")
    band: float | None = Field(
        default=10.0, gt=0, description="further than this from the component's edge nothing changes; null: no limit"
    )
    stride: int = Field(default=4, ge=1, le=64, description="slices between those always visited, a power of two")
    settled: float = Field(
        default=0.97,
        ge=0,
        le=1,
        description="a slice about which SAM and the coarse mask agree to this Dice lets the ones beside it be skipped",
    )
    through_plane: float = Field(
        default=3.0,
        ge=0,
        le=50,
        description="standard deviation of the average of what SAM says through the plane; 0: none",
    )
    hold: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="log-odds that each mm from the component's edge counts for the coarse mask, beside SAM's, which "
        "are at most 8: so much for a mask that is even through the plane, less the more ragged it is",
    )

    ragged: float = Field(
        default=0.05,
        ge=0,
        description="mm that a label's outline jumps forth and back from slice to slice, on average, from which on a "
        "SAM 2 follows it through the plane; see `votes.is_ragged` for what else makes it so",
    )
    follow: float | None = Field(
        default=0.1,
        ge=0,
        le=100,
        description="log-odds that each mm from the outline counts for the label beside that SAM 2; null: not followed",
    )

    tissue: float = Field(
        default=1.0,
        ge=0,
        le=4,
        description="how much HU count, beside its outline, in a label that is too thin for SAM at pixels over "
        "`max_pixel`; 0: it stays as it is",
    )

    @field_validator("window", mode="before")
    @classmethod
    def _window(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, dict) else window_from(value)

    @field_validator("stride")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value
