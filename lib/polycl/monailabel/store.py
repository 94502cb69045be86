"""The folder of images that MONAI Label calls a local datastore, for several threads and processes, and bad moments.

The index of images and labels is MONAI Label's file. It is replaced whole, under a lock that other processes respect,
after it was read again: what another process noted meanwhile is kept. It only notes what lies in the folder: one that
is damaged or lost is made anew. Labels themselves are kept by `polycl.labels`.
"""

import filecmp
import functools
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from polycl.errors import InputError, PolyclError
from polycl.files import replacing
from polycl.labels.library import KEEP, Library
from polycl.labels.naming import listed
from polycl.labels.record import LabelRecord
from polycl.labels.replies import ReplyLog
from polycl.labels.saving import Saved, Sent, save
from polycl.labels.storage import storing
from polycl.monailabel.folders import IMAGE_SUFFIXES, check_store
from polycl.volume import MAX_VOXELS, Volume, read_volume

logger = logging.getLogger(__name__)

IMAGE_PATTERNS = tuple("*" + suffix for suffix in IMAGE_SUFFIXES)

_READING = (
    "datalist",
    "get_image_uri",
    "get_image_info",
    "get_label_uri",
    "get_labels_by_image_id",
    "get_labeled_images",
    "get_unlabeled_images",
    "list_images",
    "status",
    "json",
    "_on_any_event",
    "_on_modify_event",
)
_CHANGING = ("refresh", "update_image_info", "_reconcile_datastore")


class Conflict(PolyclError):
    """What the request would make is there already."""

    status = 409


def _read_any(path: Path) -> Volume:
    return read_volume(path, allow_any_values=True)


@dataclass(frozen=True)
class LabelRules:
    """What a store needs to know to keep labels.

    `known`: the models' table of name to value. `keep`: versions of a label. `read`: reads an image of the store.
    """

    known: Mapping[str, int] = field(default_factory=dict)
    keep: int = KEEP
    read: Callable[[Path], Volume] = _read_any
    replies: ReplyLog | None = None
    max_voxels: int = MAX_VOXELS


