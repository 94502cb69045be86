"""What a label-efficiency experiment found: a Markdown table, a plot, and paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from polycl.experiments.exam import mean_scores
from polycl.experiments.label_efficiency import ALL
from polycl.files import write_atomically

FIGURES = {"dice": "Dice", "hd95_mm": "HD95, mm", "surface_dice": "surface Dice (2 mm)"}
BASELINES = {"none": "no pre-training", "simclr": "SimCLR"}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One method at one budget: the figure of each seed, a mean over cases and labels."""

    method: str
    budget: int
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        values = list(self.by_seed.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def told(self, digits: int) -> str:
        """Mean ± standard deviation, and how many seeds; without a deviation for one."""
        if len(self.by_seed) == 1:
            return f"{self.mean:.{digits}f} (1)"
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f} ({len(self.by_seed)})"


def cells(rows: Rows, domain: str, figure: str) -> dict[tuple[str, int], Cell]:
    """The cells of the table by method and budget."""
    by_seed: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for row in rows:
        means = mean_scores(row, domain, figure)
        if means:
            by_seed[row["method"], row["budget"]][row["seed"]] = float(np.mean(list(means.values())))
    return {key: Cell(*key, seeds) for key, seeds in by_seed.items()}


def paired_difference(rows: Rows, domain: str, method: str, baseline: str, budget: int) -> tuple[float, float] | None:
    """Mean Dice of `method` less that of `baseline` over the seeds both have, and Wilcoxon's two-sided p over cases.

    For the test a case's figure is its mean over seeds. None where no seed has both.
    """
    first, second = (_by_case(rows, domain, name, budget) for name in (method, baseline))
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    names = sorted(set.intersection(*(set(table[seed]) for table in (first, second) for seed in seeds)))
    difference: NDArray[np.float64] = np.mean(
        [[first[seed][name] - second[seed][name] for name in names] for seed in seeds], axis=0
    )
    p = float(stats.wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return float(difference.mean()), p


def _by_case(rows: Rows, domain: str, method: str, budget: int) -> dict[int, dict[str, float]]:
    return {
        row["seed"]: mean_scores(row, domain, "dice")
        for row in rows
        if row["method"] == method and row["budget"] == budget
    }


def table(rows: Rows, domain: str, methods: Sequence[str], figure: str) -> str:
    """Methods down, budgets across: mean ± standard deviation over seeds, and their number."""
    found = cells(rows, domain, figure)
    budgets = _budgets(rows)
    lines = ["| method | " + " | ".join(_name(budget) for budget in budgets) + " |", "|---|" + "---|" * len(budgets)]
    digits = 1 if figure == "hd95_mm" else 3
    for method in methods:
        texts = [cell.told(digits) if (cell := found.get((method, budget))) else "" for budget in budgets]
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def differences(rows: Rows, domain: str, methods: Sequence[str], baseline: str) -> str:
    """Mean Dice difference to the baseline and the paired test's p, by method and budget."""
    budgets = _budgets(rows)
    head = f"| method less {baseline} | " + " | ".join(_name(budget) for budget in budgets) + " |"
    lines = [head, "|---|" + "---|" * len(budgets)]
    for method in methods:
        if method == baseline:
            continue
        found = [paired_difference(rows, domain, method, baseline, budget) for budget in budgets]
        lines.append(f"| {method} | " + " | ".join(f"{d[0]:+.3f} (p {d[1]:.2g})" if d else "" for d in found) + " |")
    return "\n".join(lines)


def plot(rows: Rows, domain: str, methods: Sequence[str], path: Path) -> None:
    """Dice against labelled slices, a line a method, bars of one standard deviation over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = cells(rows, domain, "dice")
    figure, axes = plt.subplots(figsize=(8.5, 4.5))
    for shift, method in enumerate(methods):
        points = [found[method, budget] for budget in _budgets(rows) if budget != ALL and (method, budget) in found]
        if points:
            places = [point.budget * 1.01 ** (shift - len(methods) / 2) for point in points]
            means, spreads = [point.mean for point in points], [point.spread for point in points]
            axes.errorbar(places, means, spreads, label=method, marker="o", capsize=2, linewidth=1.4)
        if (whole := found.get((method, ALL))) is not None:
            axes.axhline(whole.mean, linestyle=":", color="grey", linewidth=1)
    axes.set(xscale="log", xlabel="labelled slices", ylabel=f"Dice, mean over labels and patients ({domain})")
    ticks = [budget for budget in _budgets(rows) if budget != ALL]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def _budgets(rows: Rows) -> list[int]:
    return sorted({row["budget"] for row in rows}, key=lambda budget: (budget == ALL, budget))


def _name(budget: int) -> str:
    return "all slices" if budget == ALL else f"{budget} slices"
