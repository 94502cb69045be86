"""The refinement stage: a coarse label map and its image in, a label map refined by SAM out.

Each component of the coarse mask on an axial slice gives a padded box; SAM has a say only where its answer and the
component agree enough and SAM is sure enough. Where what comes of all slices together is another outline, SAM is asked
about that again. No label comes onto a slice where the coarse mask has none, and SAM never sees slices without. Slices
are visited from coarse to fine: one between two about which SAM agrees with the coarse mask is skipped.
At last a SAM 2 follows ragged labels through the plane; see `following`. What is too thin for
either is outlined by what it is made of; see `tissue`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.errors import InputError
from polycl.metrics import dice
from polycl.propagate.engine import VideoEngine
from polycl.refinement.parameters import Ask, RefineParameters
from polycl.refinement.pieces import (
    Accepted,
    Answer,
    Claim,
    Piece,
    Spacing,
    compose,
    judge,
    pieces_of,
    prompts_for,
    together,
)
from polycl.refinement.report import RefineReport
from polycl.refinement.tissue import outline
from polycl.refinement.view import WHOLE, region_of, window_of
from polycl.refinement.votes import Odds, hold_of, is_ragged, jump_mm, tally
from polycl.sam import Embedding, EmbeddingCache, Engine, to_image
from polycl.sam.engine import Masks
from polycl.sam.regions import Region
from polycl.sam.slices import Mosaic, SliceEncoder
from polycl.volume import Volume
from polycl.volume.checks import to_label

Progress = Callable[[int, int], None]
"""Called with slices done and in all, each as often as there are passes, and once if followed; may raise to stop."""
OWN_CACHE_BYTES = 1 << 28
"""For labels that see the same slices."""


def refine(
    volume: Volume,
    coarse: Volume,
    engine: Engine,
    cache: EmbeddingCache | None = None,
    parameters: RefineParameters | None = None,
    progress: Progress | None = None,
    *,
    labels: Collection[int] | None = None,
    follower: VideoEngine | None = None,
) -> tuple[Volume, RefineReport]:
    """`coarse` refined on `volume` (a CT in HU), uint8 on the same grid in the caller's own axes, and what was done.

    Args:
        volume: any axis order.
        coarse: a label map on the same grid, 0 background.
        engine: the SAM to ask.
        cache: embeddings that may be there already; those made are left in it. One of its own if None.
        parameters: the defaults if None.
        progress: called after each slice.
        labels: ids to refine, all if None. The others stay exactly as they are.
        follower: the SAM 2 that follows ragged labels through the plane; none is followed if None.

    Raises InputError if `coarse` is on another grid or holds no labels.
    """
    volume.require_same_grid(coarse, "the coarse mask")
    if not np.isfinite(coarse.voxels).all():
        raise InputError("the coarse mask has values that are not finite; labels are 0 to 255")
    started = time.perf_counter()
    result = volume.with_voxels(np.array(to_label(coarse.voxels)))
    before = volume.with_voxels(to_label(coarse.voxels)).canonical().voxels
    out = result.canonical().voxels
    work = _Work(volume, before, engine, parameters or RefineParameters(), follower)
    cache = EmbeddingCache(OWN_CACHE_BYTES) if cache is None else cache
    with cache.serving():
        work.run(out, cache, labels, progress)
    work.report.changed_voxels = int(np.count_nonzero(out != before))
    work.report.seconds["total"] = time.perf_counter() - started
    return result, work.report


def levels(count: int, stride: int) -> Iterator[dict[int, tuple[int, ...]]]:
    """Positions 0 to `count` - 1 from coarse to fine, each with the two around it of earlier levels (none at first).

    >>> list(levels(5, 2))
    [{0: (), 2: (), 4: ()}, {1: (0, 2), 3: (2, 4)}]
    """
    always = [*range(0, count, stride)]
    if count and always[-1] != count - 1:
        always.append(count - 1)
    yield dict.fromkeys(always, ())
    while stride > 1:
        half = stride // 2
        between = range(half, count - 1, stride)
        yield {position: (position - half, min(position + half, count - 1)) for position in between}
        stride = half


class _Label:
    """The refinement of one label: the pieces of each slice, what SAM sees of it, and the report that fills up."""

    def __init__(self, work: _Work, label: int, cache: EmbeddingCache) -> None:
        self.work, self.how, self.report = work, work.how, work.report
        self.spacing = work.spacing
        self.mask = work.before == label
        self.label = label
        self.present: list[int] = np.flatnonzero(self.mask.any(axis=(0, 1))).tolist()
        self.slices, spans, self.is_thin = self._survey()
        self.jumps = 0.0 if self.is_thin else self._jumps()
        if self.jumps:  # SAM should not have the last word
            self.how = self.how.model_copy(update={"tiles": self.how.tiles_if_followed, "passes": 1})
        columns, rows, _ = self.mask.shape
        sight = work.engine.sight
        self.region = region_of(spans, (rows, columns), self.spacing, self.how, sight) if spans else WHOLE
        region = None if self.region == WHOLE else self.region
        window = window_of(self.mask, self.slices, work.canonical, self.how)
        self.encoder = SliceEncoder(work.volume, work.engine, window, cache, region)
        shape = to_image(self.mask[:, :, 0])[self.region].shape
        tiles = self.how.tiles if sight is None else 1  # it would see each slice too small
        self.mosaic = Mosaic(tiles, (shape[0], shape[1]))

    def run(self, step: Callable[[int], None]) -> dict[int, Claim]:
        """The label on the slices where pieces were replaced. `step` is told how many slices were done."""
        coarse = self._masks()
        pictures, accepted = self._look(step)
        if not accepted:
            step((self.how.passes - 1) * len(self.slices))
            return {}
        hold = hold_of(self.how, coarse, accepted)
        self.report.hold[self.label] = round(hold, 2)
        odds: dict[int, Odds] = {}
        asked = coarse
        for remaining in range(self.how.passes - 1, -1, -1):
            spacing = (*self.spacing, self.work.between)
            for z, found in tally(coarse, asked, accepted, spacing, hold, self.how) if accepted else ():
                odds[z] = found
                to_image(self.mask[:, :, z])[self.region] = found > 0
            if remaining:
                now = self._masks()
                moved = {z for z in accepted if z in now and (dice(asked[z], now[z]) or 0.0) < self.how.at_rest}
                accepted = {z: some for z, some in accepted.items() if z in now and z not in moved}
                accepted |= self._again(pictures, moved, step)
                asked = {z: now[z] if z in moved else mask for z, mask in asked.items() if z in now}
        return {z: Claim(self.label, self.region, coarse[z], one) for z, one in odds.items()}

    def _masks(self) -> dict[int, NDArray[np.bool_]]:
        """The label as it is, in what SAM sees, on the slices that hold it."""
        return {z: to_image(self.mask[:, :, z])[self.region].copy() for z in self.present if self.mask[:, :, z].any()}

    def _look(self, step: Callable[[int], None]) -> tuple[list[list[int]], dict[int, list[Accepted]]]:
        """The slices that SAM saw, picture by picture, and what is accepted on them."""
        accepted: dict[int, list[Accepted]] = {}
        pictures: list[list[int]] = []
        still: set[int] = set()
        for level in levels(len(self.slices), self.how.stride):
            skipped = {position for position, around in level.items() if around and still.issuperset(around)}
            self.report.skipped += len(skipped)
            step(len(skipped))
            wanted = [self.slices[position] for position in level if position not in skipped]
            seen = [z for z in wanted if self._readable(z)]
            step(len(wanted) - len(seen))
            for start in range(0, len(seen), self.mosaic.room):
                pictures.append(seen[start : start + self.mosaic.room])
                accepted |= self._together(pictures[-1])
                self.report.encoded += len(pictures[-1])
                self.report.encodings += 1
                step(len(pictures[-1]))
            still |= {position for position in level if self._settled(accepted.get(self.slices[position], []))}
        return pictures, accepted

    def _again(
        self, pictures: list[list[int]], moved: Collection[int], step: Callable[[int], None]
    ) -> dict[int, list[Accepted]]:
        """What is accepted where SAM is asked about what came of its answers, on the slices that moved by them.

        The last pictures come first: they are the likeliest to be in the cache.
        """
        accepted: dict[int, list[Accepted]] = {}
        asked = [some for some in reversed(pictures) if any(z in moved for z in some)]
        step(len(self.slices) - sum(map(len, asked)))
        for some in asked:
            accepted |= self._together(some, moved)
            step(len(some))
        return accepted

    def _settled(self, accepted: list[Accepted]) -> bool:
        return all(new.agreement >= self.how.settled for new in accepted)

    def _pieces(self, z: int, region: Region) -> tuple[list[Piece], int]:
        return pieces_of(to_image(self.mask[:, :, z])[region], self.spacing, self.how)

    def _survey(self) -> tuple[list[int], list[Region], bool]:
        """Slices with pieces to ask SAM about, where these lie, and whether the label is to be outlined by its tissue:

        too thin or small to ask about on most of its slices. Where pixels are too large there is nothing to ask.
        """
        slices: list[int] = []
        spans: list[Region] = []
        rows, columns = ndimage.find_objects(to_image(self.mask.any(axis=2)).astype(np.uint8))[0]
        for z in self.present:
            pieces, small = self._pieces(z, (rows, columns))
            self.report.small += small
            spans += [(_moved(piece.rows, rows.start), _moved(piece.columns, columns.start)) for piece in pieces]
            if pieces:
                slices.append(z)
        is_thin = self.work.coarse and self.how.tissue > 0 and 2 * len(slices) < len(self.present)
        if self.work.blurred:
            self.report.blurred += len(spans)
            return [], [], is_thin
        return slices, spans, is_thin

    def _jumps(self) -> float:
        """Mm that the outline jumps forth and back from slice to slice, on average; 0 if it is not to be followed."""
        if self.work.follower is None or self.how.follow is None:
            return 0.0
        spacing = self.work.canonical.spacing
        mask = self.mask[self.work.boxes[self.label - 1]]
        if not is_ragged(mask, spacing, self.how.ragged):
            return 0.0
        followable = all(np.isfinite(self.work.hu[:, :, z]).all() for z in self.present)
        return jump_mm(mask, spacing) if followable else 0.0

    def _readable(self, z: int) -> bool:
        """Whether the slice is all numbers; one that is not stays as it is, and is counted."""
        if np.isfinite(to_image(self.work.hu[:, :, z])[self.region]).all():
            return True
        self.report.unreadable += 1
        self.report.kept += len(self._pieces(z, self.region)[0])
        return False

    def _together(self, slices: Sequence[int], moved: Collection[int] | None = None) -> dict[int, list[Accepted]]:
        """What is accepted on slices that SAM sees in one picture; slices without are left out.

        In a later pass only those that `moved` are asked about, and nothing is counted.
        """
        started = time.perf_counter()
        embedding = self.encoder.mosaic(slices, self.mosaic)
        encoded = time.perf_counter()
        asks = self.how.asks if moved is None else self.how.asks_again
        accepted = {}
        for number, z in enumerate(slices):
            if moved is not None and z not in moved:
                continue
            pieces, _ = self._pieces(z, self.region)
            answers = self._answers(pieces, asks, embedding, number)
            judged = [judge(piece, one, self.spacing, self.how) for piece, one in zip(pieces, answers, strict=True)]
            new = [one for one in judged if one is not None]
            if moved is None:
                self.report.accepted += len(new)
                self.report.kept += len(judged) - len(new)
            if new:
                accepted[z] = new
        self.report.seconds["encode"] += encoded - started
        self.report.seconds["decode"] += time.perf_counter() - encoded
        return accepted

    def _answers(self, pieces: list[Piece], asks: Sequence[Ask], embedding: Embedding, number: int) -> list[Answer]:
        """What SAM answers about each piece of picture `number`; those of two answers that are one get no third."""
        found: list[list[Masks]] = [[] for _ in pieces]
        answers: dict[int, Answer] = {}
        left = [*range(len(pieces))]
        for some in (asks[:2], asks[2:]):
            wanted = [(n, ask) for n in left for ask in some]
            if not wanted:
                break
            prompts = [
                prompts_for(pieces[n], ask, self.spacing, self.how.box_margin, self.mosaic, number) for n, ask in wanted
            ]
            for (n, _), masks in zip(wanted, self.work.engine.decode_many(embedding, prompts), strict=True):
                found[n].append(masks.part(self.mosaic.tile(number)))
            answers |= {n: together(pieces[n], found[n], self.spacing, self.how.reach) for n in left}
            left = [n for n in left if answers[n].consent < self.how.unanimous]
        return [answers[n] for n in range(len(pieces))]


def _moved(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)


class _Work:
    """One refinement: canonical arrays, and the report that fills up."""

    def __init__(
        self,
        volume: Volume,
        before: NDArray[np.uint8],
        engine: Engine,
        how: RefineParameters,
        follower: VideoEngine | None,
    ) -> None:
        self.volume, self.before, self.engine, self.how, self.follower = volume, before, engine, how, follower
        self.canonical = volume.canonical()
        self.hu = self.canonical.voxels
        self.spacing: Spacing = (self.canonical.spacing[1], self.canonical.spacing[0])
        self.between = self.canonical.spacing[2]
        self.report = RefineReport(engine.name, engine.sha256)
        self.boxes = ndimage.find_objects(before)
        """Of label 1, 2 and so on; None where there is none."""
        self.coarse = max(self.spacing) > how.max_pixel
        """Whether pixels are large."""
        self.blurred = engine.sight is None and self.coarse
        """Whether they are too large for an engine that knows no CT."""

    def run(
        self, out: NDArray[np.uint8], cache: EmbeddingCache, ids: Collection[int] | None, progress: Progress | None
    ) -> None:
        """Refine `out` in place, label by label, and follow those that are ragged."""
        present = [int(label) for label in np.flatnonzero(np.bincount(self.before.ravel(order="K"), minlength=256))]
        wanted = [label for label in present if label and (ids is None or label in ids)]
        labels = [_Label(self, label, cache) for label in wanted]
        self.report.slices = sum(len(label.slices) for label in labels)
        thin = {one.label: len(one.present) for one in labels if one.is_thin}
        ragged = {one.label: len(one.present) for one in labels if one.jumps}
        self.report.ragged = {one.label: round(one.jumps, 3) for one in labels if one.jumps}
        asking = sum(len(label.slices) * label.how.passes for label in labels)
        total = asking + sum(ragged.values()) + sum(thin.values())
        done = 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None and count:
                progress(done, total)

        claims = [label.run(step) for label in labels if label.slices]
        for z in sorted({z for found in claims for z in found}):
            compose(to_image(out[:, :, z]), [found[z] for found in claims if z in found])
        self._follow(out, ragged, step)
        self._by_tissue(out, thin, step)

    def _by_tissue(self, out: NDArray[np.uint8], thin: Mapping[int, int], step: Callable[[int], None]) -> None:
        """Outline thin labels by their HU."""
        started = time.perf_counter()
        for label, slices in thin.items():
            if outline(self.hu, out, label, self.canonical.spacing, self.how.tissue):
                self.report.by_tissue.append(label)
            step(slices)
        self.report.seconds["tissue"] = time.perf_counter() - started

    def _follow(self, out: NDArray[np.uint8], ragged: Mapping[int, int], step: Callable[[int], None]) -> None:
        if self.follower is None or not ragged:
            return
        from polycl.refinement.following import follow

        started = time.perf_counter()
        features = EmbeddingCache(OWN_CACHE_BYTES)  # of no use to clicks
        for label, slices in ragged.items():
            told = 0

            def progress(done: int, total: int, slices: int = slices) -> None:
                nonlocal told
                now = max(told, slices * done // max(1, total))
                step(now - told)
                told = now

            self.report.followed += follow(self.canonical, out, label, self.follower, features, self.how, progress)
            step(slices - told)
        self.report.seconds["follow"] = time.perf_counter() - started