class IndexedStore(LocalDatastore):  # type: ignore[misc, unused-ignore]
    """MONAI Label's index of images and labels in a folder, one call at a time, and the labels with their versions.

    The index is emptied and filled again whenever a file changes, by a thread that watches the folder; without a lock
    a request at that moment finds no image.
    """

    rules: LabelRules = LabelRules()

    def __init__(self, datastore_path: str, *arguments: Any, rules: LabelRules | None = None, **options: Any) -> None:
        self.folder = Path(datastore_path)
        self.folder.mkdir(parents=True, exist_ok=True)
        if rules is not None:
            self.rules = rules
        self.library = Library(self.folder, self.rules.keep, self.rules.known)
        self._index_lock = threading.RLock()
        self._stamp: tuple[int, int, int] | None = None
        with self._index_lock:
            self.library.heal()
            super().__init__(datastore_path, *arguments, **{"extensions": IMAGE_PATTERNS, **options})
            with storing(), self.library.lock:
                self._take_records(all_labels=True)
            if handler := getattr(self, "_handler", None):
                handler.on_moved = self._on_moved
                for name in ("on_created", "on_deleted", "on_modified", "on_moved"):
                    setattr(handler, name, _surviving(getattr(handler, name)))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label that no person has seen, as a model's reply; see `keep_label` for what an annotator sends."""
        sent = self.sent(Path(label_filename), label_info, source="model")
        self.keep_label(image_id, label_tag, sent)
        return image_id

    def sent(self, path: Path, info: Mapping[str, Any], **others: Any) -> Sent:
        """The label in a file on its way into the store. InputError if it is none."""
        return Sent.read(path, info or {}, self.rules.max_voxels, **others)

    def keep_label(self, image_id: str, tag: str, sent: Sent) -> Saved:
        """Save a label; see `polycl.labels.saving.save`. ImageNotFoundException for an image that is not here."""
        tag = str(getattr(tag, "value", tag))
        uri = self.get_image_uri(image_id)
        if not uri or not Path(uri).exists():
            raise ImageNotFoundException(f"Image {image_id} not found")
        image = self.rules.read(Path(uri))
        replies = self.rules.replies.of(image) if self.rules.replies else ()
        opened = self._opened(image_id, sent.annotator)
        saved = save(self.library, image_id, tag, sent, image, replies=replies, opened=opened)
        self._note(saved.record, sent.info)
        return saved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; its last version is kept. LabelNotFoundException if there is none."""
        tag = str(getattr(label_tag, "value", label_tag))
        with self._changing():
            labels = self._labels(label_id)
            if self.library.file(label_id, tag) is None and tag not in labels:
                raise LabelNotFoundException(f"Label {label_id} not found")
            self.library.remove(label_id, tag)
            labels.pop(tag, None)

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels, the versions of which are kept."""
        super().remove_image(image_id)
        self.refresh()

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted of a label, and its `record`."""
        tag = str(getattr(label_tag, "value", label_tag))
        with self._index_lock:
            self._init_from_datastore_file()
            info = dict(super().get_label_info(label_id, tag))
        record = self.library.record(label_id, tag)
        return info | ({"record": record.model_dump(mode="json")} if record else {})

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note more of a label. `complete` (true, false or a list of names) makes a version that is marked so."""
        tag = str(getattr(label_tag, "value", label_tag))
        others = {key: value for key, value in info.items() if key not in ("complete", "record")}
        with self._changing():
            labels = self._labels(label_id)
            if tag not in labels:
                raise LabelNotFoundException(f"Label {label_id} not found")
            if "complete" in info:
                names = self._complete(label_id, tag, info["complete"])
                record = self.library.mark_complete(label_id, tag, names, str(info.get("client_id") or ""))
                labels[tag] = self._data(record, labels[tag].info)
            labels[tag].info.update(others)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an image into the store under the id, in place of one of the same id. Returns the id."""
        suffix = next(s for s in IMAGE_SUFFIXES if image_filename.lower().endswith(s))
        image_id = image_id or Path(image_filename).name[: -len(suffix)]
        target = self.folder / f"{image_id}{suffix}"
        with self._changing():
            with replacing(target) as copy, Path(image_filename).open("rb") as original:
                shutil.copyfileobj(original, copy)
            info = {**(image_info or {}), "ts": int(time.time()), "name": target.name}
            labels = self._labels(image_id)
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix), labels=labels)
        return image_id

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The index as it is on disk, to be changed and written at the end. StorageError where it cannot be."""
        with storing(), self._index_lock, self.library.lock:
            self._init_from_datastore_file()
            try:
                yield
                self._update_datastore_file()
            except BaseException:
                self._stamp = None  # what is in memory may not be what is on disk
                raise

    def _note(self, record: LabelRecord, info: Mapping[str, Any]) -> None:
        """Put a label that was saved into the index. If that cannot be written the next start finds the label again."""
        with self._index_lock, self.library.lock:
            self._init_from_datastore_file()
            if record.image in self._datastore.objects:
                self._labels(record.image)[record.tag] = self._data(record, info)
            try:
                self._update_datastore_file()
            except OSError as error:
                logger.warning("a label was saved, but the index could not be written: %s", error.strerror)

    def _data(self, record: LabelRecord, info: Mapping[str, Any]) -> DataModel:
        """What the index notes of a label: what the client sent, but `label_info` for the values that are stored."""
        noted = {key: value for key, value in info.items() if key != "record"}
        noted["label_info"] = listed(record.labels, self.library.known)
        noted |= {"ts": int(record.saved.timestamp()), "name": record.file, "version": record.version}
        noted.setdefault("client_id", record.annotator)
        return DataModel(info=noted, ext=record.file.removeprefix(record.image))

    def _labels(self, image_id: str) -> dict[str, DataModel]:
        known = self._datastore.objects.get(image_id)
        labels: dict[str, DataModel] = known.labels if known else {}
        return labels

    def _complete(self, label_id: str, tag: str, value: object) -> tuple[str, ...]:
        record = self.library.record(label_id, tag)
        if isinstance(value, bool):
            return tuple(record.labels) if record and value else ()
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise InputError("complete must be true, false or a list of the names of complete labels")

    def _opened(self, image_id: str, annotator: str) -> list[datetime]:
        """When the image was handed out as the next to label, to this annotator or to nobody known."""
        times = []
        for handed in dict(self.get_image_info(image_id).get("strategy") or {}).values():
            if isinstance(handed, dict) and (not annotator or handed.get("client_id") in (annotator, None)):
                times.append(datetime.fromtimestamp(int(handed.get("ts", 0)), UTC))
        return times

    def _take_records(self, *, all_labels: bool = False) -> None:
        """Note of labels in the index what their records say: of those it found in the folder, or of all."""
        changed = False
        for image_id, known in self._datastore.objects.items():
            for tag, data in known.labels.items():
                if all_labels or "version" not in data.info:
                    record = self.library.record(image_id, tag)
                    if record is not None and record.version != data.info.get("version"):
                        known.labels[tag] = self._data(record, {})
                        changed = True
        if changed:
            self._update_datastore_file()

    def _reconcile_datastore(self) -> None:
        super()._reconcile_datastore()
        self._take_records()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index if it changed. One that is damaged is put aside, and what is in memory stays in use."""
        with self._index_lock:
            path = Path(self._datastore_config_path)
            stamp = _stamp(path)
            if stamp is None or stamp == self._stamp:
                return
            try:
                read = LocalDatastoreModel.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                return
            except ValueError:
                aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
                logger.error("the index is damaged and put aside as %s; it is made anew from the folder", aside.name)
                path.replace(aside)
                self._stamp = None
                return
            read.base_path = self._datastore_path
            self._datastore, self._stamp = read, stamp

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Replace the index by what is in memory. OSError where it cannot be written; the old one is left then."""
        with self._index_lock, self.library.lock:
            path = Path(self._datastore_config_path)
            text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            with replacing(path) as stream:
                stream.write(text.encode())
            self._stamp = _stamp(path)

    def _on_moved(self, event: Any) -> None:
        """Called by the watcher: images, labels and the index are renamed into place, here and by other processes."""
        if Path(event.dest_path).name == Path(self._datastore_config_path).name:
            self._init_from_datastore_file()
        else:
            self.refresh()


