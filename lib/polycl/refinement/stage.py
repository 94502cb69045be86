"""The refinement stage: a coarse label map and its image in, a label map refined by SAM out.

Each component of the coarse mask on an axial slice gives a padded box; SAM's answer replaces it only where the two
agree enough and SAM is sure enough. No label comes onto a slice where the coarse mask has none, and slices
without coarse mask are never encoded. Slices are visited from coarse to fine: one between two that did not change is
skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError
from polycl.refinement.parameters import RefineParameters
from polycl.refinement.pieces import Accepted, Piece, Spacing, choose, pieces_of, prompts_for
from polycl.refinement.report import RefineReport
from polycl.sam import EmbeddingCache, Engine, to_image
from polycl.sam.slices import Region, SliceEncoder
from polycl.volume import Volume
from polycl.volume.checks import to_label

Progress = Callable[[int, int], None]
"""Called with slices done and slices in all; may raise to stop."""
EVERYTHING: Region = (slice(None), slice(None))


def refine(
    volume: Volume,
    coarse: Volume,
    engine: Engine,
    cache: EmbeddingCache | None = None,
    parameters: RefineParameters | None = None,
    progress: Progress | None = None,
    *,
    labels: Collection[int] | None = None,
) -> tuple[Volume, RefineReport]:
    """`coarse` refined on `volume` (a CT in HU), uint8 on the same grid in the caller's own axes, and what was done.

    Args:
        volume: any axis order.
        coarse: a label map on the same grid, 0 background.
        engine: the SAM to ask.
        cache: embeddings that may be there already; those made are left in it.
        parameters: the defaults if None.
        progress: called after each slice.
        labels: ids to refine, all if None. The others stay exactly as they are.

    Raises InputError if `coarse` is on another grid or holds no labels.
    """
    volume.require_same_grid(coarse, "the coarse mask")
    if not np.isfinite(coarse.voxels).all():
        raise InputError("the coarse mask has values that are not finite; labels are 0 to 255")
    started = time.perf_counter()
    result = volume.with_voxels(np.array(to_label(coarse.voxels)))
    before = volume.with_voxels(to_label(coarse.voxels)).canonical().voxels
    work = _Work(volume, before, result.canonical().voxels, engine, parameters or RefineParameters())
    cache = EmbeddingCache(0) if cache is None else cache
    with cache.serving():
        touched = work.run(cache, labels, progress)
    if work.how.smooth:
        smooth_changes(work.out, before, touched)
    work.report.changed_voxels = sum(int(np.count_nonzero(work.out[:, :, z] != before[:, :, z])) for z in touched)
    work.report.seconds["total"] = time.perf_counter() - started
    return result, work.report


def visiting_order(count: int, stride: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Positions 0 to `count` - 1 from coarse to fine, each with the two around it that came before (none at first).

    >>> list(visiting_order(5, 2))
    [(0, ()), (2, ()), (4, ()), (1, (0, 2)), (3, (2, 4))]
    """
    always = [*range(0, count, stride)]
    if count and always[-1] != count - 1:
        always.append(count - 1)
    yield from ((position, ()) for position in always)
    while stride > 1:
        half = stride // 2
        for position in range(half, count - 1, stride):
            yield position, (position - half, min(position + half, count - 1))
        stride = half


def smooth_changes(out: NDArray[np.uint8], before: NDArray[np.uint8], slices: Collection[int]) -> None:
    """Where a slice of `slices` changed, two of {below, itself, above} that agree decide; in place, canonical axes.

    Only labels that the coarse mask had on the slice can come, so nothing is invented.
    """
    refined = {
        z + near: out[:, :, z + near].copy() for z in slices for near in (-1, 0, 1) if 0 <= z + near < out.shape[2]
    }
    for z in slices:
        here = refined[z]
        below, above = refined.get(z - 1, here), refined.get(z + 1, here)
        known = np.zeros(256, dtype=bool)
        known[before[:, :, z]] = True
        known[0] = True
        replace = (here != before[:, :, z]) & (below == above) & known[below]
        out[:, :, z][replace] = below[replace]


