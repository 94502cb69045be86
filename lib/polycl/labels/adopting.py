"""Facts about a label file that came without a record: put into the folder by hand, or saved by MONAI Label itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from polycl.errors import InputError
from polycl.labels.facts import facts_of
from polycl.labels.naming import sent_names
from polycl.labels.placing import values_in
from polycl.labels.record import Facts
from polycl.volume import read_volume

INDEX = "datastore_v2.json"


def facts_of_file(label: Path, image: Path, names: Mapping[str, int]) -> Facts:
    """The facts of a label file whose values are not changed: `names` says what they are, others are `label_<value>`.

    InputError if the file is no label, or is not on the grid of the image in the same axis order.
    """
    volume = read_volume(label, kind="label")
    read_volume(image, allow_any_values=True).require_same_grid(volume, "the label")
    by_value = {value: name for name, value in names.items()}
    labels = {by_value.get(value, f"label_{value}"): value for value in values_in(volume.voxels)}
    return facts_of(volume.canonical().voxels, labels, source="file", unknown=())


def facts_of_nothing() -> Facts:
    """For a file that cannot be read, but must not be lost."""
    return Facts(source="file", shape=(0, 0, 0), labels={}, voxels={}, painted={}, known={})


def noted_names(store: Path, image: str, tag: str) -> dict[str, int]:
    """Name to value of a label as MONAI Label's index in the folder `store` notes it; empty if it does not."""
    try:
        index = json.loads((store / INDEX).read_bytes())
        info = index["objects"][image]["labels"][tag]["info"]
        return {name: value for value, name in sent_names(info).items()}
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return {}
