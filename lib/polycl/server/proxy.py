"""`/proxy/dicom/…`: what OHIF reads of the PACS, through this server, as a browser may not reach the PACS itself.

It reaches the configured DICOMweb root and nothing else, and only reads. Queries stay as they are, as OHIF's filters
are in them. Answers are passed on while they arrive. The browser's cookies and passwords stay here; the server's own
account is used, and redirections are not followed.
"""

import logging
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import requests
from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings as server_settings
from monailabel.interfaces.utils.app import app_instance

from polycl.errors import NotFoundError
from polycl.monailabel.folders import BadRequest
from polycl.monailabel.pacs import PacsStore
from polycl.monailabel.pacs_client import PacsError, account_refused

logger = logging.getLogger(__name__)

Service = Literal["wado", "qido", "stow", ""]
PASSED_ON = ("accept", "accept-charset", "accept-encoding", "range", "if-none-match", "if-modified-since")
PASSED_BACK = (
    *("content-type", "content-length", "content-encoding", "content-range", "accept-ranges"),
    *("etag", "last-modified", "cache-control", "warning", "x-total-count"),
)
RESOURCE = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@|-]+")
PIECE_BYTES = 1 << 20
"""An image of a CT at once: each piece goes through a thread."""


def forward(service: Service, arguments: dict[str, Any]) -> Response:
    """The PACS's answer to the request in `arguments`, for a `path` below its DICOMweb root.

    NotFoundError where images are in a folder, BadRequest for a path that leads elsewhere. What keeps the PACS from
    answering is a requests exception or a PacsError.
    """
    store = app_instance().datastore()
    if not isinstance(store, PacsStore):
        raise NotFoundError("this server has no PACS: its images are in a folder")
    request: Request = arguments["request"]
    if request.method != "GET":
        raise HTTPException(405, "the PACS is only read through here; PUT /datastore/label saves a label to it")
    url = address(str(store.name()), service, str(arguments["path"]), request.url.query)
    headers = {name: value for name in PASSED_ON if (value := request.headers.get(name)) is not None}
    answer = store.session.get(
        url, headers={"accept-encoding": "identity", **headers}, stream=True, allow_redirects=False
    )
    if answer.status_code < 300 or answer.status_code == 304:
        kept = {name: value for name in PASSED_BACK if (value := answer.headers.get(name)) is not None}
        return StreamingResponse(_pieces(answer), answer.status_code, headers=kept)
    answer.close()
    if answer.status_code < 400:
        raise PacsError("the PACS redirects to another address, which is not followed: give the server that address")
    if account_refused(answer.status_code) or answer.status_code >= 500:
        raise requests.HTTPError(response=answer)
    raise HTTPException(answer.status_code, f"the PACS answered {answer.status_code}")


def address(root: str, service: Service, path: str, query: str) -> str:
    """The address of a resource below the DICOMweb root. BadRequest for a path that could lead anywhere else."""
    parts = path.split("/")
    if not all(RESOURCE.fullmatch(part) and part not in (".", "..") for part in parts):
        raise BadRequest("path must name a DICOMweb resource, as studies/UID/series")
    prefix = {
        "wado": server_settings.MONAI_LABEL_WADO_PREFIX,
        "qido": server_settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": server_settings.MONAI_LABEL_STOW_PREFIX,
        "": None,
    }[service]
    if service == "qido" and parts[-1] == "metadata":  # which OHIF asks of the address for searches
        prefix = server_settings.MONAI_LABEL_WADO_PREFIX
    base = root.rstrip("/")
    below = "/".join(part for part in (str(prefix or "").strip("/"), quote(path, safe="/~!$&'()*+,;=:@|")) if part)
    url = f"{base}/{below}" + (f"?{query}" if query else "")
    sent, allowed = urlsplit(str(requests.Request("GET", url).prepare().url)), urlsplit(base)
    if sent.netloc.lower() != allowed.netloc.lower() or not sent.path.startswith(allowed.path + "/"):
        raise BadRequest("path leads out of the DICOMweb root")
    return url


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """The body as the PACS sends it, also if it is compressed. One that breaks off breaks off for the browser too."""
    with answer:
        try:
            yield from answer.raw.stream(PIECE_BYTES, decode_content=False)
        except Exception as error:
            logger.warning("the PACS broke off an answer: %s", type(error).__name__)
            raise


ENDPOINTS = {
    "proxy_wado": partial(forward, "wado"),
    "proxy_qido": partial(forward, "qido"),
    "proxy_stow": partial(forward, "stow"),
    "proxy": partial(forward, ""),
}
"""By the name of MONAI Label's endpoint that each is in place of."""
