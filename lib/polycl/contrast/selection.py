"""Which slices to compare: anchor, positive and negative, by the rules of PolyCL.

| strategy | positive (never the anchor) | negative |
|---|---|---|
| scan | of the anchor's scan | of another scan |
| organ | agrees with the anchor on whether the organ is present | disagrees |
| mixed | agrees, and of the anchor's scan | disagrees, and of another scan |

Ward, Moseley, Imran: Domain and Task-Focused Example Selection for Data-Efficient Contrastive Medical Image
Segmentation, MELBA 2026:002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError

Strategy = Literal["scan", "organ", "mixed"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

Whole = NDArray[np.integer[Any]]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Triplets:
    """Triplets of slices by a strategy: the i-th depends on (seed, i) alone, whoever draws it and with which others.

    Anchors are uniform over the slices that have a positive and a negative; both are uniform over what qualifies.

    Args:
        strategy: which rule.
        scan: `[N]`, the scan of each slice.
        present: `[N]`, whether the target organ is in each slice; not needed by `scan`.
        seed: 0 or more.

    Raises InputError if no slice has both a positive and a negative; it says why, and which strategies would serve.

    Attributes:
        anchors: `[M]`, the slices that serve as an anchor, in rising order.
    """

    def __init__(self, strategy: Strategy, scan: Whole, present: NDArray[np.bool_] | None, *, seed: int) -> None:
        if strategy not in STRATEGIES:
            raise InputError(f"no strategy is called {strategy!r}; strategies are {', '.join(STRATEGIES)}")
        if present is not None and present.shape != scan.shape:
            raise InputError(f"presence is known of {len(present)} slices, and there are {len(scan)}")
        if strategy != "scan" and present is None:
            raise InputError(
                f"the strategy {strategy} needs to know in which slices the target is: "
                "from labels or a table of slice ranges; the strategy scan needs neither"
            )
        self.strategy: Strategy = strategy
        self._groups = _group(strategy, scan, present)
        self.anchors = self._groups.anchors
        if not len(self.anchors):
            raise InputError(_refusal(strategy, scan, present))
        self._key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]

    def draw(self, items: Whole) -> NDArray[np.int64]:
        """The triplets of these numbers: slice indices (anchor, positive, negative), int64 `[len(items), 3]`."""
        groups = self._groups
        anchor = self.anchors[self._below(items, 0, np.int64(len(self.anchors)))]
        group, own = groups.of[anchor], groups.place[anchor]
        first, end = groups.block[group].T
        positive = first + self._below(items, 1, end - first - 1)
        positive += positive >= own
        low, high = groups.others[group].T
        hole, hole_end = groups.hole[group].T
        negative = low + self._below(items, 2, (high - low) - (hole_end - hole))
        negative += (hole_end - hole) * (negative >= hole)
        return np.stack([anchor, groups.order[positive], groups.order[negative]], axis=1)

    def _below(self, items: Whole, draw: int, bound: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
        """Uniform whole numbers from 0 to below `bound`, one an item: SplitMix64 at the position (item, draw).

        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
        """
        z = self._key + (np.asarray(items).astype(np.uint64) * np.uint64(3) + np.uint64(draw + 1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * bound).astype(np.int64)


def serving(scan: Whole, present: NDArray[np.bool_] | None) -> list[Strategy]:
    """The strategies that these slices can serve."""
    known: tuple[Strategy, ...] = ("scan",) if present is None else STRATEGIES
    return [strategy for strategy in known if len(_group(strategy, scan, present).anchors)]


@dataclass(frozen=True)
class _Groups:
    """Slices in an order in which what may be drawn is contiguous, so that a draw costs the same for any number.

    A positive is drawn from the anchor's own group. A negative is drawn from a range of the order less a hole in it.

    Attributes:
        order: `[N]`, slices.
        place: `[N]`, where each slice is in `order`.
        of: `[N]`, the group of each slice.
        block, others, hole: `[groups, 2]`, first and end in `order` of each group, of the range of its negatives, and
            of what is left out of that range.
    """

    order: NDArray[np.int64]
    place: NDArray[np.int64]
    of: NDArray[np.int64]
    block: NDArray[np.int64]
    others: NDArray[np.int64]
    hole: NDArray[np.int64]

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Slices whose group has another, and of whose negatives there is one."""
        sizes = self.block[:, 1] - self.block[:, 0]
        negatives = (self.others[:, 1] - self.others[:, 0]) - (self.hole[:, 1] - self.hole[:, 0])
        return np.flatnonzero(((sizes > 1) & (negatives > 0))[self.of])


def _group(strategy: Strategy, scan: Whole, present: NDArray[np.bool_] | None) -> _Groups:
    values, inverse = np.unique(scan, return_inverse=True)
    number, scans = inverse.astype(np.int64), len(values)
    has = np.zeros(len(scan), np.int64) if present is None else present.astype(np.int64)
    # mixed: all groups of slices without the organ by scan, then all of those with it
    of, count = {"scan": (number, scans), "organ": (has, 2), "mixed": (has * scans + number, 2 * scans)}[strategy]
    order = np.argsort(of, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    edges = np.searchsorted(of[order], np.arange(count + 1))
    block = np.stack([edges[:-1], edges[1:]], axis=1)
    if strategy != "mixed":  # negatives: all that is not of the group
        others = np.broadcast_to(np.array([0, len(order)]), block.shape)
        return _Groups(order, place, of, block, others, block)
    middle = edges[scans]
    others = np.repeat(np.array([[middle, len(order)], [0, middle]]), scans, axis=0)
    return _Groups(order, place, of, block, others, np.roll(block, scans, axis=0))


def _refusal(strategy: Strategy, scan: Whole, present: NDArray[np.bool_] | None) -> str:
    serve = serving(scan, present)
    if serve:
        advice = f"{' or '.join(serve)} would serve"
    else:
        advice = "no strategy would serve: give more scans, or slices both with and without the target"
    return f"the strategy {strategy} cannot draw from these slices: {_reason(strategy, scan, present)}; {advice}"


def _reason(strategy: Strategy, scan: Whole, present: NDArray[np.bool_] | None) -> str:
    one_scan = len(np.unique(scan)) == 1
    shown = set() if present is None or strategy == "scan" else set(present.tolist())
    reasons = [
        (not len(scan), "there are none"),
        (one_scan and strategy != "organ", "they are of one scan, and a negative is of another scan"),
        (shown == {False}, "the target is in none of them"),
        (shown == {True}, "the target is in all of them"),
        (strategy == "scan", "each is the only one of its scan, and a positive is another of the same scan"),
        (strategy == "organ", "there is one with the target and one without, and a positive is another of its kind"),
    ]
    otherwise = (
        "no scan has two of one kind (with the target, or without) while another scan has one of the other kind: "
        "a positive is of the anchor's scan, a negative of another"
    )
    return next((reason for applies, reason in reasons if applies), otherwise)
