"""DICOM SEG between a store of labels and a PACS: what is sent of a label, and which SEGs belong to which series."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import requests
from monailabel.datastore.dicom import DICOMwebClientX
from pydantic import ValidationError
from pydicom.dataset import Dataset

from polycl.checkpoints import Typed
from polycl.dicomseg import Algorithm, Identity, Segment, SourceSeries, make_seg, read_seg
from polycl.errors import InputError, NotFoundError
from polycl.files import write_atomically
from polycl.labels.record import LabelRecord, SavedLabel
from polycl.monailabel.pacs_client import PacsError
from polycl.volume import read_volume, write_volume

logger = logging.getLogger(__name__)

FIRST_SERIES_NUMBER = 1000
DESCRIBING_SECONDS = 5.0
"""A PACS takes seconds to describe a large segmentation; the rest of many is asked for with the next list."""


def seg_of(saved: SavedLabel, source: SourceSeries) -> Dataset:
    """The DICOM SEG of a version of a label. The same version gives the same UIDs at each call."""
    record = saved.record
    segments = [
        Segment(name, value, _algorithm(record, name))
        for name, value in sorted(record.labels.items(), key=lambda item: item[1])
        if record.voxels[name] or name in record.complete
    ]
    return make_seg(read_volume(saved.label, kind="label"), segments, source, identity_of(record))


def identity_of(record: LabelRecord) -> Identity:
    """The UIDs of a version of a label as DICOM SEG, in a series of its own, which is what viewers list."""
    names = ", ".join(name for name in record.labels if record.voxels[name]) or "empty"
    return Identity.of(
        record.image,
        record.tag,
        record.version,
        record.sha256,
        record.saved.isoformat(),
        series_number=FIRST_SERIES_NUMBER + record.version,
        description=f"Segmentation {record.version}: {names}",
        creator=record.annotator,
    )


def _algorithm(record: LabelRecord, name: str) -> Algorithm:
    model = record.model
    if model is not None and record.source == "model":
        return Algorithm("AUTOMATIC", model.name, model.sha256[:16])
    if model is not None and name in record.descends:
        return Algorithm("SEMIAUTOMATIC", model.name, model.sha256[:16])
    return Algorithm()


class PacsSeg(Typed):
    """A segmentation series in the PACS, and the series of images that it belongs to; empty if to none."""

    uid: str
    study: str
    image: str
    description: str


class _Known(Typed):
    segs: tuple[PacsSeg, ...] = ()


class PacsSegs:
    """The segmentations in a PACS. Which series one belongs to never changes: it is asked once, and kept in `file`."""

    def __init__(self, client: DICOMwebClientX, file: Path) -> None:
        self._client, self._file = client, file
        self._lock = threading.Lock()
        self._listed: tuple[str, ...] = ()
        try:
            kept = _Known.model_validate_json(file.read_bytes()).segs
        except (OSError, ValidationError):
            kept = ()
        self._known = {seg.uid: seg for seg in kept}

    def learn(self, rows: list[Dataset]) -> list[str]:
        """Take in what the PACS lists as segmentations; returns the series that they belong to, each once."""
        listed = [row for row in rows if row.get("Modality", "SEG") == "SEG"]  # some servers ignore filters
        until = time.monotonic() + DESCRIBING_SECONDS
        for row in listed:
            uid = str(row.SeriesInstanceUID)
            if uid not in self._known and time.monotonic() < until and (seg := self._describe(row, uid)) is not None:
                self._keep(seg)
        self._listed = tuple(str(row.SeriesInstanceUID) for row in listed)
        images = [seg.image for uid in self._listed if (seg := self._known.get(uid))]
        return [image for image in dict.fromkeys(images) if image]

    def note(self, seg: PacsSeg) -> None:
        """Take in one that was just sent."""
        self._keep(seg)
        with self._lock:
            self._listed = tuple(dict.fromkeys([*self._listed, seg.uid]))

    def of(self, image: str) -> list[PacsSeg]:
        """Those of a series that were listed last."""
        return [seg for uid in self._listed if (seg := self._known.get(uid)) is not None and seg.image == image]

    def fetch(self, seg: PacsSeg, source: SourceSeries, target: Path) -> None:
        """Write a segmentation to `target`, a .seg.nrrd file, on the grid of its series.

        NotFoundError if the PACS does not have it any more, PacsError for what is no DICOM, InputError for a SEG that
        cannot be used.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "seg.dcm")
            self._newest(seg).save_as(path)
            found = read_seg(path, source)
        if found.overlapping:
            logger.warning("segments of %s overlap in %d voxels; the last has them", seg.uid, found.overlapping)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_volume(found.label, target, names=found.unique_names())

    def _newest(self, seg: PacsSeg) -> Any:
        try:
            instances = self._client.retrieve_series(seg.study, seg.uid)
        except OSError:  # among them those of requests
            raise
        except Exception as error:  # parsing what a stranger sent raises nearly anything
            raise PacsError("the PACS sent a segmentation that is no multipart DICOM") from error
        if not instances:
            raise NotFoundError(f"the segmentation {seg.uid} is not in the PACS any more")
        return max(instances, key=lambda instance: int(instance.get("InstanceNumber") or 0))

    def _keep(self, seg: PacsSeg) -> None:
        with self._lock:
            self._known[seg.uid] = seg
            try:
                write_atomically(self._file, _Known(segs=tuple(self._known.values())).model_dump_json().encode())
            except InputError:
                logger.warning("what is known of a segmentation could not be kept; it is asked again after a start")

    def _describe(self, row: Dataset, uid: str) -> PacsSeg | None:
        """What is known of a segmentation from now on; None if the PACS cannot tell now."""
        study = str(row.StudyInstanceUID)
        try:
            metadata = self._client.retrieve_series_metadata(study, uid)
        except requests.HTTPError:  # one that is gone or broken must not hide the others
            logger.warning("the PACS lists the segmentation %s, but does not describe it", uid)
            return None
        described = Dataset.from_json(metadata[0]) if metadata else Dataset()
        referenced = described.get("ReferencedSeriesSequence")
        image = str(referenced[0].get("SeriesInstanceUID")) if referenced else ""
        return PacsSeg(uid=uid, study=study, image=image, description=str(described.get("SeriesDescription") or ""))
