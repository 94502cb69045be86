"""The folder of images that MONAI Label calls a local datastore, for a server that uses several threads."""

import filecmp
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from polycl.errors import InputError, PolyclError
from polycl.monailabel.folders import IMAGE_SUFFIXES, check_store

logger = logging.getLogger(__name__)

IMAGE_PATTERNS = tuple("*" + suffix for suffix in IMAGE_SUFFIXES)

_SHARED = (
    "datalist",
    "get_image_uri",
    "get_image_info",
    "get_label_uri",
    "get_labels_by_image_id",
    "get_label_info",
    "get_labeled_images",
    "get_unlabeled_images",
    "list_images",
    "refresh",
    "add_image",
    "remove_image",
    "save_label",
    "remove_label",
    "update_image_info",
    "update_label_info",
    "status",
    "json",
    "_on_any_event",
    "_on_modify_event",
)


class Conflict(PolyclError):
    """What the request would make is there already."""

    status = 409


class IndexedStore(LocalDatastore):  # type: ignore[misc, unused-ignore]
    """MONAI Label's index of images and labels in a folder, one call at a time.

    The index is emptied and filled again whenever a file changes, by a thread that watches the folder; without a lock
    a request at that moment finds no image.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._index_lock = threading.RLock()
        with self._index_lock:
            super().__init__(*arguments, **options)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index. One that is damaged is an InputError if `throw_exception`, else logged and not used."""
        try:
            super()._init_from_datastore_file(throw_exception=True)
        except ValueError as error:
            if not throw_exception:
                logger.error("%s is damaged; what was read before stays in use", self._datastore_config_path)
                return
            raise InputError(
                f"{self._datastore_config_path} is damaged; move it away and start again: images and labels are found "
                "again, and only what was noted about them, such as the names of labels, is missing"
            ) from error


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
            return str(super().add_image(image_id, image_filename, image_info))


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(self: IndexedStore, *args: Any, **kwargs: Any) -> Any:
        with self._index_lock:
            return method(self, *args, **kwargs)

    return locked


for _name in _SHARED:
    setattr(IndexedStore, _name, _one_at_a_time(getattr(LocalDatastore, _name)))
