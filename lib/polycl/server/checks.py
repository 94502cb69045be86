"""What a request's parameters must be before MONAI Label sees them; it trusts them all, also as parts of paths."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from fastapi import UploadFile
from monailabel.interfaces.utils.app import app_instance

from polycl.errors import InputError, NotFoundError, PolyclError
from polycl.monailabel.folders import IMAGE_SUFFIXES

NAMES = ("model", "image", "id", "label", "tag", "strategy", "session_id")
OURS = ("model", "image", "session", "description")
CHECKSUMS = ("SHA256", "SHA512", "MD5")


class BadRequest(PolyclError):
    """A parameter that is not even of the right form."""


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises a PolyclError if the arguments of the endpoint called `name` cannot be used."""
    for key in NAMES:
        # With a session, Slicer sends the name of its volume as the image, which may hold anything and is not used.
        in_use = key != "image" or not arguments.get("session_id")
        if in_use and isinstance(value := arguments.get(key), str):
            _check_name(key, value)
    if ".." in str(arguments.get("path", "")).replace("\\", "/").split("/"):  # out of the PACS's DICOMweb root
        raise BadRequest("path may not hold ..")
    for key in ("params", "info"):
        if isinstance(text := arguments.get(key), str):
            _check_object(key, text)
    _check_checksum(arguments.get("check_sum"))
    if session := arguments.get("session_id"):
        _check_session(session)
    if name == "api_add_image":
        _check_suffix(arguments["file"], IMAGE_SUFFIXES, "images in the store")
    if arguments.get("uncompress"):
        for file in arguments["files"]:
            _check_suffix(file, (".zip",), "archives")
    if "wsi" in name:
        raise NotFoundError("whole-slide images are not supported here; POST /infer/MODEL is for volumes")
    if name == "gpu_info" and shutil.which("nvidia-smi") is None:
        raise NotFoundError("there is no NVIDIA driver on this machine")
    if name == "api_download_dataset" and not app_instance().datastore().datalist():
        raise NotFoundError("no image in this store has a final label yet")


def _check_name(key: str, value: str) -> None:
    if "/" in value or "\\" in value or "\0" in value or value in (".", ".."):
        raise BadRequest(f"{key} must be a name, not a path")


def _check_object(key: str, text: str) -> None:
    try:
        value = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRequest(f"{key} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{key} must be a JSON object, like {{}}")
    if key == "params" and (taken := [name for name in OURS if name in value]):
        raise BadRequest(f"{key} may not set {', '.join(taken)}: the address of the request does")


def _check_checksum(value: object) -> None:
    if isinstance(value, str) and ":" in value and value.split(":")[0] not in CHECKSUMS:
        raise BadRequest(f"check_sum must be one of {', '.join(CHECKSUMS)}, as in SHA256:…")


def _check_session(session_id: str) -> None:
    sessions = app_instance().sessions()
    if sessions is not None and sessions.get_session(session_id, update_ts=False) is None:
        raise NotFoundError("no such session, or it expired: send the image again with PUT /session/")


def _check_suffix(file: UploadFile, suffixes: tuple[str, ...], what: str) -> None:
    if not (file.filename or "").lower().endswith(suffixes):
        raise InputError(f"{what} must be named {', '.join('*' + suffix for suffix in suffixes)}")
