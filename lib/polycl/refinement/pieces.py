"""Components of a coarse mask on one slice: what SAM is asked about them, and what becomes of its answers.

Arrays here are slices as SAM sees them: [rows, columns], top = front, left = the patient's right; whole, or a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.components import touching
from polycl.metrics import dice
from polycl.refinement.parameters import Ask, RefineParameters
from polycl.sam import Masks, Prompts, mask_prompt
from polycl.sam.regions import Region
from polycl.sam.slices import Mosaic

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
Spacing = tuple[float, float]
"""Millimetres between rows and between columns."""


@dataclass(frozen=True)
class Piece:
    """One component of one label on one slice: `mask` [rows, columns] over all that SAM sees, and its pixel bounds."""

    mask: NDArray[np.bool_]
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Answer:
    """What SAM makes of a piece: a logit for each pixel it sees, its own score, and how far its answers agree."""

    logits: NDArray[np.float32]
    score: float
    consent: float


@dataclass(frozen=True)
class Accepted:
    """What SAM makes of a piece, if it is trusted, in the part `region` of what it sees.

    Attributes:
        region: rows and columns.
        before: the piece there.
        strength: how sure SAM is of each pixel there: log-odds, above 0 inside.
        agreement: Dice of what is inside with the piece.
    """

    region: Region
    before: NDArray[np.bool_]
    strength: NDArray[np.float32]
    agreement: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What is inside, in the region."""
        return self.strength > 0


@dataclass(frozen=True)
class Claim:
    """What a label is to be in the part `region` of a slice, where it was `before`.

    `strength` is how sure one is of each pixel: log-odds, above 0 inside.
    """

    label: int
    region: Region
    before: NDArray[np.bool_]
    strength: NDArray[np.float32]


def pieces_of(mask: NDArray[np.bool_], spacing: Spacing, how: RefineParameters) -> tuple[list[Piece], int]:
    """The components (8 neighbours) of a label's mask, and how many were too small or too thin and left out."""
    pieces, small = [], 0
    components, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        one = components == number
        area = int(np.count_nonzero(one)) * spacing[0] * spacing[1]
        if area < how.min_area or depth(one[rows, columns]).max() < how.min_depth:
            small += 1
        else:
            pieces.append(Piece(one, rows, columns))
    return pieces, small


def prompts_for(
    piece: Piece, ask: Ask, spacing: Spacing, margin: float, mosaic: Mosaic | None = None, number: int = 0
) -> Prompts:
    """The box of a piece, padded by `margin` mm, and as `ask` says its innermost pixel and its mask.

    On a mosaic the slice is picture `number`.
    """
    mosaic = mosaic or Mosaic(1, (piece.mask.shape[0], piece.mask.shape[1]))
    top, left = (part.start for part in mosaic.tile(number))
    rows, columns = padded(piece, spacing, margin)
    box = np.array([columns.start, rows.start, columns.stop - 1, rows.stop - 1], dtype=np.float64)
    box += (left, top, left, top)
    points, inside = np.zeros((0, 2)), np.zeros(0, np.int64)
    if "point" in ask:
        inner = depth(piece.mask[piece.rows, piece.columns], spacing)
        row, column = np.unravel_index(int(inner.argmax()), inner.shape)
        points = np.array([[column + piece.columns.start + left, row + piece.rows.start + top]], np.float64)
        inside = np.ones(1, np.int64)
    logits = mask_prompt(mosaic.whole({number: piece.mask})) if "mask" in ask else None
    return Prompts(points=points, labels=inside, box=box, mask_logits=logits)


def depth(mask: NDArray[np.bool_], spacing: Spacing = (1.0, 1.0)) -> NDArray[np.float64]:
    """Distance of each pixel of `mask` to the nearest one outside it; all beyond the array is outside."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1]
    return distance


def together(piece: Piece, answers: Sequence[Masks], spacing: Spacing, reach: float) -> Answer:
    """The mean of what SAM answered, each time by the candidate that it and the piece like best, and their consent:

    the least Dice of any two within reach; 1 for one answer alone.
    """
    rows, columns = padded(piece, spacing, reach)
    coarse = piece.mask[rows, columns]
    logits, scores = [], []
    for masks in answers:
        liked = [
            float(score) * (dice(one[rows, columns] > 0, coarse) or 0.0)
            for one, score in zip(masks.logits, masks.scores, strict=True)
        ]
        best = int(np.argmax(liked))
        logits.append(masks.logits[best])
        scores.append(float(masks.scores[best]))
    agreed = [dice(a[rows, columns] > 0, b[rows, columns] > 0) or 0.0 for a, b in combinations(logits, 2)]
    mean: NDArray[np.float32] = np.mean(logits, axis=0)
    return Answer(mean, float(np.mean(scores)), min(agreed, default=1.0))


def judge(piece: Piece, answer: Answer, spacing: Spacing, how: RefineParameters) -> Accepted | None:
    """The answer within the piece's reach, if it is trusted; None keeps the piece as it is."""
    rows, columns = padded(piece, spacing, how.reach)
    coarse = piece.mask[rows, columns]
    logits = answer.logits[rows, columns]
    mask = touching(logits > 0, coarse)
    agreement = dice(mask, coarse) or 0.0
    if agreement < how.min_agreement or answer.score < how.min_score or answer.consent < how.min_consent:
        return None
    strength = np.where((logits > 0) & ~mask, -np.inf, logits).astype(np.float32)
    return Accepted((rows, columns), coarse, strength, agreement)


def padded(piece: Piece, spacing: Spacing, margin: float) -> Region:
    """The rows and columns of the piece with `margin` mm on each side, within what SAM sees."""
    pads = [round(margin / mm) for mm in spacing]
    rows, columns = (
        slice(max(0, bounds.start - pad), min(length, bounds.stop + pad))
        for bounds, pad, length in zip((piece.rows, piece.columns), pads, piece.mask.shape, strict=True)
    )
    return rows, columns


def compose(labels: NDArray[np.uint8], claims: Sequence[Claim]) -> None:
    """Put the masks of claims into the `labels` [rows, columns] of a slice, in place.

    What they do not replace stays. Where two claim a pixel, the surer one has it.
    """
    for new in claims:
        labels[new.region][new.before] = 0
    free = labels == 0
    best = np.zeros(labels.shape, np.float32)
    for new in claims:
        here, surest = labels[new.region], best[new.region]
        wins = free[new.region] & (new.strength > surest)
        here[wins] = new.label
        surest[wins] = new.strength[wins]


def edge_distance(mask: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float64]:
    """Distance in mm of each pixel to the nearest one across the mask's edge; outside of all is outside."""
    if mask.all():
        return depth(mask, spacing)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~mask, sampling=spacing)
    if mask.any():
        rows, columns = ndimage.find_objects(mask.view(np.uint8))[0]
        # The nearest pixel outside is at most one beyond the mask's bounds.
        near = (slice(max(0, rows.start - 1), rows.stop + 1), slice(max(0, columns.start - 1), columns.stop + 1))
        distance[near] += ndimage.distance_transform_edt(mask[near], sampling=spacing)
    return distance
