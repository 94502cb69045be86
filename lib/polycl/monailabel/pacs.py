"""A PACS that speaks DICOMweb, as MONAI Label's datastore.

A series comes over once, whole or not at all, and is kept as the DICOM files it was and as NIfTI in its DICOM voxel
order: columns, rows, slices along the cross product of row and column direction. In that order OHIF stacks slices, and
it copies the voxels of a reply without a look at their geometry; MONAI Label's own conversion has it too, but takes
the half of a series for all, and a gantry tilt for none.

Only the index of what is kept is under the store's lock; nobody waits there for the PACS. Requests for one series at
once share one transfer.
"""

import logging
import math
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import requests
from monailabel.config import settings as server_settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from polycl.dicomseg import SourceSeries
from polycl.errors import InputError, NotFoundError
from polycl.labels.saving import Saved, Sent
from polycl.monailabel import pacs_room
from polycl.monailabel.outbox import Entry, Outbox
from polycl.monailabel.pacs_client import PacsError, connect, instances_of, store
from polycl.monailabel.pacs_segs import PacsSeg, PacsSegs, seg_of
from polycl.monailabel.store import IndexedStore, LabelRules
from polycl.volume import read_segments, read_series, write_volume

logger = logging.getLogger(__name__)

LIST_SECONDS = 60.0
"""How long a list of series is believed. Every inference asks for it, and new series should show up soon."""
SERIES_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
KEPT_FIELDS = ("SeriesInstanceUID", "StudyInstanceUID", "Modality")
FIRST_TRY_SECONDS = 10.0
"""How long a save waits to tell whether the PACS has taken the label; it is sent whether someone waits or not."""


