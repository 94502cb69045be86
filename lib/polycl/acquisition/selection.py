"""Which image, and which slice of it, is most worth a person's time. Pure functions on arrays.

A `Candidate` is an image as far as it may still be chosen: leave out the slices that are labelled (`Candidate.of`),
and the same functions choose slice by slice. All are deterministic: ties go to the first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polycl.acquisition.scores import Scores

Method = Literal["first", "random", "uncertain", "diverse", "mixed"]
LIKELY_CM2 = 1.0
"""A slice with less of anything found is suggested only if there is no other: it may have nothing to outline."""
TOP = 0.1
"""An image is as doubtful as this share of its slices, the most doubtful, on average."""
DOUBTFUL = 0.5
"""`mixed` chooses among this share of the images, the most doubtful."""
PER_IMAGE = 8
"""Slices that stand for an image where images are compared: neighbours are alike, and the work grows by the square."""
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pick:
    """An image to label and a slice to begin with; `score` is comparable among the picks of one method."""

    image: str
    slice: int
    score: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image, or what is left of it to label.

    Attributes:
        image: its id.
        numbers: of its slices, `[N]`, N > 0.
        doubt: of each slice over each of C structures, cm², `[N, C]`.
        area: of each structure as far as it is probable, cm², `[N, C]`.
        embeddings: of some of its slices, `[M, E]`, M > 0, those at `embedded` among the N.
        likely: whether there is probably something to outline, `[N]`.
    """

    image: str
    numbers: NDArray[np.int64]
    doubt: Array
    area: Array
    likely: NDArray[np.bool_]
    embeddings: Array
    embedded: NDArray[np.int64]

    @classmethod
    def of(
        cls, image: str, scores: Scores, labelled: Collection[int] = (), *, holding: bool = False
    ) -> Candidate | None:
        """An image but for the slices that are `labelled`; None if that leaves nothing.

        `holding`: all are known to hold something, whatever the model finds on them.
        """
        left = ~np.isin(scores.numbers, list(labelled))
        if not left.any():
            return None
        area = scores.area[left]
        likely = (area.sum(axis=1) >= LIKELY_CM2) | holding
        embedded = evenly(np.flatnonzero(likely) if likely.any() else np.arange(len(likely)), PER_IMAGE)
        embeddings = scores.embeddings[left][embedded]
        return cls(image, scores.numbers[left], scores.disagreement[left], area, likely, embeddings, embedded)

    @classmethod
    def unscored(cls, image: str, numbers: NDArray[np.int64], likely: NDArray[np.bool_]) -> Candidate:
        """An image of which no model said anything: enough for `first` and `random`."""
        nothing = np.zeros((len(numbers), 1), np.float32)
        return cls(image, numbers, nothing, nothing, likely, nothing[:1], np.zeros(1, np.int64))

    def doubts(self, sizes: Array) -> Array:
        """How doubtful each slice is, `[N]`, by `typical_sizes` `[C]`."""
        return np.asarray((self.doubt / sizes).sum(axis=1), dtype=np.float32)

    def pick(self, sizes: Array) -> Pick:
        """Its most doubtful slice that probably holds something, and how doubtful the image is."""
        doubts = self.doubts(sizes)
        most = np.sort(doubts)[::-1][: max(1, round(TOP * len(doubts)))]
        among = np.where(self.likely, doubts, -1) if self.likely.any() else doubts
        return Pick(self.image, int(self.numbers[int(among.argmax())]), float(most.mean()))


def choose(
    method: Method,
    candidates: Sequence[Candidate],
    labelled: Array,
    count: int,
    *,
    seed: int | Sequence[int] = 0,
    sizes: Array | None = None,
) -> list[Pick]:
    """The `count` best picks by a method, the best first, each of another image. `labelled` is `[L, E]`, L >= 0.

    `seed` is for `random` alone. `sizes` are the `typical_sizes` of more images than these, if there are more.
    """
    if method == "random":
        return drawn(candidates, count, seed)
    if method == "diverse":
        return diverse(candidates, labelled, count)
    sizes = typical_sizes(candidates) if sizes is None else sizes
    if method == "first":
        return in_order(candidates, count, sizes)
    if method == "uncertain":
        return uncertain(candidates, count, sizes)
    return mixed(candidates, labelled, count, sizes)


def typical_sizes(candidates: Sequence[Candidate]) -> Array:
    """Area of each structure on a slice that shows it, cm², `[C]`: the mean over slices, each as often as its area.

    Doubt over a structure counts by this: Dice is as poor for 1 cm² of a small organ as for 10 cm² of a large one, and
    a slice that shows several is worth more. No structure counts as smaller than `LIKELY_CM2`.
    """
    if not candidates:
        return np.ones(1, np.float32)
    area = np.concatenate([one.area for one in candidates])
    return np.maximum((area**2).sum(axis=0) / np.maximum(area.sum(axis=0), LIKELY_CM2), LIKELY_CM2)


