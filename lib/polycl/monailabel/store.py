"""The folder of images that MONAI Label calls a local datastore, for a server that uses several threads."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from polycl.monailabel.folders import IMAGE_SUFFIXES, check_store

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


class IndexedStore(LocalDatastore):  # type: ignore[misc, unused-ignore]
    """MONAI Label's index of images and labels in a folder, one call at a time.

    The index is emptied and filled again whenever a file changes, by a thread that watches the folder; without a lock
    a request at that moment finds no image.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._index_lock = threading.RLock()
        with self._index_lock:
            super().__init__(*arguments, **options)


class LocalStore(IndexedStore):
    """A folder of images; labels are saved under it. InputError if it does not exist or cannot be written."""

    def __init__(self, folder: str, **options: Any) -> None:
        check_store(Path(folder))
        super().__init__(folder, **options)


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(self: IndexedStore, *args: Any, **kwargs: Any) -> Any:
        with self._index_lock:
            return method(self, *args, **kwargs)

    return locked


for _name in _SHARED:
    setattr(IndexedStore, _name, _one_at_a_time(getattr(LocalDatastore, _name)))
