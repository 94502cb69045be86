"""Saving a label: read, named, put on its image's grid, described, and written as a new version."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from polycl.dataset import SUFFIXES
from polycl.errors import InputError
from polycl.labels.facts import facts_of
from polycl.labels.library import FINAL, Library
from polycl.labels.naming import name_labels, sent_names
from polycl.labels.placing import place, values_in
from polycl.labels.record import LabelRecord, ModelVersion
from polycl.labels.replies import Reply, descent
from polycl.volume import MAX_VOXELS, Volume, read_segments, read_volume, write_volume

SEGMENTATION = ".seg.nrrd"
"""3D Slicer's segmentations: they name their segments, which may overlap, and may be cropped to what is painted."""
SEGMENTED = (SEGMENTATION, ".nrrd")
LABEL_SUFFIXES = (SEGMENTATION, *SUFFIXES)
LONGEST_SITTING = timedelta(hours=12)
EMPTY = (
    "the label is empty: nothing is painted in any segment; if there is nothing to paint in this image, say so by "
    'params {"complete": true}, or in 3D Slicer by an empty segment named "complete"'
)


@dataclass(frozen=True)
class Sent:
    """A label file as a client sent it, and its params. `source` is "model" where no person has seen it.

    `box`: it is a segmentation of 3D Slicer's, which may be cropped to what is painted.
    """

    path: Path
    suffix: str
    label: Volume
    names: Mapping[int, str]
    info: Mapping[str, Any]
    annotator: str = ""
    source: Literal["client", "model"] = "client"
    box: bool = False

    @classmethod
    def read(cls, path: Path, info: Mapping[str, Any], max_voxels: int = MAX_VOXELS, **others: Any) -> Sent:
        """The label in the file `path`. InputError if it is none, or if the params do not describe one."""
        suffix = next((suffix for suffix in LABEL_SUFFIXES if path.name.lower().endswith(suffix)), None)
        if suffix is None:
            raise InputError(f"labels must be named {', '.join('*' + suffix for suffix in LABEL_SUFFIXES)}")
        label = read_volume(path, kind="label", max_voxels=max_voxels)
        segments = {value: name for name, value in read_segments(path).items()} if suffix in SEGMENTED else {}
        # MONAI Label Reviewer saves segmentations as .nrrd, whose segments have lost their names: the params have them.
        names = segments or sent_names(info) if suffix == SEGMENTATION else sent_names(info) or segments
        return cls(path, suffix, label, names, info, **others, box=bool(segments) or suffix == SEGMENTATION)


@dataclass(frozen=True)
class Saved:
    """What was saved, and what there is to tell about it, a line each."""

    record: LabelRecord
    notes: tuple[str, ...]


def save(
    library: Library,
    image_id: str,
    tag: str,
    sent: Sent,
    image: Volume,
    *,
    replies: Sequence[Reply] = (),
    opened: Sequence[datetime] = (),
) -> Saved:
    """Save what was `sent` as the label of `image`, whose id is `image_id`, under `tag`.

    `replies` are the whole-volume replies for the image, `opened` the times when the annotator got to work on it.
    InputError for a label on another grid, for params that make no sense, and for one that is empty and not marked
    complete: it says nothing, and most likely a save by mistake. StorageError where it cannot be written.
    """
    present = values_in(sent.label.voxels)
    # Clients read a model's label by the names in its reply, so that its values stay.
    known = library.known if sent.source == "client" else {name: value for value, name in sent.names.items()}
    naming = name_labels(sent.names, present, known, sent.info.get("complete"))
    stored = naming.table[place(sent.label, image, box=sent.box)]
    if sent.source == "client" and not naming.complete and not stored.any():
        raise InputError(EMPTY)
    label = image.with_voxels(stored)
    canonical = label.canonical().voxels
    descends, model = descent(replies, canonical, naming.labels)
    before = library.record(image_id, tag)
    times = [*opened, *(reply.made for reply in replies)]
    facts = facts_of(
        canonical,
        naming.labels,
        descends=descends,
        complete=naming.complete,
        source=sent.source,
        annotator=sent.annotator,
        seconds=_seconds(sent, times, before),
        model=_own_model(sent.info) or model,
        unknown=naming.unknown,
    )
    with library.staged(image_id, tag, _suffix(library, image_id, tag, sent)) as path:
        write_volume(label, path)
        if sent.suffix == SEGMENTATION:  # segments that overlap are one labelmap now
            shutil.copyfile(sent.path, path.with_name(f"sent{SEGMENTATION}"))
        record = library.publish(path, image_id, tag, facts)
    parent = next((other for other in library.versions(image_id, tag) if other.version == record.parent), None)
    return Saved(record, (*naming.notes, *_about(record, parent)))


def _suffix(library: Library, image_id: str, tag: str, sent: Sent) -> str:
    """How the stored file is named: as it was sent, but beside a final label like that.

    MONAI Label Reviewer gives each version of a label the name of the final one, and 3D Slicer reads by the name.
    """
    final = library.file(image_id) if tag != FINAL else None
    if final is not None:
        return next(suffix for suffix in SUFFIXES if final.name.endswith(suffix))
    return ".nrrd" if sent.suffix == SEGMENTATION else sent.suffix


def _seconds(sent: Sent, times: Sequence[datetime], before: LabelRecord | None) -> float | None:
    """From the first time of this sitting until now; what the client says itself (`seconds`) goes before."""
    given = sent.info.get("seconds")
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
            raise InputError("seconds must be the number of seconds that the label took")
        return float(given)
    now = datetime.now(UTC)
    since = now - LONGEST_SITTING
    if before is not None and before.annotator == sent.annotator:
        since = max(since, before.saved)
    sitting = [time for time in times if since < time <= now]
    return round((now - min(sitting)).total_seconds(), 1) if sitting and sent.source == "client" else None


def _own_model(info: Mapping[str, Any]) -> ModelVersion | None:
    """The model of a reply that is saved as it is."""
    params = info.get("params")
    model = params.get("model") if isinstance(params, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        return None
    return ModelVersion(name=model["name"], sha256=str(model.get("sha256") or ""))


def _about(record: LabelRecord, before: LabelRecord | None) -> list[str]:
    notes = []
    slices = record.shape[2]
    for name, ranges in record.painted.items():
        if record.known.get(name) != "all":
            painted = sum(stop - start for start, stop in ranges)
            notes.append(f"{name!r} counts as known on the {painted} of {slices} slices where it is painted")
    if before is not None and before.annotator != record.annotator:
        who = f"by {before.annotator!r}" if before.annotator else "by somebody else"
        notes.append(f"version {before.version} {who} is not the current one any more; it is kept")
    return notes
