"""What a request's parameters must be before MONAI Label sees them; it trusts them all, also as parts of paths."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile

from polycl.accounts import Role
from polycl.errors import NotFoundError, PolyclError
from polycl.labels.saving import LABEL_SUFFIXES
from polycl.monailabel.folders import BadRequest, check_id, is_within
from polycl.monailabel.store import IndexedStore, LocalStore
from polycl.server.connection import identity
from polycl.server.parameters import check_noted, keep_known
from polycl.server.uploads import check_upload, prepare_archive, prepare_image, suffix_of

NAMES = ("model", "image", "id", "label", "tag", "strategy", "session_id")
OURS = ("model", "image", "session", "description")
CHECKSUMS = ("SHA256", "SHA512", "MD5")
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DEPTH = 32
"""Of JSON that may be kept: the store's own reader goes to 200, and FastAPI to fewer."""


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Raises a PolyclError if the arguments of the endpoint called `name` cannot be used.

    Gives what is to be stored plain names; see `polycl.server.uploads`.
    """
    for key in NAMES:
        # With a session, Slicer sends the name of its volume as the image, which may hold anything and is not used.
        in_use = key != "image" or not arguments.get("session_id")
        if in_use and isinstance(value := arguments.get(key), str):
            check_id(key, value)
    if ".." in str(arguments.get("path", "")).replace("\\", "/").split("/"):  # out of the PACS's DICOMweb root
        raise BadRequest("path may not hold ..")
    for key in ("params", "info"):
        _check_object(key, arguments.get(key), fixed=OURS if _names_its_target(name, arguments) else ())
    _check_checksum(arguments.get("check_sum"))
    if session := arguments.get("session_id"):
        _check_session(session)
    _check_allowed(name, arguments)
    _check_there(name, arguments)
    _check_supported(name, arguments)
    check_noted(name, arguments)
    _check_files(name, arguments)
    keep_known(name, arguments)


class NotAllowed(PolyclError):
    """What nobody may do over HTTP."""

    status = 405


class Forbidden(PolyclError):
    """What the role of the one who asks does not allow."""

    status = 403


def _check_allowed(name: str, arguments: dict[str, Any]) -> None:
    """What the table of roles (`polycl.server.roles`) cannot tell from the address of a request."""
    if name in ("api_update_model", "api_delete_model"):
        raise NotAllowed("models are published by polycl, not uploaded")
    user = identity()
    if "infer" in name and user is not None and user.role < Role.ANNOTATOR and said(arguments).get("save_label"):
        raise Forbidden(f"save_label needs the role {Role.ANNOTATOR}; you have {user.role}")
    if name == "api_save_label" and isinstance(store := app_instance().datastore(), IndexedStore):
        _check_folder(store, arguments["tag"])


def _check_folder(store: IndexedStore, tag: str) -> None:
    if not is_within(store.folder, store.folder / "labels" / tag):
        raise BadRequest("tag must name a folder of the store")


def said(arguments: dict[str, Any]) -> dict[str, Any]:
    """The params of a request, as text or parsed by FastAPI; checked before."""
    params = arguments.get("params")
    return dict(json.loads(params) if isinstance(params, str) and params else params or {})


def _check_supported(name: str, arguments: dict[str, Any]) -> None:
    if "wsi" in name:
        raise NotFoundError("whole-slide images are not supported here; POST /infer/MODEL is for volumes")
    if name == "gpu_info" and shutil.which("nvidia-smi") is None:
        raise NotFoundError("there is no NVIDIA driver on this machine")
    if name == "api_download_dataset" and not app_instance().datastore().datalist():
        raise NotFoundError("no image in this store has a final label yet")
    if arguments.get("output") == "dicom_seg" and not isinstance(app_instance().datastore(), DICOMWebDatastore):
        raise BadRequest("output=dicom_seg needs a DICOMweb store; use output=image or all")


def _check_there(name: str, arguments: dict[str, Any]) -> None:
    """NotFoundError for names that MONAI Label would take in silence. What a PACS has is not asked here."""
    app = app_instance()
    if name == "api_run" and "model" in arguments:  # batch inference; those without are for all trainers or scorings
        app.require_model(arguments["model"])
    for endpoint, key, what, known in (
        ("api_run_model", "model", "trainer", app._trainers),
        ("api_run_method", "method", "scoring method", app._scoring_methods),
    ):
        if name == endpoint and arguments[key] not in known:
            raise NotFoundError(f"no {what} is called {arguments[key]!r}; there are: {', '.join(known) or 'none'}")
    store = app.datastore()
    if not isinstance(store, LocalStore):
        return
    if name == "api_get_image_info" and not store.get_image_uri(arguments["image"]):
        raise NotFoundError("no such image in this store")
    if name in ("api_get_label_info", "api_remove_label"):
        label = arguments["label" if "label" in arguments else "id"]
        if not store.get_label_uri(label, arguments["tag"]):
            raise NotFoundError("no such label in this store")


def _check_files(name: str, arguments: dict[str, Any]) -> None:
    sent = [arguments.get("file"), arguments.get("label"), *(arguments.get("files") or ())]
    for file in sent:
        if isinstance(file, UploadFile):
            check_upload(file)
    if isinstance(painted := arguments.get("label"), UploadFile):
        suffix_of(painted, LABEL_SUFFIXES, "labels")
        if "infer" in name:
            _keep_file(arguments)
    if name == "api_add_image":
        prepare_image(arguments)
    if name == "api_create_session":
        unpacked = [prepare_archive(file) if arguments["uncompress"] else file.size or 0 for file in arguments["files"]]
        if (sessions := app_instance().sessions()) is not None:
            sessions.require_room(sum(unpacked))


def _keep_file(arguments: dict[str, Any]) -> None:
    """MONAI Label lets the params' `label`, a name, take the place of the file of that name."""
    params = said(arguments)
    if isinstance(arguments.get("params"), str) and "label" in params:
        name = params.pop("label")
        arguments["params"] = json.dumps({"selected_label_name": name} | params)


