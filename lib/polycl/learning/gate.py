"""Whether a trained model takes the place of the one that is served: only if it is better, and nowhere much worse."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from polycl.checkpoints import Typed
from polycl.errors import InputError
from polycl.learning.patients import EVERY
from polycl.learning.scores import Cell, Scores, mean_over_groups


class Rule(Typed):
    """What is asked of a new model; figures are Dice."""

    margin: float = Field(default=0.005, ge=0, description="gain of the mean over patients, at least")
    patients: int = Field(default=3, ge=1, description="validation patients, at least")
    drop: float = Field(default=0.05, ge=0, description="loss of any one patient, at most")


class Decision(Typed):
    """What the gate says, in words for a person, and the two figures that it compared."""

    publish: bool
    reason: str
    before: float | None = None
    after: float | None = None


Pair = tuple[Cell, float, float]
"""A cell, and its Dice before and after."""


def decide(before: Scores, after: Scores, rule: Rule) -> Decision:
    """Compare two models on the same labels. InputError if they were not scored on the same.

    A structure that is absent counts 1 for the model that finds none of it, where the other finds some.
    """
    pairs = _paired(before, after)
    patients = {cell.patient for cell, _, _ in pairs}
    old = mean_over_groups((cell.patient, was) for cell, was, _ in pairs)
    new = mean_over_groups((cell.patient, now) for cell, _, now in pairs)
    if old is None or new is None:
        kept = f"one of every {EVERY} new patients is kept for that, and {rule.patients} are needed"
        return Decision(publish=False, reason=f"no validation patient to compare by: {kept}")
    figures = f"mean Dice {old:.3f} before, {new:.3f} after, on {_count(len(patients), 'validation patient')}"
    reasons = []
    if len(patients) < rule.patients:
        reasons.append(f"{rule.patients} validation patients are needed")
    if new - old < rule.margin or new <= old:
        reasons.append(f"a gain of {rule.margin:g} is needed")
    reasons += [
        f"{label} falls from {was:.3f} to {now:.3f}"
        for label, was, now in _grouped(pairs, lambda cell: cell.label)
        if was - now > rule.margin
    ]
    worse = sum(was - now > rule.drop for _, was, now in _grouped(pairs, lambda cell: cell.patient))
    if worse:
        reasons.append(f"{_count(worse, 'patient')} falls by more than {rule.drop:g}")
    return Decision(publish=not reasons, reason="; ".join([figures, *reasons]), before=old, after=new)


def _paired(before: Scores, after: Scores) -> list[Pair]:
    old, new = ({(cell.image, cell.label): cell for cell in scores.cells} for scores in (before, after))
    if old.keys() != new.keys():
        raise InputError("the two models were not scored on the same labels")
    pairs = []
    for key, cell in old.items():
        was, now = cell.dice, new[key].dice
        if was is not None or now is not None:
            pairs.append((cell, 1.0 if was is None else was, 1.0 if now is None else now))
    return pairs


def _grouped(pairs: list[Pair], key: Callable[[Cell], str]) -> list[tuple[str, float, float]]:
    """Means before and after of each group."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    return [
        (name, sum(one[1] for one in group) / len(group), sum(one[2] for one in group) / len(group))
        for name, group in groups.items()
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