def in_order(candidates: Sequence[Candidate], count: int, sizes: Array) -> list[Pick]:
    """Images as they come, each with its most doubtful slice."""
    return [one.pick(sizes) for one in candidates[:count]]


def drawn(candidates: Sequence[Candidate], count: int, seed: int | Sequence[int]) -> list[Pick]:
    """Images by chance, each with one of its slices by chance: of those that probably hold something, if there are."""
    generator = np.random.default_rng(seed)
    picks = []
    for at in generator.permutation(len(candidates))[:count]:
        one = candidates[at]
        numbers = one.numbers[one.likely] if one.likely.any() else one.numbers
        picks.append(Pick(one.image, int(generator.choice(numbers)), 0.0))
    return picks


def uncertain(candidates: Sequence[Candidate], count: int, sizes: Array) -> list[Pick]:
    """The most doubtful images, each with its most doubtful slice."""
    return sorted((one.pick(sizes) for one in candidates), key=lambda pick: -pick.score)[:count]


def diverse(candidates: Sequence[Candidate], labelled: Array, count: int) -> list[Pick]:
    """Images by k-centre greedy (Sener and Savarese 2018): each time the slice furthest from all that is covered.

    Covered are the labelled slices, and all of an image once it is picked, as propagation fills it from one slice. With
    nothing labelled the first is the slice nearest to the middle of all: the most ordinary one.
    """
    if not candidates or count < 1:
        return []
    owner = np.repeat(np.arange(len(candidates)), [len(one.embeddings) for one in candidates])
    places = np.concatenate([one.embedded for one in candidates])
    points, covered = standardised(np.concatenate([one.embeddings for one in candidates]), labelled)
    nearest = distances(points, covered)
    picks: list[Pick] = []
    while len(picks) < min(count, len(candidates)):
        if np.isinf(nearest).all():  # nothing is covered yet
            at = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin())
            score = 0.0
        else:
            at = int(nearest.argmax())
            score = float(nearest[at])
        one = candidates[owner[at]]
        picks.append(Pick(one.image, int(one.numbers[places[at]]), score))
        mine = owner == owner[at]
        nearest = np.minimum(nearest, distances(points, points[mine]))
        nearest[mine] = -1
    return picks


def mixed(candidates: Sequence[Candidate], labelled: Array, count: int, sizes: Array) -> list[Pick]:
    """Images as `diverse` has them among the more doubtful half, then the rest; with their most doubtful slices.

    As suggestive annotation (Yang et al. 2017) has it: what is not in doubt teaches little, and of those that are in
    doubt many are alike.
    """
    doubtful = {one.image: one.pick(sizes) for one in candidates}
    ordered = sorted(candidates, key=lambda one: -doubtful[one.image].score)
    half = max(1, round(DOUBTFUL * len(ordered)))
    first = diverse(ordered[:half], labelled, count)
    if len(first) < count:
        known = np.concatenate([labelled, *(one.embeddings for one in ordered[:half])]) if ordered else labelled
        first += diverse(ordered[half:], known, count - len(first))
    return [replace(pick, slice=doubtful[pick.image].slice) for pick in first]


def coverage(scores: Scores, known: NDArray[np.bool_] | None) -> Array:
    """What a label covers of the encoder's space, `[M, E]`: slices that are `known` `[K]`, or the nearest to them.

    None stands for all slices.
    """
    if known is None:
        return scores.embeddings[evenly(np.arange(len(scores.numbers)), PER_IMAGE)]
    where = np.flatnonzero(known)
    if not len(where):
        return scores.embeddings[:0]
    gaps = np.abs(scores.numbers[:, None] - where[None]).min(axis=1)
    return scores.embeddings[evenly(np.flatnonzero(gaps == gaps.min()), PER_IMAGE)]


def standardised(points: Array, others: Array) -> tuple[Array, Array]:
    """Both `[., E]` by the mean and the mean spread of the first: embeddings share most of what they say."""
    mean = points.mean(axis=0)
    spread = float(np.sqrt(((points - mean) ** 2).mean())) or 1.0
    return (points - mean) / spread, (others.reshape(-1, points.shape[1]) - mean) / spread


def distances(points: Array, others: Array) -> Array:
    """Euclidean distance of each of `[P, E]` to the nearest of `[O, E]`, `[P]`; infinite if O is 0."""
    if not len(others):
        return np.full(len(points), np.inf, dtype=np.float32)
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ others.T + (others**2).sum(axis=1)
    return np.sqrt(np.maximum(squares.min(axis=1), 0)).astype(np.float32)


def evenly(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of some numbers, evenly spaced, the middle if it is one."""
    if len(numbers) <= most:
        return numbers
    at = ((np.arange(most) + 0.5) * len(numbers) / most).astype(int)
    return numbers[at]
