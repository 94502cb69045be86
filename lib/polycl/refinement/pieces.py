"""Components of a coarse mask on one slice: the prompts they give, and what becomes of SAM's answer.

Arrays here are slices as SAM sees them: [rows, columns], top = front, left = the patient's right.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.metrics import dice
from polycl.refinement.parameters import RefineParameters
from polycl.sam import Masks, Prompts, mask_prompt

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
Spacing = tuple[float, float]
"""Millimetres between rows and between columns."""


@dataclass(frozen=True)
class Piece:
    """One component of one label on one slice: `mask` [rows, columns] over the whole slice, and its pixel bounds."""

    label: int
    mask: NDArray[np.bool_]
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Accepted:
    """What replaces a piece: the new mask and how sure SAM is of each pixel (a logit, infinite where it had no say)."""

    mask: NDArray[np.bool_]
    strength: NDArray[np.float32]
    agreement: float


def pieces_of(
    labels: NDArray[np.uint8], ids: Collection[int], spacing: Spacing, min_area: float
) -> tuple[list[Piece], int]:
    """The components (8 neighbours) of the labels `ids`, and how many were below `min_area` mm² and left out."""
    pieces, small = [], 0
    for label in sorted(ids):
        components, _ = ndimage.label(labels == label, EIGHT_NEIGHBOURS)
        for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
            mask = components == number
            if int(np.count_nonzero(mask)) * spacing[0] * spacing[1] < min_area:
                small += 1
            else:
                pieces.append(Piece(label, mask, rows, columns))
    return pieces, small


def prompts_for(piece: Piece, spacing: Spacing, parameters: RefineParameters) -> Prompts:
    """The padded box of a piece and, as the parameters ask, its innermost pixel and its mask."""
    rows, columns = _padded(piece, spacing, parameters.box_margin)
    box = np.array([columns.start, rows.start, columns.stop - 1, rows.stop - 1], dtype=np.float64)
    points, inside = np.zeros((0, 2)), np.zeros(0, np.int64)
    if parameters.point:
        depth = ndimage.distance_transform_edt(np.pad(piece.mask[piece.rows, piece.columns], 1), sampling=spacing)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        points = np.array([[column - 1 + piece.columns.start, row - 1 + piece.rows.start]], np.float64)
        inside = np.ones(1, np.int64)
    logits = mask_prompt(piece.mask) if parameters.mask_prompt else None
    return Prompts(points=points, labels=inside, box=box, mask_logits=logits)


def choose(piece: Piece, masks: Masks, spacing: Spacing, parameters: RefineParameters) -> Accepted | None:
    """SAM's best candidate for a piece, limited to its box and band; None if none agrees enough or is sure enough."""
    best: tuple[float, int, NDArray[np.bool_], float] | None = None
    rows, columns = _padded(piece, spacing, parameters.box_margin)
    coarse = piece.mask[rows, columns]
    for index, score in enumerate(masks.scores):
        candidate = _touching(masks.logits[index][rows, columns] > 0, coarse)
        agreement = dice(candidate, coarse) or 0.0
        passes = agreement >= parameters.min_agreement and score >= parameters.min_score
        if passes and (best is None or score * agreement > best[0]):
            best = float(score) * agreement, index, candidate, agreement
    if best is None:
        return None
    _, index, inner, agreement = best
    strength = np.full(piece.mask.shape, -np.inf, np.float32)
    strength[rows, columns] = masks.logits[index][rows, columns]
    mask = np.zeros_like(piece.mask)
    mask[rows, columns] = inner
    if parameters.band is not None:
        settled = _edge_distance(coarse, spacing) > parameters.band
        mask[rows, columns][settled] = coarse[settled]
        strength[rows, columns][settled & coarse] = np.inf
        agreement = dice(mask, piece.mask) or 0.0
    return Accepted(mask, strength, agreement)


def _padded(piece: Piece, spacing: Spacing, margin: float) -> tuple[slice, slice]:
    """The rows and columns of the piece with `margin` mm on each side, within the slice."""
    pads = [round(margin / mm) for mm in spacing]
    rows, columns = (
        slice(max(0, bounds.start - pad), min(length, bounds.stop + pad))
        for bounds, pad, length in zip((piece.rows, piece.columns), pads, piece.mask.shape, strict=True)
    )
    return rows, columns


def _touching(candidate: NDArray[np.bool_], coarse: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The components of `candidate` that share a pixel with `coarse`."""
    components, count = ndimage.label(candidate, EIGHT_NEIGHBOURS)
    kept = np.zeros(count + 1, dtype=bool)
    kept[components[coarse]] = True
    kept[0] = False
    touching: NDArray[np.bool_] = kept[components]
    return touching


def _edge_distance(mask: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float64]:
    """Distance in mm of each pixel to the nearest one on the other side of the mask's edge."""
    if mask.all():
        return np.zeros(mask.shape)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    distance: NDArray[np.float64] = inside + ndimage.distance_transform_edt(~mask, sampling=spacing)
    return distance
