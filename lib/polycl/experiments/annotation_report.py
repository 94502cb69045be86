"""What played annotators found: how many slices, and minutes, each strategy needs to come near the full labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polycl.experiments.annotation import ALL
from polycl.experiments.exam import mean_scores
from polycl.files import write_atomically

SHARE = 0.95
"""Of the Dice with all labels: what is to be reached."""
BASELINE = "random"
Rows = Sequence[Mapping[str, Any]]
Axis = Literal["slices", "minutes"]


@dataclass(frozen=True)
class Point:
    """After one round: what it took so far, and the mean Dice over cases and labels."""

    slices: int
    minutes: float
    dice: float


Curves = dict[str, dict[int, list[Point]]]
"""By strategy and seed, in the order of rounds."""


def curves(rows: Rows, domain: str) -> Curves:
    """The curves of all strategies but `ALL`, of those seeds that have the most rounds: others are under way."""
    found: defaultdict[str, defaultdict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda one: int(one["round"])):
        if row["strategy"] != ALL:
            point = Point(row["slices"], row["minutes"], _dice(row, domain))
            found[row["strategy"]][row["seed"]].append(point)
    most = {strategy: max(map(len, seeds.values())) for strategy, seeds in found.items()}
    return {
        strategy: {seed: points for seed, points in seeds.items() if len(points) == most[strategy]}
        for strategy, seeds in found.items()
    }


def full(rows: Rows, domain: str) -> float | None:
    """Dice with all labels, the mean over seeds, of the longest training there is; None if there is none."""
    trained = [row for row in rows if row["strategy"] == ALL]
    longest = max((row["round"] for row in trained), default=0)
    values = [_dice(row, domain) for row in trained if row["round"] == longest]
    return float(np.mean(values)) if values else None


def needed(points: Sequence[Point], level: float, axis: Axis) -> float | None:
    """Where a curve first reaches `level`, by straight lines between rounds; None if it does not."""
    if points and points[0].dice >= level:
        return float(getattr(points[0], axis))
    for before, after in pairwise(points):
        if after.dice >= level:
            share = (level - before.dice) / (after.dice - before.dice)
            low, high = (float(getattr(point, axis)) for point in (before, after))
            return low + share * (high - low)
    return None


def saving(curves: Curves, strategy: str, level: float, axis: Axis) -> tuple[float, int] | None:
    """Share of the slices or minutes of `BASELINE` saved, the mean over seeds in which both reach `level`, and those.

    None if there is no such seed.
    """
    shares = []
    for seed in curves.get(strategy, {}).keys() & curves.get(BASELINE, {}).keys():
        mine, others = (needed(curves[name][seed], level, axis) for name in (strategy, BASELINE))
        if mine is not None and others:
            shares.append(1 - mine / others)
    return (float(np.mean(shares)), len(shares)) if shares else None


def table(rows: Rows, domain: str) -> str:
    """A line a strategy: what it needs to `SHARE` of the full labels' Dice, and what that saves."""
    found, whole = curves(rows, domain), full(rows, domain)
    lines = [
        f"| strategy | seeds | slices to {SHARE:.0%} | minutes to {SHARE:.0%} | slices saved | minutes saved "
        "| Dice at the end | after slices |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for strategy, seeds in found.items():
        cells = [strategy, str(len(seeds))]
        cells += ["" if whole is None else _reached(seeds, SHARE * whole, axis) for axis in ("slices", "minutes")]
        for axis in ("slices", "minutes"):
            saved = None if whole is None or strategy == BASELINE else saving(found, strategy, SHARE * whole, axis)
            cells.append("" if saved is None else f"{saved[0]:+.0%} ({saved[1]} seeds)")
        last = [points[-1] for points in seeds.values()]
        cells.append(_spread([point.dice for point in last], 3))
        slices = [point.slices for point in last]
        cells.append(str(slices[0]) if min(slices) == max(slices) else f"{min(slices)} to {max(slices)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: Rows, domain: str) -> str:
    """The full labels' Dice and slices, in a sentence."""
    whole = full(rows, domain)
    if whole is None:
        return "There is no run with all labels yet."
    longest = max((row for row in rows if row["strategy"] == ALL), key=lambda row: int(row["round"]))
    return (
        f"With all {longest['slices']} slices labelled, and the training steps of {longest['round'] + 1} rounds, "
        f"Dice is {whole:.3f}; {SHARE:.0%} of that is {SHARE * whole:.3f}."
    )


def plot(rows: Rows, domain: str, path: Path) -> None:
    """Dice against annotated slices and against minutes: a line a strategy, a band of one standard deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found, whole = curves(rows, domain), full(rows, domain)
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for panel, axis in zip(panels, ("slices", "minutes"), strict=True):
        for strategy, seeds in found.items():
            places = np.mean([[getattr(one, axis) for one in points] for points in seeds.values()], axis=0)
            values = np.array([[one.dice for one in points] for points in seeds.values()])
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
            (line,) = panel.plot(places, mean, marker="o", markersize=3, linewidth=1.4, label=strategy)
            panel.fill_between(places, mean - spread, mean + spread, color=line.get_color(), alpha=0.12, linewidth=0)
        if whole is not None:
            panel.axhline(whole, color="grey", linewidth=1, label="all labels")
            panel.axhline(SHARE * whole, color="grey", linewidth=1, linestyle=":", label=f"{SHARE:.0%} of that")
        panel.set(xlabel={"slices": "annotated slices", "minutes": "minutes, by the cost model"}[axis])
    panels[0].set(ylabel=f"Dice, mean over labels and patients ({domain})")
    panels[0].legend(frameon=False, fontsize="small")
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def _dice(row: Mapping[str, Any], domain: str) -> float:
    return float(np.mean(list(mean_scores(row, domain, "dice").values()) or [0.0]))


def _reached(seeds: Mapping[int, Sequence[Point]], level: float, axis: Axis) -> str:
    values = [value for points in seeds.values() if (value := needed(points, level, axis)) is not None]
    if not values:
        return "not reached"
    some = "" if len(values) == len(seeds) else f" ({len(values)} of {len(seeds)} seeds)"
    return _spread(values, 0) + some


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"
