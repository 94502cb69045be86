"""From the values a client sent to names, and from names to the values that are stored.

MONAI Label's clients number what they send by position: value v is the v-th entry of `label_info`, whatever that entry
says of itself (`idx`, `id`), and entries of empty segments count too. What is stored has the values of the models here,
one table for all of them; a name that no model has gets a value after those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError

SCRATCH = frozenset({"background", "foreground_scribbles", "background_scribbles"})
"""Segments that 3D Slicer's plugin keeps for itself; they are no label."""
COMPLETE = "complete"
"""An empty segment of this name marks a label as complete: 3D Slicer's panel has no button for it."""
MAX_VALUE = 255
MAX_NAME = 200


@dataclass(frozen=True)
class Naming:
    """How one label's values are stored, and what there is to tell about it.

    `labels`: name to stored value, in the order sent. `table`: stored value by sent value, uint8 [256]. `unknown`:
    names that no model has. `complete`: names marked so. `notes`: a line each for whoever saved it.
    """

    labels: dict[str, int]
    table: NDArray[np.uint8]
    unknown: tuple[str, ...]
    complete: tuple[str, ...]
    notes: tuple[str, ...]


def vocabulary(models: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """One table of name to value for all models: the first keeps its own, later ones add their new names at the end.

    >>> vocabulary([{"liver": 1, "spleen": 2}, {"spleen": 1, "aorta": 2}])
    {'liver': 1, 'spleen': 2, 'aorta': 3}
    """
    table: dict[str, int] = {}
    for labels in models:
        for name, value in sorted(labels.items(), key=lambda item: item[1]):
            if name not in table:
                table[name] = value if value not in table.values() else max(table.values()) + 1
    return table


def sent_names(info: Mapping[str, object]) -> dict[int, str]:
    """Value to name as the params of a request say it: `label_info` by position, else `label_names` of a reply.

    Empty where they say nothing. InputError for a `label_info` that is no list of objects with a name.
    """
    listed = info.get("label_info")
    if listed is not None and listed != []:
        if not isinstance(listed, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in listed
        ):
            raise InputError("label_info must be a list of objects with a name, one for each label value in order")
        return {value: entry["name"] for value, entry in enumerate(listed, start=1)}
    params = info.get("params")
    replied = params.get("label_names") if isinstance(params, dict) else None
    if isinstance(replied, dict) and all(type(value) is int for value in replied.values()):
        return {value: str(name) for name, value in replied.items()}
    return {}


def name_labels(
    sent: Mapping[int, str], present: Collection[int], known: Mapping[str, int], complete: object = None
) -> Naming:
    """How values `present` in a label are stored, where `sent` names them and `known` is the table of the models.

    Where `sent` is empty the values are the models' own. A value without a name becomes `label_<value>`. A name is
    matched to a model's without regard to case and blanks. Values of one name become one. `complete` is what the params
    say: true for all names sent, or a list of names, sent or not. InputError for any other `complete`, where more than
    255 values would be needed, and for voxels in the segment that only marks.
    """
    occurring = set(present) - {0}
    named = dict(sent) if sent else {value: name for name, value in known.items() if value in occurring}
    unnamed = sorted(occurring - named.keys())
    named |= {value: f"label_{value}" for value in unnamed}
    table = _Table(known)
    marked = complete is True
    for value, given in named.items():
        name = _clean(given, value)
        if _fold(name) == COMPLETE and COMPLETE not in known:
            if value in occurring:
                raise InputError(f"the segment {COMPLETE!r} marks the label as complete and must be empty")
            marked = True
        elif name not in SCRATCH or name in known:
            table.add(value, name)
    names = dict.fromkeys(table.labels if marked else ())
    names |= dict.fromkeys(table.also(name) for name in _listed_complete(complete))
    unknown = tuple(name for name in table.labels if name not in known)
    notes = [f"value {value} has no name; it is kept as {named[value]!r}" for value in unnamed]
    notes += table.notes
    notes += [f"no model here knows {name!r}; it is kept under this name" for name in unknown]
    return Naming(table.labels, table.values, unknown, tuple(names), tuple(notes))


class _Table:
    """Names with their stored values, filled one sent value at a time."""

    def __init__(self, known: Mapping[str, int]) -> None:
        self.labels: dict[str, int] = {}
        self.values = np.zeros(MAX_VALUE + 1, np.uint8)
        self.notes: list[str] = []
        self._known = known
        self._folded = {_fold(name): name for name in sorted(known, reverse=True)}

    def add(self, value: int, given: str) -> None:
        """The next sent value and its name."""
        name = self._resolved(given)
        if name != given:
            self.notes.append(f"{given!r} is taken for {name!r}")
        if name in self.labels:
            self.notes.append(f"{name!r} was sent more than once; its segments are one label now")
        self._enter(name)
        if 0 < value <= MAX_VALUE:  # no voxel can have the value of an empty segment far down a long list
            self.values[value] = self.labels[name]

    def also(self, given: str) -> str:
        """A name that needs no value sent; returns it as it is kept."""
        name = self._resolved(given)
        self._enter(name)
        return name

    def _resolved(self, name: str) -> str:
        return name if name in self._known else self._folded.get(_fold(name), name)

    def _enter(self, name: str) -> None:
        if name in self.labels:
            return
        value = self._known.get(name) or max([0, *self._known.values(), *self.labels.values()]) + 1
        if value > MAX_VALUE:
            raise InputError(f"there are too many labels: {MAX_VALUE} values are all that a label file can hold")
        self.labels[name] = value


def listed(labels: Mapping[str, int], known: Mapping[str, int]) -> list[dict[str, object]]:
    """`label_info` in which the v-th entry names stored value v, up to the highest: what clients read back.

    >>> listed({"spleen": 2}, {"liver": 1, "spleen": 2})
    [{'name': 'liver', 'idx': 1}, {'name': 'spleen', 'idx': 2}]
    """
    names = {value: name for name, value in known.items()} | {value: name for name, value in labels.items()}
    return [
        {"name": names.get(value, f"label_{value}"), "idx": value}
        for value in range(1, max(labels.values(), default=0) + 1)
    ]


def _listed_complete(value: object) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value):
        return [_clean(name, 0) for name in value]
    raise InputError("complete must be true, false or a list of the names of complete labels")


def _clean(name: str, value: int) -> str:
    text = " ".join(name.split())
    if len(text) > MAX_NAME:
        raise InputError(f"the name of label {value} is too long: {MAX_NAME} characters are allowed")
    return text or f"label_{value}"


def _fold(name: str) -> str:
    return name.replace("_", " ").casefold()
