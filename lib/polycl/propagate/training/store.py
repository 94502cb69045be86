"""Scans with the objects to follow in them, prepared once, as memory-mapped files: a clip costs its own voxels only.

A store is a folder. A scan is three files named by the hash of what made them: voxels, ids of objects in layers, and
the table of objects, which is written last. What is missing is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polycl.checkpoints import Typed
from polycl.contrast.contents import content_hash
from polycl.dataset import Case
from polycl.errors import InputError
from polycl.files import replacing, write_atomically
from polycl.propagate.training.structures import StructureRules, structures
from polycl.slices import body_box
from polycl.volume import Volume

FORMAT = 1
"""To be raised whenever the same scan would give other files."""
Kind = Literal["label", "lesion", "threshold", "region", "merged"]
OPEN_FILES = 256
FIRST_PHANTOM = 1000
"""Seeds of phantoms for training start here, so that no test or demonstration shows one of them."""
DEFAULT_RULES = StructureRules()
ENCLOSED = 0.75
"""A part whose neighbours are of one other label to this share belongs to that label, as a lesion does to the liver."""


class Layer(Typed):
    """One volume of ids in which objects do not overlap."""

    name: str
    kind: Kind


class Scan(Typed):
    """A prepared scan: voxel axes are Z, X, Y of canonical axes, the air around the body cut away.

    Attributes:
        group: the data set that it belongs to.
        spacing: mm along Z, X, Y.
        objects: layer, id, and the half-open box z0, z1, x0, x1, y0, y1 of each.
    """

    name: str
    group: str
    key: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    layers: tuple[Layer, ...]
    objects: tuple[tuple[int, int, int, int, int, int, int, int], ...]

    def hu(self, folder: Path) -> NDArray[np.int16]:
        """Hounsfield units `[Z, X, Y]`, mapped."""
        return _mapped(str(folder / f"{self.key}.hu.npy"))

    def ids(self, folder: Path) -> NDArray[np.uint16]:
        """Ids `[layers, Z, X, Y]`, mapped."""
        return _mapped(str(folder / f"{self.key}.ids.npy"))


@dataclass(frozen=True)
class ObjectStore:
    """The scans of a folder that a training run draws from."""

    folder: Path
    scans: tuple[Scan, ...]

    @classmethod
    def build(
        cls,
        cases: Sequence[Case],
        folder: Path,
        rules: StructureRules = DEFAULT_RULES,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> ObjectStore:
        """The store of these cases; scans that are there already are not made again. InputError for an unusable one."""
        scans = []
        for number, case in enumerate(cases, start=1):
            scans.append(_prepared(case, folder, rules))
            progress(number, len(cases))
        return cls(folder, tuple(scans))

    def with_phantoms(self, count: int, rules: StructureRules = DEFAULT_RULES) -> ObjectStore:
        """This store and `count` generated patients: organs that the labels of the real scans may lack."""
        return ObjectStore(self.folder, self.scans + tuple(_phantom(n, self.folder, rules) for n in range(count)))

    def kinds(self) -> dict[Kind, list[tuple[int, list[list[int]]]]]:
        """Of each kind the scans that have it, with the numbers of their objects by layer."""
        found: dict[Kind, list[tuple[int, list[list[int]]]]] = {}
        for index, scan in enumerate(self.scans):
            layers: dict[int, list[int]] = {}
            for number, row in enumerate(scan.objects):
                layers.setdefault(row[0], []).append(number)
            kinds: dict[Kind, list[list[int]]] = {}
            for layer, numbers in layers.items():
                kinds.setdefault(scan.layers[layer].kind, []).append(numbers)
            for kind, groups in kinds.items():
                found.setdefault(kind, []).append((index, groups))
        return found


def _prepared(case: Case, folder: Path, rules: StructureRules) -> Scan:
    group = case.image.parent.parent.name
    made_of = [FORMAT, asdict(rules), content_hash(case.image), content_hash(case.label) if case.label else ""]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    described = folder / f"{key}.json"
    if described.is_file():
        found = Scan.model_validate_json(described.read_bytes())
        return found.model_copy(update={"name": case.name, "group": group})
    image, label = case.read()
    return prepare(Named(case.name, group, key), image, label, folder, rules)


def _phantom(number: int, folder: Path, rules: StructureRules) -> Scan:
    seed = FIRST_PHANTOM + number
    key = hashlib.sha256(json.dumps([FORMAT, asdict(rules), "phantom", seed]).encode()).hexdigest()[:32]
    described = folder / f"{key}.json"
    if described.is_file():
        return Scan.model_validate_json(described.read_bytes())
    from polycl.phantom import make_phantom

    spacing = (1.5, 1.5, (2.0, 3.0, 4.0, 5.0)[number % 4])
    phantom = make_phantom(seed, shape=(256, 256, round(240 / spacing[2])), spacing=spacing)
    named = Named(f"phantom_{seed}", "phantom", key)
    return prepare(named, phantom.image.canonical(), phantom.labels.canonical(), folder, rules)


class Named(NamedTuple):
    """What a scan is called, the data set it belongs to, and the name of its files."""

    name: str
    group: str
    key: str


def prepare(named: Named, image: Volume, label: Volume | None, folder: Path, rules: StructureRules) -> Scan:
    """Find the objects of a canonical CT and write its files. InputError if the folder cannot be written."""
    x0, x1, y0, y1 = body_box(image)
    hu = np.clip(image.voxels[x0:x1, y0:y1], -1024, 3071).astype(np.int16)
    spacing = image.spacing
    layers: list[tuple[Layer, NDArray[np.uint16]]] = []
    if label is not None:
        layers += _labels(np.asarray(label.voxels[x0:x1, y0:y1]).astype(np.uint16), spacing)
    for title, ids in structures(hu, spacing, rules):
        kind: Kind = "threshold" if title.startswith(("above", "below")) else _first_word(title)
        layers.append((Layer(name=title, kind=kind), ids))
    if not layers:
        raise InputError(f"{named.name} holds nothing to follow")
    stacked = np.stack([np.moveaxis(ids, 2, 0) for _, ids in layers])
    scan = Scan(
        **named._asdict(),
        shape=(hu.shape[2], hu.shape[0], hu.shape[1]),
        spacing=(spacing[2], spacing[0], spacing[1]),
        layers=tuple(layer for layer, _ in layers),
        objects=tuple(_table(stacked)),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, array in (("hu", np.moveaxis(hu, 2, 0)), ("ids", stacked)):
            with replacing(folder / f"{named.key}.{suffix}.npy") as stream:
                np.save(stream, np.ascontiguousarray(array))
    except OSError as error:
        raise InputError(f"cannot write the store {folder}: {error.strerror}") from None
    write_atomically(folder / f"{named.key}.json", scan.model_dump_json().encode())
    return scan


def _first_word(title: str) -> Kind:
    return "merged" if title.startswith("merged") else "region"


def _labels(ids: NDArray[np.uint16], spacing: tuple[float, float, float]) -> list[tuple[Layer, NDArray[np.uint16]]]:
    """The labels with what lies inside one of them filled, and what was inside as a layer of its own."""
    filled, inside = ids.copy(), np.zeros_like(ids)
    least = 300.0 / float(np.prod(spacing))  # 0.3 ml
    for value in np.unique(ids)[1:]:
        parts, _ = ndimage.label(ids == value)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            around = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
            part = parts[around] == number
            shell = ndimage.binary_dilation(part) & ~part
            near = np.bincount(ids[around][shell])
            owner = int(near.argmax())
            if owner not in (0, value) and near[owner] >= ENCLOSED * near.sum():
                filled[around][part] = owner
                if part.sum() >= least:
                    inside[around][part] = inside.max() + 1
    layers = [(Layer(name="labels", kind="label"), filled)]
    return layers + ([(Layer(name="inside", kind="lesion"), inside)] if inside.any() else [])


def _table(stacked: NDArray[np.uint16]) -> list[tuple[int, int, int, int, int, int, int, int]]:
    rows = []
    for number, ids in enumerate(stacked):
        for value, box in enumerate(ndimage.find_objects(ids.astype(np.int32)), start=1):
            if box is not None and box[0].stop - box[0].start >= 2:
                z, x, y = box
                rows.append((number, value, z.start, z.stop, x.start, x.stop, y.start, y.stop))
    return rows


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError, EOFError):
        raise InputError(
            "a file of the store of objects is gone or damaged; remove the store, it is made anew"
        ) from None