class LocalStore(IndexedStore):
    """A folder of images; labels are saved under it. InputError if it does not exist or cannot be written."""

    def __init__(self, folder: str, **options: Any) -> None:
        check_store(Path(folder))
        super().__init__(folder, **options)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an image into the store under the id; the same file again changes only what is noted about it.

        Conflict if the id has another image: its labels would be this one's.
        """
        with self._index_lock:
            known = self.get_image_uri(image_id)
            if known and Path(known).exists():  # the index may not know yet that a file is gone
                if not filecmp.cmp(known, image_filename, shallow=False):
                    raise Conflict(f"the store has another image {image_id!r}; use another id, or delete that one")
                self.update_image_info(image_id, image_info)
                return image_id
            return super().add_image(image_id, image_filename, image_info)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _surviving(heed: Callable[[Any], None]) -> Callable[[Any], None]:
    """`heed` what changed in the folder. What fails is logged: an exception would end the watching for good."""

    def heeded(event: Any) -> None:
        try:
            heed(event)
        except Exception as error:  # a full disk, a folder gone: whatever it is, the next change may go well
            logger.error("a change in the folder of studies was not taken in: %s", type(error).__name__)

    return heeded


def _in_turn(method: Callable[..., Any], *, changes: bool) -> Callable[..., Any]:
    """`method` of the index as it is on disk, one thread at a time, and one process if it `changes` anything."""

    @functools.wraps(method)
    def locked(self: IndexedStore, *args: Any, **kwargs: Any) -> Any:
        with self._index_lock:
            if not changes:
                self._init_from_datastore_file()
                return method(self, *args, **kwargs)
            with storing(), self.library.lock:
                self._init_from_datastore_file()
                return method(self, *args, **kwargs)

    return locked


for _name in _READING:
    setattr(IndexedStore, _name, _in_turn(getattr(LocalDatastore, _name), changes=False))
for _name in _CHANGING:
    setattr(IndexedStore, _name, _in_turn(getattr(IndexedStore, _name), changes=True))
