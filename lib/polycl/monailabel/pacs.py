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
from monailabel.config import settings as server_settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from monailabel.datastore.utils.dicom import dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.labels.record import LabelRecord
from polycl.labels.saving import Saved, Sent
from polycl.monailabel.store import IndexedStore, LabelRules
from polycl.volume import read_series, write_volume

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

    def __init__(self, url: str, cache: Path, rules: LabelRules | None = None) -> None:
        if rules is not None:
            self.rules = rules
        self._guard = threading.Lock()
        self._transfers: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lists: dict[str, tuple[float, list[str]]] = {}
        self._references: dict[str, str | None] = {}
        super().__init__(connect(url), server_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, cache_path=str(cache))

    def get_image_uri(self, image_id: str) -> str:
        """Path of the series as NIfTI, fetched if need be. NotFoundError for a series that the PACS does not have."""
        if not isinstance(image_id, str) or not SERIES_UID.fullmatch(image_id):
            raise NotFoundError(f"no series {image_id!r}: images of a PACS are named by their SeriesInstanceUID")
        target = self.place(image_id)
        with self._guard:
            transfer = self._transfers.setdefault(image_id, threading.Lock())
        with transfer:
            if not target.exists():
                self._fetch(image_id, target)
        return str(target)

    def place(self, uid: str) -> Path:
        """Where the series `uid` is kept, or would be."""
        return Path(self._datastore.image_path(), f"{uid}.nii.gz").resolve()

    def list_images(self) -> list[str]:
        """UIDs of the series that MONAI Label's search filter selects, CT if not set otherwise."""
        return self._recently("images", lambda: [str(found.SeriesInstanceUID) for found in self._search({})])

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series that a segmentation in the PACS refers to, or that have a final label here."""
        known = self._recently("labeled", self._segmented)
        return list(dict.fromkeys([*known, *IndexedStore.get_labeled_images(self, label_tag, labels)]))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label that is kept here. Segmentations that others sent to the PACS are no labels of ours."""
        return str(IndexedStore.get_label_uri(self, label_id, label_tag))

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
        """Keep a label here; a final one goes to the PACS as DICOM SEG after that.

        UnsupportedError without the program for that; nothing is kept then. PacsError where the PACS does not take it.
        """
        final = tag == DefaultLabelTag.FINAL
        if final and shutil.which(SEG_WRITER) is None:
            raise UnsupportedError(
                f"a final label goes to the PACS as DICOM SEG, which needs the program {SEG_WRITER} of dcmqi on PATH"
            )
        saved: Saved = super().keep_label(image_id, tag, sent)
        if final:
            self._send(saved.record)
        with self._guard:
            self._lists = {what: (-math.inf, known) for what, (_, known) in self._lists.items()}
        return saved

    def _send(self, record: LabelRecord) -> None:
        names = [{"name": name} for name, _ in sorted(record.labels.items(), key=_value) if record.voxels[name]]
        current = self.library.current(record.image)
        if not names or current is None:  # nothing is painted, which a DICOM SEG cannot say
            return
        file = ""
        try:
            series = str(self.place(record.image).with_name(record.image))
            # MONAI Label takes the n-th name for the n-th value that occurs.
            file = nifti_to_dicom_seg(series, str(current.label), names)
            uid = dicom_web_upload_dcm(file, self._client)
        except Exception as error:  # of the program, of what it wrote, and all that a stranger's server may cause
            logger.warning("a label was not sent to the PACS: %s", type(error).__name__)
            raise PacsError(
                f"the label is kept here as version {record.version}, but the PACS did not take it: "
                "save it again when the PACS is up"
            ) from error
        finally:
            if file:
                Path(file).unlink(missing_ok=True)
        self.update_label_info(record.image, record.tag, {"SeriesInstanceUID": uid})

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


def _value(item: tuple[str, int]) -> int:
    return item[1]


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