class PacsStore(DICOMWebDatastore, IndexedStore):  # type: ignore[misc, unused-ignore]
    """The series of the PACS at `url`, kept in a folder of `cache` once used. InputError if `url` is no address.

    `room`: bytes that series may take; those with a label here stay.
    """

    def __init__(self, url: str, cache: Path, rules: LabelRules | None = None, room: int | None = None) -> None:
        if rules is not None:
            self.rules = rules
        self._room = room
        self._guard = threading.Lock()
        self._transfers: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lists: dict[str, tuple[float, list[str]]] = {}
        self._sizes: dict[str, int] = {}
        super().__init__(connect(url), server_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, cache_path=str(cache))
        self.segs = PacsSegs(self._client, self.folder / "segmentations" / "known.json")
        self.outbox = Outbox(self.folder / "outbox", self._send)
        self._queue_unsent()

    @property
    def session(self) -> requests.Session:
        """For requests to the PACS with the server's account."""
        return self._client._session

    def get_image_uri(self, image_id: str) -> str:
        """Path of the series as NIfTI, fetched if need be. NotFoundError for a series that the PACS does not have."""
        if not isinstance(image_id, str) or not SERIES_UID.fullmatch(image_id):
            raise NotFoundError(f"no series {image_id!r}: images of a PACS are named by their SeriesInstanceUID")
        target = self.place(image_id)
        with self._guard:
            transfer = self._transfers.setdefault(image_id, threading.Lock())
        with transfer:
            if target.exists() and not self._grown(image_id):
                pacs_room.used(target)
            else:
                self._fetch(image_id, target)
                if self._room is not None:
                    pacs_room.make_room(target.parent, self._room, self._forget)
        return str(target)

    def place(self, uid: str) -> Path:
        """Where the series `uid` is kept, or would be."""
        return Path(self._datastore.image_path(), f"{uid}.nii.gz").resolve()

    def list_images(self) -> list[str]:
        """UIDs of the series that MONAI Label's search filter selects, CT if not set otherwise."""
        return self._recently("images", self._listed)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series that a segmentation in the PACS refers to, or that have a final label here."""
        known = self._recently("labeled", self._segmented)
        return list(dict.fromkeys([*known, *IndexedStore.get_labeled_images(self, label_tag, labels)]))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label that is kept here; with the series UID of a segmentation as tag, path of that one.

        Segmentations of the PACS are no labels of ours: nothing is trained on one until it is saved as final.
        """
        tag = str(getattr(label_tag, "value", label_tag))
        if not SERIES_UID.fullmatch(tag):
            return str(IndexedStore.get_label_uri(self, label_id, tag))
        return str(self._fetched_seg(label_id, tag))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is noted of a series, and the segmentations of it that the PACS listed last."""
        info = dict(IndexedStore.get_image_info(self, image_id))
        segs = [seg.model_dump() for seg in self.segs.of(image_id)]
        return info | ({"segmentations": segs} if segs else {})

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted of a label, or the names in a segmentation of the PACS, by its series UID as tag."""
        tag = str(getattr(label_tag, "value", label_tag))
        if not SERIES_UID.fullmatch(tag):
            return IndexedStore.get_label_info(self, label_id, tag)
        names = read_segments(self._fetched_seg(label_id, tag))
        return {"SeriesInstanceUID": tag, "label_info": [{"name": name, "idx": names[name]} for name in names]}

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note more of a label. `"final": true` for a segmentation of the PACS makes it the final label here."""
        tag = str(getattr(label_tag, "value", label_tag))
        if not SERIES_UID.fullmatch(tag):
            IndexedStore.update_label_info(self, label_id, tag, info)
        elif info.get("final") is not True:
            raise InputError('a segmentation of the PACS cannot be changed; {"final": true} makes it a label here')
        else:
            path = self._fetched_seg(label_id, tag)
            sent = self.sent(path, {}, annotator=str(info.get("client_id") or info.get("user") or ""))
            saved = IndexedStore.keep_label(self, label_id, DefaultLabelTag.FINAL, sent)
            IndexedStore.update_label_info(self, label_id, saved.record.tag, {"SeriesInstanceUID": tag})

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and final labels that are kept here. MONAI Label's deletes those that the PACS does not list."""
        return list(IndexedStore.datalist(self, full_path))

    def status(self) -> dict[str, Any]:
        """Counts of images and labels. Asks the PACS first, and then takes the lock of the index."""
        self.list_images()
        self.get_labeled_images()
        return dict(super().status())

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label that no person has seen; see `keep_label`."""
        return str(IndexedStore.save_label(self, image_id, label_filename, label_tag, label_info))

    def keep_label(self, image_id: str, tag: str, sent: Sent) -> Saved:
        """Keep a label here; a final one goes to the PACS as DICOM SEG after that, now or as soon as it can."""
        saved: Saved = super().keep_label(image_id, tag, sent)
        note = ""
        if saved.record.tag == DefaultLabelTag.FINAL:
            entry = Entry(image=image_id, tag=saved.record.tag, version=saved.record.version)
            self.outbox.put(entry)
            if reason := self.outbox.wait(entry, FIRST_TRY_SECONDS):
                note = f"the label is kept here and will be sent to the PACS, which does not have it yet: {reason}"
        self._look_again()
        return replace(saved, notes=(*saved.notes, note)) if note else saved

    def _queue_unsent(self) -> None:
        """Final labels that a killed server kept, but did not get to queue."""
        for image_id in self.library.images(DefaultLabelTag.FINAL.value):
            record = self.library.record(image_id)
            if record is None or record.source not in ("client", "model"):
                continue
            if "SeriesInstanceUID" not in IndexedStore.get_label_info(self, image_id, record.tag):
                self.outbox.put(Entry(image=image_id, tag=record.tag, version=record.version))

    def _send(self, entry: Entry) -> None:
        """Send a version of a label. Raises whatever keeps the PACS from having it."""
        saved = self.library.version(entry.image, entry.version, entry.tag) or self.library.current(
            entry.image, entry.tag
        )
        if saved is None or saved.record.version != entry.version:
            logger.warning("version %d of a label is not kept any more, and not sent", entry.version)
            return
        source = self.source(entry.image)
        seg = seg_of(saved, source)
        store(self._client, seg)
        uid, description = str(seg.SeriesInstanceUID), str(seg.SeriesDescription)
        self.segs.note(PacsSeg(uid=uid, study=source.study_uid, image=entry.image, description=description))
        current = self.library.record(entry.image, entry.tag)
        if current is not None and current.version == entry.version:
            IndexedStore.update_label_info(self, entry.image, entry.tag, {"SeriesInstanceUID": uid})
        self._look_again()

    def source(self, image_id: str) -> SourceSeries:
        """The series as DICOM, fetched if need be."""
        folder = Path(self.get_image_uri(image_id)).with_name(image_id)
        return SourceSeries.read(folder, image_id)

    def _fetched_seg(self, image_id: str, uid: str) -> Path:
        """A segmentation of the PACS as a file here. NotFoundError if the series has none of that UID."""
        target = self.folder / "segmentations" / image_id / f"{uid}.seg.nrrd"
        if target.is_file():
            return target
        known = {seg.uid: seg for seg in self.segs.of(image_id)}
        if uid not in known:
            self.segs.learn(self._search({"Modality": "SEG"}))
            known = {seg.uid: seg for seg in self.segs.of(image_id)}
        if uid not in known:
            raise NotFoundError(
                f"no segmentation {uid} of this series in the PACS; it has: {', '.join(known) or 'none'}"
            )
        self.segs.fetch(known[uid], self.source(image_id), target)
        return target

    def _look_again(self) -> None:
        """Lists are asked for anew from here on; the old ones only serve where the PACS fails."""
        with self._guard:
            self._lists = {what: (-math.inf, known) for what, (_, known) in self._lists.items()}

    def _fetch(self, uid: str, target: Path) -> None:
        found = self._series(uid)
        kept = target.with_name(uid)
        # On the same disk, but outside the folder that is watched for changes.
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent.parent) as temporary:
            folder = Path(temporary, uid)
            folder.mkdir()
            self._download(str(found.StudyInstanceUID), uid, folder)
            volume = read_series(folder, series_uid=uid, max_voxels=self.rules.max_voxels)
            shutil.rmtree(kept, ignore_errors=True)
            folder.replace(kept)
        write_volume(volume, target)
        info = {field: str(found.get(field, "UNK")) for field in KEPT_FIELDS}
        info |= {"ts": str(int(time.time())), "name": target.name}
        with self._changing():
            image = DataModel(info=info, ext=".nii.gz")
            self._datastore.objects[uid] = ImageLabelModel(image=image, labels=self._labels(uid))

    def _listed(self) -> list[str]:
        found = {str(series.SeriesInstanceUID): series for series in self._search({})}
        self._sizes = {uid: int(series.get("NumberOfSeriesRelatedInstances") or 0) for uid, series in found.items()}
        return list(found)

    def _grown(self, uid: str) -> bool:
        """Whether the PACS listed more images of a series than are kept: it was still arriving when it was fetched.

        Not where it has a label here, which is on the grid that was kept.
        """
        folder = self.place(uid).with_name(uid)
        if not folder.is_dir() or self._sizes.get(uid, 0) <= len(list(folder.iterdir())):
            return False
        with self._changing():
            return not self._labels(uid)

    def _forget(self, uid: str) -> bool:
        """Remove a series from this disk, unless it has a label here or is just fetched; whether it is gone."""
        target = self.place(uid)
        with self._guard:
            transfer = self._transfers.setdefault(uid, threading.Lock())
        if not transfer.acquire(blocking=False):
            return False
        try:
            with self._changing():
                if self._labels(uid):
                    return False
                target.unlink(missing_ok=True)  # under the lock: what watches the folder would list it again
                self._datastore.objects.pop(uid, None)
            shutil.rmtree(target.with_name(uid), ignore_errors=True)
            return True
        finally:
            transfer.release()

    def _series(self, uid: str) -> Dataset:
        for found in self._search({"SeriesInstanceUID": uid}):
            if found.SeriesInstanceUID == uid:  # some servers ignore filters they do not know
                return found
        raise NotFoundError(f"no series {uid} in this PACS")

    def _download(self, study: str, uid: str, folder: Path) -> None:
        try:
            for number, instance in enumerate(instances_of(self._client, study, uid)):
                instance.save_as(folder / f"{number:06d}.dcm")
        except OSError:  # among them those of requests
            raise
        except Exception as error:  # parsing what a stranger sent raises nearly anything
            raise PacsError("the PACS sent a series that is no multipart DICOM") from error

    def _search(self, filters: dict[str, str]) -> list[Dataset]:
        """Series as the PACS describes them, with study and series UID."""
        rows = self._client.search_for_series(search_filters=filters or self._search_filter)
        found = [Dataset.from_json(row) for row in rows]
        if not all("StudyInstanceUID" in series and "SeriesInstanceUID" in series for series in found):
            raise PacsError("the PACS lists series without their study and series UID")
        return found

    def _segmented(self) -> list[str]:
        known = set(self.list_images())
        return [uid for uid in self.segs.learn(self._search({"Modality": "SEG"})) if uid in known]

    def _kept(self, what: str) -> list[str]:
        """The list called `what` where the PACS never answered: of what is kept here."""
        return list(self._datastore.objects) if what == "images" else []

    def _recently(self, what: str, ask: Callable[[], list[str]]) -> list[str]:
        """The list called `what`: from memory if it is recent, or if the PACS fails, which a next request may not.

        Raises what the PACS's failure is only where nothing is known and no series is kept here.
        """
        with self._guard:
            asked, known = self._lists.get(what, (-math.inf, None))
        if known is not None and time.monotonic() - asked < LIST_SECONDS:
            return list(known)
        try:
            answer = ask()
        except (requests.RequestException, PacsError) as error:
            if known is None and not self._datastore.objects:  # nothing to go on with: say what is wrong
                raise
            logger.warning("the PACS does not list its series (%s); the last list is used", type(error).__name__)
            answer = known if known is not None else self._kept(what)
        with self._guard:
            self._lists[what] = (time.monotonic(), answer)
        return list(answer)
