"""What a client is told when a request fails: our reasons as 4xx, everything else as 500 with an id for the log."""

import json
import logging
from collections.abc import Callable

import requests
from fastapi import HTTPException
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException as AnyHTTPException

from polycl.errors import PolyclError, StorageError
from polycl.labels.storage import FULL
from polycl.monailabel.pacs_client import reason_of
from polycl.server.connection import current, new_request_id

logger = logging.getLogger(__name__)

# What MONAI Label answers with 500, by how its text starts, and the status it should have.
_MISNAMED = {
    "Neither Image nor File": (400, "the request names no image: give image=ID, a file, or a session_id"),
    "Model File Name NOT configured": (405, "models are published by polycl, not uploaded"),
    "DICOM SEG format is not supported": (400, "output=dicom_seg needs a DICOMweb store; use output=image or all"),
}


def to_http(error: Exception) -> HTTPException:
    """The answer to a request that raised `error`. What is not the client's doing is logged under the id it gets."""
    if isinstance(error, AnyHTTPException):
        own = (
            error if isinstance(error, HTTPException) else HTTPException(error.status_code, error.detail, error.headers)
        )
        return _known(own)  # Starlette's, as of a body that cannot be parsed, are not FastAPI's
    if isinstance(error, PolyclError):
        again = getattr(error, "retry_after", None)
        return HTTPException(error.status, str(error), None if again is None else {"Retry-After": str(again)})
    for kind, answer in _ANSWERS.items():
        if isinstance(error, kind):
            return answer(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return HTTPException(StorageError.status, "the disk of the server is full: make room there and try again")
    return internal(error)


def internal(error: BaseException) -> HTTPException:
    """500 that says nothing but an id; the traceback is in the log under that id."""
    connection = current.get()
    request_id = connection.request_id if connection else new_request_id()
    logger.error("request %s failed", request_id, exc_info=error)
    return HTTPException(500, f"internal error {request_id}; the server's log says more under this id")


def _known(error: HTTPException) -> HTTPException:
    if error.status_code < 500:
        return error
    for start, (status, detail) in _MISNAMED.items():
        if str(error.detail).startswith(start):
            return HTTPException(status, detail)
    return internal(error)


def _monailabel(error: Exception) -> HTTPException:
    assert isinstance(error, MONAILabelException)
    message = str(error.msg).partition(";")[0]  # what follows is the whole request
    if error.error == MONAILabelError.INVALID_INPUT or "no such strategy" in message:
        return HTTPException(404 if "There is no" in message else 400, message)
    return internal(error)


def _pacs(error: Exception) -> HTTPException:
    assert isinstance(error, requests.RequestException)
    status = error.response.status_code if error.response is not None else None
    if status == 404:
        return HTTPException(404, "the PACS does not have what was asked for")
    logger.warning("the PACS failed: %s", type(error).__name__)
    return HTTPException(504 if isinstance(error, requests.Timeout) else 502, reason_of(error))


_ANSWERS: dict[type[Exception], Callable[[Exception], HTTPException]] = {
    ImageNotFoundException: lambda _: HTTPException(404, "no such image in this store"),
    LabelNotFoundException: lambda _: HTTPException(404, "no such label in this store"),
    MONAILabelException: _monailabel,
    requests.RequestException: _pacs,  # before the next: what a PACS answers is not the client's doing
    json.JSONDecodeError: lambda error: HTTPException(400, f"not JSON: {error}"),
}
