"""`PUT /datastore/label`: MONAI Label's answer, and what became of the label."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.config import settings as server_settings
from monailabel.interfaces.utils.app import app_instance

from polycl.errors import InputError, NotFoundError
from polycl.labels.saving import LABEL_SUFFIXES, Saved
from polycl.leases import notices
from polycl.monailabel.store import IndexedStore, LocalStore
from polycl.monailabel.work import person
from polycl.server.connection import identity
from polycl.server.trail import note
from polycl.server.uploads import on_disk, suffix_of

logger = logging.getLogger(__name__)

MAX_ANNOTATOR = 200


def save_label(arguments: dict[str, Any]) -> dict[str, Any]:
    """Save the label that the endpoint's `arguments` hold, and call the app's `on_save_label`.

    Raises NotFoundError for an unknown image, and what `IndexedStore.keep_label` raises.
    """
    app = app_instance()
    store: IndexedStore = app.datastore()
    image, tag = arguments["image"], arguments["tag"] or "final"
    if isinstance(store, LocalStore) and not Path(store.get_image_uri(image) or "/nowhere").is_file():
        raise NotFoundError("no such image in this store")
    params = json.loads(arguments["params"] or "{}")
    suffix = suffix_of(arguments["label"], LABEL_SUFFIXES, "labels")
    with on_disk(arguments["label"], f"label{suffix}") as path:
        sent = store.sent(path, params, annotator=_annotator(params, arguments.get("user")))
        saved = store.keep_label(image, tag, sent)
    note(client=sent.annotator, image=image, tag=tag, version=saved.record.version)
    told = notices(app.leases.see(image, person(sent.annotator)))
    saved = replace(saved, notes=(*saved.notes, *told))
    return _called(app, image) | {"image": image, "label": image} | reply(saved)


def reply(saved: Saved) -> dict[str, Any]:
    """What a client is told of a label that was saved."""
    record = saved.record
    return {
        "tag": record.tag,
        "version": record.version,
        "labels": record.labels,
        "voxels": record.voxels,
        "unknown": list(record.unknown),
        "known": record.model_dump(mode="json")["known"],
        "notes": list(saved.notes),
    }


def _called(app: Any, image: str) -> dict[str, Any]:
    """What the app adds; the label is saved whatever it does."""
    try:
        return dict(app.on_save_label(image, image) or {})
    except Exception:
        logger.exception("a label was saved, but what follows a save failed")
        return {}


def _annotator(params: dict[str, Any], user: Any) -> str:
    """The login where there is one, else what the client calls itself."""
    signed_in = identity()
    if signed_in is not None:
        return signed_in.name
    name = user.username if server_settings.MONAI_LABEL_AUTH_ENABLE else params.get("client_id")
    if name is not None and (not isinstance(name, str) or len(name) > MAX_ANNOTATOR):
        raise InputError(f"client_id must be a text of at most {MAX_ANNOTATOR} characters")
    return name or ""
