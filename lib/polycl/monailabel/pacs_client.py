"""The DICOMweb client of a PACS: how it is reached, how long it may be silent, and what its answers mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings as server_settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from polycl.errors import InputError, PolyclError

CONNECT_SECONDS, SILENT_SECONDS = 5.0, 60.0
ANY_SYNTAX = ("application/dicom", "*")
CHUNK_BYTES = 1 << 24
"""The client searches all it holds of a file again with each chunk, so that small ones make large files slow."""


class PacsError(PolyclError):
    """The PACS answered, but not with what was asked for."""

    status = 502


class _ImpatientAdapter(HTTPAdapter):
    """Waits for a silent server only so long; requests alone waits for ever."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        options["timeout"] = options.get("timeout") or (CONNECT_SECONDS, SILENT_SECONDS)
        return super().send(*arguments, **options)


def connect(url: str) -> DICOMwebClientX:
    """A client of the PACS at `url`, with the account and paths of MONAI Label's settings.

    It does not try again what failed: a person waits, and can. InputError if `url` is no address.
    """
    session = open_session(url)
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


def open_session(url: str) -> requests.Session:
    """A session with the account of MONAI Label's settings, that does not wait for ever."""
    session = requests.Session()
    if "googleapis.com" in url:
        session = create_session_from_gcp_credentials()
    elif server_settings.MONAI_LABEL_DICOMWEB_USERNAME and server_settings.MONAI_LABEL_DICOMWEB_PASSWORD:
        session.auth = (server_settings.MONAI_LABEL_DICOMWEB_USERNAME, server_settings.MONAI_LABEL_DICOMWEB_PASSWORD)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _ImpatientAdapter())
    return session


def account_refused(status: int) -> bool:
    """Whether a status means that the PACS does not let this server in, which no client of ours can change."""
    return status in (401, 403, 407)


def reason_of(error: Exception) -> str:
    """Why a request to the PACS failed, for whoever made it; no more of the PACS's answer than its status."""
    if isinstance(error, PolyclError):
        return str(error)
    if isinstance(error, requests.Timeout):
        return "the PACS did not answer in time"
    response = error.response if isinstance(error, requests.RequestException) else None
    if response is not None and account_refused(response.status_code):
        return f"the PACS does not accept the account that this server uses (it answered {response.status_code})"
    if response is not None:
        return f"the PACS answered {response.status_code}"
    return "the PACS cannot be reached" if isinstance(error, OSError) else "the PACS answered nonsense"


def instances_of(client: DICOMwebClientX, study: str, series: str) -> Iterator[Dataset]:
    """The instances of a series as they come, compressed as the PACS has them: it may not be able to unpack them."""
    try:
        return iter(client.iter_series(study, series, media_types=(ANY_SYNTAX,)))
    except requests.HTTPError as error:
        if error.response is None or error.response.status_code not in (400, 406):
            raise
        return iter(client.iter_series(study, series))  # one that knows no "any"


def store(client: DICOMwebClientX, instance: Dataset) -> None:
    """Send one instance by STOW-RS. PacsError unless the PACS says that it has it now."""
    try:
        answer = client.store_instances([instance])
    except requests.RequestException:
        raise
    except Exception as error:  # parsing what a stranger answered raises nearly anything
        raise PacsError("the PACS answered what is no answer to STOW-RS") from error
    failed = answer.get("FailedSOPSequence")
    if failed:
        raise PacsError(f"the PACS refused it (reason {failed[0].get('FailureReason', 'unknown')})")
    stored = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()}
    if stored and str(instance.SOPInstanceUID) not in stored:
        raise PacsError("the PACS stored something else")