class _Work:
    """One refinement: canonical arrays, the region that SAM sees, and the report that fills up."""

    def __init__(
        self, volume: Volume, before: NDArray[np.uint8], out: NDArray[np.uint8], engine: Engine, how: RefineParameters
    ) -> None:
        self.volume, self.before, self.out, self.engine, self.how = volume, before, out, engine, how
        canonical = volume.canonical()
        self.hu = canonical.voxels
        self.spacing: Spacing = (canonical.spacing[1], canonical.spacing[0])
        self.report = RefineReport(engine.name, engine.sha256)

    def run(self, cache: EmbeddingCache, labels: Collection[int] | None, progress: Progress | None) -> list[int]:
        """Refine `out` in place; the slices where a component was replaced."""
        slices, region = self._survey(labels)
        if not slices:
            return []
        encoder = SliceEncoder(self.volume, self.engine, self.how.window, cache, region)
        self.report.slices = len(slices)
        still = [False] * len(slices)
        touched = []
        for done, (position, around) in enumerate(visiting_order(len(slices), self.how.stride), start=1):
            z = slices[position]
            if around and all(still[near] for near in around):
                self.report.skipped += 1
                still[position] = True
            else:
                agreement = self._slice(z, labels, encoder, region or EVERYTHING)
                still[position] = agreement is None or agreement >= self.how.settled
                if agreement is not None:
                    touched.append(z)
            if progress is not None:
                progress(done, len(slices))
        return sorted(touched)

    def _pieces(self, z: int, labels: Collection[int] | None, region: Region) -> tuple[list[Piece], int]:
        plane = to_image(self.before[:, :, z])[region]
        ids = [int(label) for label in np.unique(plane) if label and (labels is None or label in labels)]
        return pieces_of(plane, ids, self.spacing, self.how.min_area)

    def _survey(self, labels: Collection[int] | None) -> tuple[list[int], Region | None]:
        """Slices that hold something to refine, and the region that SAM sees of each; None for whole slices.

        The region is the same on every slice, so that SAM sees the organ at one scale.
        """
        slices, spans = [], []
        for z in range(self.before.shape[2]):
            pieces, small = self._pieces(z, labels, EVERYTHING) if self.before[:, :, z].any() else ([], 0)
            self.report.small += small
            spans += [(piece.rows, piece.columns) for piece in pieces]
            if pieces:
                slices.append(z)
        if self.how.crop_margin is None or not slices:
            return slices, None
        sides = []
        for axis, length in enumerate(to_image(self.before[:, :, 0]).shape):
            low, high = min(span[axis].start for span in spans), max(span[axis].stop for span in spans)
            missing = (self.how.min_crop / self.spacing[axis] - (high - low)) / 2
            pad = round(max(self.how.crop_margin / self.spacing[axis], missing))
            sides.append(slice(max(0, low - pad), min(length, high + pad)))
        return slices, (sides[0], sides[1])

    def _slice(self, z: int, labels: Collection[int] | None, encoder: SliceEncoder, region: Region) -> float | None:
        """Refine one slice; the lowest agreement of what was accepted with the coarse mask, None if nothing was."""
        pieces, _ = self._pieces(z, labels, region)
        if not np.isfinite(to_image(self.hu[:, :, z])[region]).all():
            self.report.unreadable += 1
            self.report.kept += len(pieces)
            return None
        started = time.perf_counter()
        embedding = encoder.embedding(z)
        encoded = time.perf_counter()
        answers = self.engine.decode_many(embedding, [prompts_for(piece, self.spacing, self.how) for piece in pieces])
        chosen = [
            (piece, choose(piece, masks, self.spacing, self.how)) for piece, masks in zip(pieces, answers, strict=True)
        ]
        accepted = [(piece, new) for piece, new in chosen if new is not None]
        compose(to_image(self.out[:, :, z])[region], accepted)
        self.report.encoded += 1
        self.report.accepted += len(accepted)
        self.report.kept += len(chosen) - len(accepted)
        self.report.seconds["encode"] += encoded - started
        self.report.seconds["decode"] += time.perf_counter() - encoded
        return min((new.agreement for _, new in accepted), default=None)


def compose(labels: NDArray[np.uint8], accepted: list[tuple[Piece, Accepted]]) -> None:
    """Put the accepted masks into `labels` [rows, columns], in place.

    What they do not replace stays. Where two claim a pixel, the one SAM is surer of has it.
    """
    for piece, _ in accepted:
        labels[piece.mask] = 0
    free = labels == 0
    best = np.full(labels.shape, -np.inf, np.float32)
    for piece, new in accepted:
        wins = free & new.mask & ((new.strength > best) | (labels == 0))
        labels[wins] = piece.label
        best[wins] = new.strength[wins]
