"""What the voxels of a label say: how much of each structure, on which slices, and where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.labels.placing import count_by_slice, ranges_of
from polycl.labels.record import Facts, Known, Ranges


def known_where(
    painted: Mapping[str, Ranges], descends: tuple[str, ...] = (), complete: tuple[str, ...] = ()
) -> dict[str, Known]:
    """Where each label is known: all of it if complete; if painted, all of it where it descends, else where painted.

    >>> known_where({"liver": ((3, 5),), "spleen": ((1, 2),)}, descends=("spleen",), complete=("aorta",))
    {'liver': ((3, 5),), 'spleen': 'all', 'aorta': 'all'}
    """
    known: dict[str, Known] = {
        name: "all" if name in descends else ranges for name, ranges in painted.items() if ranges
    }
    return known | dict.fromkeys(complete, "all")


def facts_of(
    voxels: NDArray[np.uint8],
    labels: Mapping[str, int],
    *,
    descends: tuple[str, ...] = (),
    complete: tuple[str, ...] = (),
    **others: Any,
) -> Facts:
    """The facts of label map `voxels` [I, J, K] in canonical axes; `others` are the fields that voxels do not tell."""
    counts = count_by_slice(voxels)
    painted = {name: ranges for name, value in labels.items() if (ranges := ranges_of(counts[:, value] > 0))}
    i, j, k = voxels.shape
    return Facts(
        shape=(i, j, k),
        labels=dict(labels),
        voxels={name: int(counts[:, value].sum()) for name, value in labels.items()},
        painted=painted,
        descends=tuple(name for name in descends if name in painted),
        complete=complete,
        known=known_where(painted, descends, complete),
        **others,
    )


def marked(facts: Facts, complete: tuple[str, ...]) -> Facts:
    """The same facts with these names, and no others, marked complete."""
    known = known_where(facts.painted, facts.descends, complete)
    return facts.model_copy(update={"complete": complete, "known": known})
