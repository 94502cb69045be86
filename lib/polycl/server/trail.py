"""What of the requests goes into the audit trail (`polycl.audit`): what changes something for others, and signing in.

The guard writes a line when the answer is out; what only the endpoint knows, such as the version that was saved, the
endpoint notes on the way (`note`).
"""

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from anyio import CancelScope
from anyio.to_thread import run_sync
from starlette.types import Scope

from polycl.audit import Audit
from polycl.server.connection import Connection, current
from polycl.server.roles import route_of

logger = logging.getLogger(__name__)

ACTION, IMAGE, CLIENT = "action", "image", "client"
ACTIONS: Mapping[tuple[str, str], str] = {
    ("POST", "/auth/token"): "user.sign-in",
    ("POST", "/login"): "user.sign-in",
    ("POST", "/logout"): "user.sign-out",
    ("PUT", "/datastore/label"): "label.save",
    ("PUT", "/datastore/label/info"): "label.note",
    ("PUT", "/datastore/updatelabelinfo"): "label.note",
    ("DELETE", "/datastore/label"): "label.delete",
    ("PUT", "/datastore/"): "image.add",
    ("PUT", "/datastore/image"): "image.add",
    ("DELETE", "/datastore/image"): "image.delete",
    ("DELETE", "/datastore/"): "image.delete",
    ("GET", "/datastore/dataset"): "data.download",
    ("POST", "/proxy/dicom/**"): "pacs.store",
    ("POST", "/train/"): "training.start",
    ("POST", "/train/{}"): "training.start",
    ("DELETE", "/train/"): "training.cancel",
    ("POST", "/batch/infer/{}"): "batch.start",
}
"""By method and row of the table of routes."""
PAGE_ACTIONS: Mapping[str, str] = {
    "/polycl/api/training/start": "training.start",
    "/polycl/api/training/cancel": "training.cancel",
    "/polycl/api/pretraining/start": "pretraining.start",
    "/polycl/api/models/publish": "model.publish",
    "/polycl/api/models/rollback": "model.rollback",
}
"""Of the page, by path."""
IMAGE_PARAMETERS = ("image", "id", "label")
LONGEST = 200
"""Characters of what a client says of itself."""


def note(**what: Any) -> None:
    """Note something for the line of the request under way; nothing where there is none.

    `action`, `image` and `client` mean what they do in a line; all else is a detail.
    """
    if (connection := current.get()) is not None:
        connection.noted.update(what)


def action_of(method: str, path: str) -> str | None:
    """What a request does that the trail tells of; None for anything else."""
    if method == "POST" and path in PAGE_ACTIONS:
        return PAGE_ACTIONS[path]
    route = route_of(method, path)
    return ACTIONS.get((method, route.path)) if route else None


async def tell(audit: Audit, scope: Scope, connection: Connection, status: int) -> None:
    """Add the line of a request that was answered with `status`. A trail that cannot be written is an error logged."""
    noted = dict(connection.noted)
    action = noted.pop(ACTION, None) or action_of(scope["method"], scope["path"])
    if action is None or not 0 < status < 500 or (status >= 400 and not action.startswith("user.")):
        return
    if status == 429:  # guessing, the first tries of which are told
        return
    query = parse_qs(scope.get("query_string", b"").decode(errors="replace"))
    image = noted.pop(IMAGE, None) or next((query[name][0] for name in IMAGE_PARAMETERS if name in query), "")
    client = str(noted.pop(CLIENT, None) or connection.address)[:LONGEST]
    user = str(noted.pop("user", None) or (connection.identity.name if connection.identity else ""))[:LONGEST]
    outcome = "refused" if status >= 400 else "done"
    details = noted | ({"status": status} if status >= 400 else {})

    def add() -> None:
        audit.add(
            action,
            image=str(image),
            details=details,
            outcome=outcome,
            user=user,
            client=client,
            request=connection.request_id,
        )

    with CancelScope(shield=True):
        try:
            await run_sync(add)
        except OSError as error:
            logger.error("the audit trail cannot be written (%s): %s by %r", error.strerror, action, user)
