"""The refinement task: a label that is stored, or sent with the request, refined by SAM.

3D Slicer offers it under Scribbles, because that panel sends a mask. What is painted there as foreground counts as part
of the label, what is painted as background does not.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from polycl.errors import InputError, NotFoundError
from polycl.monailabel.infer import Runtime, middle_slice, organ_volumes
from polycl.monailabel.request import ImageRequest, refine_parameters, wanted_engine
from polycl.refinement import refine
from polycl.volume import Volume, read_volume

NAME = "refine"
STORED, STORED_INFO = "polycl_stored_label", "polycl_stored_info"
"""Keys that the app, never a client, adds to the request: path and info of the label in the store."""
PAINTED, ERASED = "foreground_scribbles", "background_scribbles"
"""What 3D Slicer calls the segments of its Scribbles panel."""


class RefineTask(InferTask):  # type: ignore[misc, unused-ignore]
    """Refines any label: `label_tag` names one of the store; a file in the field `label` goes before it."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(
            type=InferType.SCRIBBLES,
            labels=[],
            dimension=3,
            description="refines the outline of a label slice by slice",
        )
        self._runtime = runtime

    def is_valid(self) -> bool:
        """Whether it can be offered; the app registers it only where there are weights."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Refine the label of `request`. Returns the label file in the image's own voxel order, and the reply's params.

        With `selected_label_name` (Slicer) the result is 0 and 1 of that label; else all labels as they came, those
        named by `labels` (all by default) refined.
        """
        started = time.perf_counter()
        wanted = ImageRequest.read(request)
        how = refine_parameters(request)
        engine = self._runtime.engines.named(wanted_engine(request))
        path, info = sent_or_stored(request, "refine")
        image = self._runtime.images.get(wanted.image, wanted.allow_any_values)
        coarse = read_volume(path, kind="label", max_voxels=self._runtime.settings.max_voxels)
        image.require_same_grid(coarse, "the label")
        names = names_of(info, coarse)
        if selected := request.get("selected_label_name"):
            coarse, names = _only(coarse, str(selected), names), {str(selected): 1}
        ids = _ids(request, names)
        if not np.isin(coarse.voxels, ids).any():
            raise InputError("the label is empty: there is nothing to refine")
        read = time.perf_counter()
        engines = self._runtime.engines
        result, report = refine(
            image,
            coarse,
            engine,
            engines.cache,
            how,
            self._runtime.progress,
            labels=ids,
            follower=engines.follower(how),
        )
        file = self._runtime.write(result, wanted.extension, wanted.compress)
        self._runtime.ahead.opened(wanted.image, middle_slice(result))
        return file, {
            "label_names": names,
            "volumes_ml": organ_volumes(result, names),
            "model": {"name": engine.name, "sha256": engine.sha256},
            "refined": True,
            "refinement": report.as_dict(),
            "seconds": {"read": round(read - started, 3), "total": round(time.perf_counter() - started, 3)},
        }


def stored_label(request: Mapping[str, Any], store: Datastore) -> dict[str, Any]:
    """What the app adds to a request for this task: the label of the image in the store, empty if there is none.

    By `label_tag`, else the final one, else the original. NotFoundError for a tag that the image has no label under.
    """
    image, asked = str(request.get("image") or ""), request.get("label_tag")
    tags = [asked] if asked else [DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value]
    known = {getattr(tag, "value", tag) for tag in store.get_labels_by_image_id(image)}
    for tag in tags:
        if tag in known:
            return {STORED: str(store.get_label_uri(image, tag)), STORED_INFO: store.get_label_info(image, tag)}
    if asked and image:
        raise NotFoundError(f"this image has no label {asked!r}; it has {', '.join(sorted(known)) or 'none'}")
    return {STORED: "", STORED_INFO: {}}


def sent_or_stored(request: Mapping[str, Any], what: str) -> tuple[Path, Mapping[str, Any]]:
    """The label's file and what is known of its values. NotFoundError if there is none to do `what` with."""
    sent = request.get("label")
    # MONAI Label keeps what it was sent in the folder for temporary files; a client may also write any text here.
    if isinstance(sent, str) and Path(sent).parent == Path(tempfile.gettempdir()) and Path(sent).is_file():
        return Path(sent), request
    stored = request.get(STORED)
    if not stored or not Path(stored).is_file():
        raise NotFoundError(f"there is no label to {what}: send one in the file field label, or save one to the store")
    return Path(stored), request.get(STORED_INFO) or {}


def names_of(info: Mapping[str, Any], coarse: Volume) -> dict[str, int]:
    """Names of the values: the v-th of `label_info` is v, whatever ids it holds, as MONAI Label's clients have it."""
    listed = info.get("label_info")
    if isinstance(listed, list) and listed:
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in listed):
            raise InputError("label_info must be a list of objects with a name")
        return {entry["name"]: value for value, entry in enumerate(listed, start=1)}
    params = info.get("params")
    replied = params.get("label_names") if isinstance(params, dict) else None
    if isinstance(replied, dict) and all(isinstance(value, int) for value in replied.values()):
        return dict(replied)
    return {str(value): value for value in range(1, int(coarse.voxels.max()) + 1)}


def _only(coarse: Volume, selected: str, names: Mapping[str, int]) -> Volume:
    """0 and 1: the selected label and what was painted as foreground."""
    require_names([selected], names)
    kept = [names[selected], *([names[PAINTED]] if PAINTED in names else [])]
    return coarse.with_voxels(np.isin(coarse.voxels, kept).astype(np.uint8))


def _ids(request: Mapping[str, Any], names: Mapping[str, int]) -> list[int]:
    wanted = request.get("labels") or list(names)
    if isinstance(wanted, str):
        wanted = [wanted]
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InputError("labels must be a list of label names")
    require_names(wanted, names)
    return [names[name] for name in wanted]


def require_names(wanted: list[str], names: Mapping[str, int]) -> None:
    """NotFoundError unless all of `wanted` are in `names`, which it lists."""
    if unknown := [name for name in wanted if name not in names]:
        raise NotFoundError(f"no label {', '.join(map(repr, unknown))}; they are {', '.join(names)}")
