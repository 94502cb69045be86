"""What refinement was worth: the sweep's table, the gain by labelled slices, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from polycl.experiments.refinement import ANOTHER_LOOK, CEILING, PROPOSED, SHIPPED, VARIANTS, WITHIN, Trial
from polycl.files import write_atomically

Rows = Sequence[Mapping[str, Any]]
TOLERATED_LOSS = 0.005
SIGN = {"better": 1, "worse": -1}


@dataclass(frozen=True)
class Change:
    """Figures over several masks, before and after; HD95 over those where both have one."""

    masks: int
    dice: tuple[float, float]
    worst: float
    hd95_mm: tuple[float, float]
    encodings: float

    @classmethod
    def over(cls, rows: Iterable[Mapping[str, Any]]) -> Change | None:
        """The change over `rows`; None where there are none."""
        rows = [row for row in rows if row["before"]["dice"] is not None and row["after"]["dice"] is not None]
        if not rows:
            return None
        before, after = (np.array([row[when]["dice"] for row in rows]) for when in ("before", "after"))
        far = [
            (row["before"]["hd95_mm"], row["after"]["hd95_mm"])
            for row in rows
            if row["before"]["hd95_mm"] is not None and row["after"]["hd95_mm"] is not None
        ]
        distances = np.mean(far, axis=0) if far else np.full(2, np.nan)
        return cls(
            masks=len(rows),
            dice=(float(before.mean()), float(after.mean())),
            worst=float((after - before).min()),
            hd95_mm=(float(distances[0]), float(distances[1])),
            encodings=float(np.mean([row["report"]["encodings"] for row in rows])),
        )

    @property
    def gain(self) -> float:
        return self.dice[1] - self.dice[0]

    @property
    def hd95_change(self) -> float:
        """Share of the mean HD95 that was added; below 0 is better."""
        return self.hd95_mm[1] / self.hd95_mm[0] - 1 if self.hd95_mm[0] else 0.0


def sweep(rows: Rows) -> str:
    """A line a variant, over the validation masks that the variant and the defaults both have."""
    found = [row for row in rows if row["trial"]["part"] == "validation" and row["trial"]["budget"] != SHIPPED]
    usual = {_mask(row) for row in _of(found, PROPOSED)}
    lines = [
        "| variant | masks | Dice, mean change | worst change | HD95 | encodings a mask |",
        "|---|---|---|---|---|---|",
    ]
    for variant in (*VARIANTS, *ANOTHER_LOOK):
        mine = [row for row in _of(found, variant) if _mask(row) in usual]
        if (change := Change.over(mine)) is not None:
            lines.append(
                f"| {variant} | {change.masks} | {change.gain:+.4f} | {change.worst:+.4f} | "
                f"{change.hd95_change:+.1%} | {change.encodings:.0f} |"
            )
    return "\n".join(lines)


def by_budget(rows: Rows, part: str) -> str:
    """A line for each number of labelled slices: before, after, and two limits (see `WITHIN`, `CEILING`)."""
    found = [row for row in rows if row["trial"]["part"] == part]
    lines = [
        "| labelled slices | masks | Dice before | after | worst change | HD95 before, mm | after | change | "
        "reference within reach | SAM alone, boxes of the reference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for budget in sorted({row["trial"]["budget"] for row in found}, key=lambda budget: (budget == SHIPPED, budget)):
        mine = [row for row in found if row["trial"]["budget"] == budget]
        change = Change.over(_of(mine, PROPOSED))
        if change is None:
            continue
        best, alone = (Change.over(_of(mine, limit)) for limit in (WITHIN, CEILING))
        lines.append(
            f"| {_name(budget)} | {change.masks} | {change.dice[0]:.3f} | {change.dice[1]:.3f} | {change.worst:+.4f} | "
            f"{change.hd95_mm[0]:.1f} | {change.hd95_mm[1]:.1f} | {change.hd95_change:+.1%} | "
            f"{_limit(best)} | {_limit(alone)} |"
        )
    return "\n".join(lines)


def worse(rows: Rows) -> str:
    """The masks that lost more Dice than is tolerated with the defaults; a sentence where there are none."""
    lost = [row for row in _of(rows, PROPOSED) if (_gain(row) or 0.0) < -TOLERATED_LOSS]
    count = len(_of(rows, PROPOSED))
    if not lost:
        return f"None of {count} masks loses more than {TOLERATED_LOSS}."
    lines = [f"{len(lost)} of {count} masks lose more than {TOLERATED_LOSS}:\n"]
    for row in sorted(lost, key=lambda row: _gain(row) or 0.0):
        trial = row["trial"]
        lines.append(
            f"- {trial['case']}, {_name(trial['budget'])}, seed {trial['seed']}: "
            f"{row['before']['dice']:.3f} to {row['after']['dice']:.3f}"
        )
    return "\n".join(lines)


def extremes(rows: Rows, data_sets: tuple[str, ...]) -> dict[str, Trial]:
    """The mask with the defaults that gained most ("better") and that lost most ("worse") Dice in cases of these sets.

    `data_sets` are the first letters of their names. One that did not lose is not in the answer.
    """
    mine = [row for row in _of(rows, PROPOSED) if row["trial"]["case"].startswith(data_sets) and _gain(row)]
    if not mine:
        return {}
    ranked = sorted(mine, key=lambda row: _gain(row) or 0.0)
    ends = {"better": ranked[-1], "worse": ranked[0]}
    return {title: Trial(**row["trial"]) for title, row in ends.items() if (_gain(row) or 0.0) * SIGN[title] > 0}


def plot(rows: Rows, path: Path) -> None:
    """Change of Dice and of HD95 by labelled slices, a point a mask, a line through the means."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9, 3.6))
    for part, colour in (("validation", "tab:blue"), ("test", "tab:orange")):
        mine = [row for row in _of(rows, PROPOSED) if row["trial"]["part"] == part and _gain(row) is not None]
        budgets = sorted({row["trial"]["budget"] for row in mine} - {SHIPPED})
        for axes, figure_of in zip(both, (_gain, _closer), strict=True):
            values = {b: [figure_of(row) for row in mine if row["trial"]["budget"] == b] for b in budgets}
            known = {b: [value for value in many if value is not None] for b, many in values.items()}
            for budget, many in known.items():
                axes.scatter([budget] * len(many), many, s=8, alpha=0.4, color=colour)
            axes.plot(list(known), [np.mean(many) for many in known.values()], color=colour, label=part)
            axes.set_xticks(budgets, [str(budget) for budget in budgets])
    for axes, label in zip(both, ("change of Dice", "change of HD95, mm"), strict=True):
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="labelled slices", ylabel=label)
    both[0].legend(frameon=False)
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def _limit(change: Change | None) -> str:
    return f"{change.dice[1]:.3f}, {change.hd95_mm[1]:.1f} mm" if change else ""


def _of(rows: Rows, variant: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["trial"]["variant"] == variant]


def _mask(row: Mapping[str, Any]) -> tuple[str, int, int]:
    trial = row["trial"]
    return trial["case"], trial["budget"], trial["seed"]


def _gain(row: Mapping[str, Any]) -> float | None:
    before, after = row["before"]["dice"], row["after"]["dice"]
    return None if before is None or after is None else after - before


def _closer(row: Mapping[str, Any]) -> float | None:
    before, after = row["before"]["hd95_mm"], row["after"]["hd95_mm"]
    return None if before is None or after is None else after - before


def _name(budget: int) -> str:
    return "the model that ships" if budget == SHIPPED else str(budget)
