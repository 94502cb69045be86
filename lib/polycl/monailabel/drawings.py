"""What a client painted, or what is stored, and which structure of it is meant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polycl.errors import InputError, PolyclError
from polycl.monailabel.refine import ERASED, PAINTED, STORED, STORED_INFO, names_of, require_names, sent_or_stored
from polycl.propagate.painted import Painted
from polycl.volume import Volume, read_volume

UNNAMED = "object"
MAX_TEXT = 200


@dataclass(frozen=True, eq=False)
class Drawing:
    """A label map, and the structure of it that is meant; `value` is None where that has scribbles alone."""

    labels: Volume
    names: Mapping[str, int]
    name: str
    value: int | None

    def painted(self) -> Painted:
        """The structure in canonical axes, with 3D Slicer's scribbles."""
        voxels = self.labels.canonical().voxels
        mask: NDArray[np.bool_] = voxels == self.value if self.value else np.zeros(voxels.shape, dtype=bool)
        covered = (voxels != 0) & ~mask
        scribbled = [voxels == self.names[name] if name in self.names else None for name in (PAINTED, ERASED)]
        for part in scribbled:
            if part is not None:
                covered &= ~part
        return Painted(mask, covered, *scribbled)


def read_drawing(request: Mapping[str, Any], max_voxels: int) -> Drawing:
    """The label that was sent with the request, else the stored one.

    Raises NotFoundError if there is none, or not of the name asked for; InputError if nothing of it is painted, or if
    it has several structures and the request names none.
    """
    path, info = sent_or_stored(request, "propagate")
    wanted = _selected(request)
    labels = read_volume(path, kind="label", max_voxels=max_voxels)
    names = names_of(info, labels)
    present = [name for name, value in names.items() if (labels.voxels == value).any()]
    structures = [name for name in present if name not in (PAINTED, ERASED)]
    scribbled = PAINTED in present
    if wanted and wanted not in names and len(structures) == 1 and structures[0].isdigit():
        return Drawing(labels, names, wanted, names[structures[0]])  # a map of one structure, which has no name in it
    if wanted:
        require_names([wanted], names)
        if wanted not in present and not scribbled:
            raise InputError(f"nothing of {wanted} is painted: outline it on at least one slice")
        return Drawing(labels, names, wanted, names[wanted])
    if len(structures) > 1:
        raise InputError(
            f"{len(structures)} structures are painted: name one of {', '.join(structures)} as selected_label_name"
        )
    if not structures and not scribbled:
        raise InputError("the label is empty: outline the object on at least one slice")
    if not structures:
        return Drawing(labels, names, UNNAMED, None)
    name = UNNAMED if structures[0].isdigit() else structures[0]
    return Drawing(labels, names, name, names[structures[0]])


def saved_whole(request: Mapping[str, Any], name: str, image: Volume, max_voxels: int) -> list[NDArray[np.bool_]]:
    """The structure in the stored label, canonical, if that tells of all slices: a viewer may have loaded it."""
    info = request.get(STORED_INFO) or {}
    record = info.get("record") or {}
    if record.get("known", {}).get(name) != "all" or name not in record.get("labels", {}):
        return []
    try:
        labels = read_volume(request[STORED], kind="label", max_voxels=max_voxels)
        image.require_same_grid(labels, "the stored label")
    except PolyclError:
        return []
    return [labels.canonical().voxels == record["labels"][name]]


def _selected(request: Mapping[str, Any]) -> str:
    """The structure that the request names, or "". With a file, MONAI Label puts the path of that into `label`."""
    for key in ("selected_label_name", "label"):
        value = request.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{key} must be the name of what is painted")
        if value and "/" not in value:
            if len(value) > MAX_TEXT:
                raise InputError(f"{key} is too long: {MAX_TEXT} characters are allowed")
            return value
    return ""
