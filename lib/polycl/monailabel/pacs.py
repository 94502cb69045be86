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
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import requests
from dicomweb_client.session_utils import create_session_from_gcp_credentials
from filelock import FileLock
from monailabel.config import settings as server_settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.monailabel.store import IndexedStore
from polycl.volume import MAX_VOXELS, read_series, write_volume

logger = logging.getLogger(__name__)

CONNECT_SECONDS, SILENT_SECONDS = 5.0, 60.0
CHUNK_BYTES = 1 << 24
"""The client searches all it holds of a file again with each chunk, so that small ones make large files slow."""
LIST_SECONDS = 60.0
"""How long a list of series is believed. Every inference asks for it, and new series should show up soon."""
SERIES_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
KEPT_FIELDS = ("SeriesInstanceUID", "StudyInstanceUID", "Modality")
SEG_WRITER = "itkimage2segimage"


class PacsError(PolyclError):
    """The PACS answered, but not with what was asked for."""

    status = 502


class UnsupportedError(PolyclError):
    """This installation lacks what the request needs."""

    status = 501


class _ImpatientAdapter(HTTPAdapter):
    """Waits for a silent server only so long; requests alone waits for ever."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        options["timeout"] = options.get("timeout") or (CONNECT_SECONDS, SILENT_SECONDS)
        return super().send(*arguments, **options)


class PacsStore(DICOMWebDatastore, IndexedStore):  # type: ignore[misc, unused-ignore]
    """The series of the PACS at `url`, kept in a folder of `cache` once used. InputError if `url` is no address."""

    def __init__(self, url: str, cache: Path, max_voxels: int = MAX_VOXELS) -> None:
        self._max_voxels = max_voxels
        self._guard = threading.Lock()
        self._transfers: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lists: dict[str, tuple[float, list[str]]] = {}
        self._references: dict[str, str | None] = {}
        super().__init__(connect(url), server_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, cache_path=str(cache))

    def get_image_uri(self, image_id: str) -> str:
        """Path of the series as NIfTI, fetched if need be. NotFoundError for a series that the PACS does not have."""
        if not isinstance(image_id, str) or not SERIES_UID.fullmatch(image_id):
            raise NotFoundError(f"no series {image_id!r}: images of a PACS are named by their SeriesInstanceUID")
        target = Path(self._datastore.image_path(), f"{image_id}.nii.gz").resolve()
        with self._guard:
            transfer = self._transfers.setdefault(image_id, threading.Lock())
        with transfer:
            if not target.exists():
                self._fetch(image_id, target)
        return str(target)

    def list_images(self) -> list[str]:
        """UIDs of the series that MONAI Label's search filter selects, CT if not set otherwise."""
        return self._recently("images", lambda: [str(found.SeriesInstanceUID) for found in self._search({})])

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series that a segmentation in the PACS refers to."""
        return self._recently("labeled", self._segmented)

    def status(self) -> dict[str, Any]:
        """Counts of images and labels. Asks the PACS first, and then takes the lock of the index."""
        self.list_images()
        self.get_labeled_images()
        return dict(super().status())

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label; a final one goes to the PACS as DICOM SEG. UnsupportedError without the program for that."""
        if label_tag == DefaultLabelTag.FINAL and shutil.which(SEG_WRITER) is None:
            raise UnsupportedError(
                f"a final label goes to the PACS as DICOM SEG, which needs the program {SEG_WRITER} of dcmqi on PATH"
            )
        saved = super().save_label(image_id, label_filename, label_tag, label_info, label_id)
        with self._guard:
            self._lists = {what: (-math.inf, known) for what, (_, known) in self._lists.items()}
        return str(saved)

    def _fetch(self, uid: str, target: Path) -> None:
        found = self._series(uid)
        kept = target.with_name(uid)
        # On the same disk, but outside the folder that is watched for changes.
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent.parent) as temporary:
            folder = Path(temporary, uid)
            folder.mkdir()
            self._download(str(found.StudyInstanceUID), uid, folder)
            volume = read_series(folder, series_uid=uid, max_voxels=self._max_voxels)
            shutil.rmtree(kept, ignore_errors=True)
            folder.replace(kept)
        write_volume(volume, target)
        info = {field: str(found.get(field, "UNK")) for field in KEPT_FIELDS}
        info |= {"ts": str(int(time.time())), "name": target.name}
        with self._index_lock, FileLock(self._lock_file):
            self._datastore.objects[uid] = ImageLabelModel(image=DataModel(info=info, ext=".nii.gz"))
            self._update_datastore_file(lock=False)

    def _series(self, uid: str) -> Dataset:
        for found in self._search({"SeriesInstanceUID": uid}):
            if found.SeriesInstanceUID == uid:  # some servers ignore filters they do not know
                return found
        raise NotFoundError(f"no series {uid} in this PACS")

    def _download(self, study: str, uid: str, folder: Path) -> None:
        try:
            for number, instance in enumerate(self._client.iter_series(study, uid)):
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
        listed = []
        for found in self._search({"Modality": "SEG"}):
            uid = str(found.SeriesInstanceUID)
            if found.get("Modality", "SEG") == "SEG":  # some servers ignore filters they do not know
                listed.append(uid)
                self._learn_reference(str(found.StudyInstanceUID), uid)
        known = set(self.list_images())
        return [uid for uid in dict.fromkeys(map(self._references.get, listed)) if uid in known]

    def _learn_reference(self, study: str, uid: str) -> None:
        """Which series the segmentation `uid` belongs to; that never changes."""
        if uid in self._references:
            return
        try:
            metadata = self._client.retrieve_series_metadata(study, uid)
        except requests.HTTPError:  # one that is gone or broken must not hide the others
            logger.warning("the PACS lists the segmentation %s, but does not describe it", uid)
            return
        referenced = Dataset.from_json(metadata[0]).get("ReferencedSeriesSequence") if metadata else None
        self._references[uid] = str(referenced[0].get("SeriesInstanceUID")) if referenced else None

    def _recently(self, what: str, ask: Callable[[], list[str]]) -> list[str]:
        """The list called `what`: from memory if it is recent, or if the PACS fails, which a next request may not."""
        with self._guard:
            asked, known = self._lists.get(what, (-math.inf, None))
        if known is not None and time.monotonic() - asked < LIST_SECONDS:
            return list(known)
        try:
            answer = ask()
        except (requests.RequestException, PacsError) as error:
            if known is None:
                raise
            logger.warning("the PACS does not list its series (%s); the last list is used", type(error).__name__)
            answer = known
        with self._guard:
            self._lists[what] = (time.monotonic(), answer)
        return list(answer)


def connect(url: str) -> DICOMwebClientX:
    """A client of the PACS at `url`, with the account and paths of MONAI Label's settings.

    It does not try again what failed: a person waits, and can. InputError if `url` is no address.
    """
    session = requests.Session()
    if "googleapis.com" in url:
        session = create_session_from_gcp_credentials()
    elif server_settings.MONAI_LABEL_DICOMWEB_USERNAME and server_settings.MONAI_LABEL_DICOMWEB_PASSWORD:
        session.auth = (server_settings.MONAI_LABEL_DICOMWEB_USERNAME, server_settings.MONAI_LABEL_DICOMWEB_PASSWORD)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _ImpatientAdapter())
    try:
        client = DICOMwebClientX(
            url=url,
            session=session,
            qido_url_prefix=server_settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=server_settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=server_settings.MONAI_LABEL_STOW_PREFIX,
            chunk_size=CHUNK_BYTES,
        )
    except ValueError:
        raise InputError(f"{url} is no DICOMweb address; one looks like http://pacs:8042/dicom-web") from None
    client.set_http_retry_params(retry=False)
    return client