def _names_its_target(name: str, arguments: dict[str, Any]) -> bool:
    """Whether the address of the request says what it is about, which MONAI Label would let the params change."""
    return isinstance(arguments.get("params"), str) or (name == "api_run" and "model" in arguments)


def _check_object(key: str, given: object, fixed: tuple[str, ...]) -> None:
    """BadRequest unless `given`, as text or parsed by FastAPI, is an object that can be kept, and sent, as JSON.

    And if it holds one of the keys `fixed`, as params.
    """
    if given is None:
        return
    try:
        value = json.loads(given or "{}") if isinstance(given, str) else given
        # Python reads and writes NaN, and text that is no Unicode; other readers, the store's among them, do not.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        too_deep = _depth(value) > MAX_DEPTH
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{key} is not JSON: {_reason(error)}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{key} must be a JSON object, like {{}}")
    if too_deep:
        raise BadRequest(f"{key} is nested too deeply: {MAX_DEPTH} levels are allowed")
    if "label_tag" in value and value["label_tag"] is not None:
        check_id("label_tag", value["label_tag"])
    if key == "params" and (taken := [name for name in fixed if name in value]):
        raise BadRequest(f"{key} may not set {', '.join(taken)}: the address of the request does")


def _check_checksum(value: object) -> None:
    if isinstance(value, str) and ":" in value and value.split(":")[0] not in CHECKSUMS:
        raise BadRequest(f"check_sum must be one of {', '.join(CHECKSUMS)}, as in SHA256:…")


def _check_session(session_id: str) -> None:
    sessions = app_instance().sessions()
    if sessions is None:
        return
    found = sessions.get_session(session_id, update_ts=False) if SESSION_ID.fullmatch(session_id) else None
    # What a session says of its image lies in a file beside it.
    if found is None or not is_within(Path(sessions.store_path), Path(found.image)):
        raise NotFoundError("no such session, or it expired: send the image again with PUT /session/")


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _reason(error: Exception) -> str:
    return "it holds text that is not Unicode" if isinstance(error, UnicodeError) else str(error)
