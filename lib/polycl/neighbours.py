"""Which slices a network sees with the one that it outlines: what lies beside it tells where in the body that is."""

from __future__ import annotations

from collections.abc import Sequence

from polycl.volume import Volume


def neighbours(z: int, volume: Volume, beside: Sequence[float]) -> list[int]:
    """Numbers of the slices seen with slice `z` of a canonical volume: itself, then below and above at each distance.

    Those nearest to so many mm, at least the next ones; past the ends of the volume the last.
    """
    steps = [max(1, round(mm / volume.spacing[2])) for mm in beside]
    last = volume.shape[2] - 1
    return [z, *(min(max(z + sign * step, 0), last) for step in steps for sign in (-1, 1))]
