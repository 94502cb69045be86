"""What may be set in propagation, typed and frozen."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from polycl.parameters import Parameters


class PropagateParameters(Parameters):
    """Lengths are in mm."""

    of: ClassVar[str] = "propagation"

    patience: float = Field(
        default=8.0, ge=0, description="the object may be absent so far, and two slices, before a run ends"
    )
    collapse: float = Field(
        default=0.02, ge=0, lt=1, description="a slice with less than this share of the largest area counts as absent"
    )
    overlap: float = Field(
        default=0.1, ge=0, le=1, description="share of the smaller of two neighbouring masks that both must hold"
    )
    drift: float = Field(
        default=60.0,
        gt=0,
        description="HU that the median of a slice may be off the seed's before it counts as absent, beyond all seeds",
    )
    presence: float = Field(
        default=3.0,
        ge=-10,
        le=10,
        description="added at most to the network's logit that the object is on a slice, as it soon loses what it "
        "never saw: where its own kind of tissue still is where it was; less the more of the same is around it",
    )
    tissue: float = Field(
        default=2.0,
        ge=0,
        lt=8,
        description="log-odds that an object's own kind of tissue, where it was one slice before, counts at most; "
        "less the more of the same is around it",
    )
    share: float = Field(
        default=1.5,
        ge=1,
        description="objects share one region, and image features, where it is at most so much longer than their own",
    )
    grow: float = Field(default=1.5, gt=1, description="a region that an object grows out of becomes so much longer")
    guess: float = Field(default=160.0, gt=0, description="side of the region for points, before any extent is known")
    meet: float = Field(
        default=0.6, ge=0.5, le=1, description="share of the slices between two seeds that is visited from either"
    )
    bridge: float = Field(
        default=20.0, ge=0, description="so long a gap between two seeds is filled by what lies on either side; 0: none"
    )
    haste: bool = Field(
        default=True,
        description="an annotation that is too tight, too wide or beside the object all along is followed from where "
        "the edges are",
    )
    edges: bool = Field(
        default=True, description="outlines follow the edges of the CT where that helps on the annotated slices"
    )
    appearance: float = Field(
        default=1.0,
        ge=0,
        le=4,
        description="how much outlines follow what HU the object and its surroundings have on the annotated slices; "
        "0: not at all",
    )
    fill: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of the object's area on a slice, up to which a hole is filled if annotated ones have none",
    )
    connected: bool = Field(default=True, description="keep only what is connected to a seed, in 3D")
    ahead: int = Field(default=8, ge=1, le=64, description="slices encoded at a time")
    labels: int = Field(default=32, ge=1, le=255, description="objects at most")
    state_mib: int = Field(
        default=2048,
        gt=0,
        description="memory for what was found on each slice, at most, and as much again for outlines",
    )
