"""What a refinement did, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ("encode", "decode", "follow", "tissue", "total")


@dataclass
class RefineReport:
    """Counts of one refinement.

    Attributes:
        engine, sha256: the SAM that was asked.
        slices: slices that hold something to refine.
        encoded: of these, those shown to SAM (from a cache or not).
        encodings: pictures they were shown in.
        skipped: those left out because the slices beside them did not change.
        unreadable: those with values that are not finite, kept as they are.
        accepted, kept: components about which SAM had a say, and those where the coarse mask was the safer, at first.
        small: components too small or too thin to ask about.
        blurred: components not asked about because pixels are too large.
        hold: by label, log-odds that each mm from the coarse outline counted beside SAM's.
        ragged: mm that the outline jumped forth and back from slice to slice, of labels that were to be followed.
        followed: components that a SAM 2 followed through the plane.
        by_tissue: labels too thin for SAM that were outlined by their HU.
        changed_voxels: voxels whose label differs from the coarse one.
        seconds: by stage: encode, decode, follow, tissue, total.
    """

    engine: str
    sha256: str
    slices: int = 0
    encoded: int = 0
    encodings: int = 0
    skipped: int = 0
    unreadable: int = 0
    accepted: int = 0
    kept: int = 0
    small: int = 0
    blurred: int = 0
    hold: dict[int, float] = field(default_factory=dict)
    ragged: dict[int, float] = field(default_factory=dict)
    followed: int = 0
    by_tissue: list[int] = field(default_factory=list)
    changed_voxels: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; seconds are rounded to milliseconds."""
        return asdict(self) | {"seconds": {name: round(value, 3) for name, value in self.seconds.items()}}
