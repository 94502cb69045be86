"""Which role each route needs. What is not in the table is refused to everybody once people have to sign in.

`open`: everybody; `closed`: nobody; `local`: programs on this machine, and whoever signed in.

The first row whose methods and path fit decides. `{}` stands for one part of a path, `**` for the rest of it.
"""

import re
from dataclasses import dataclass
from typing import Literal

from polycl.accounts import Role

Access = Role | Literal["open", "closed", "local"]
READ = ("GET", "HEAD")
ANY = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
READER, ANNOTATOR, REVIEWER, ADMIN = Role


@dataclass(frozen=True)
class Route:
    """A row of the table. `uploads`: the body may be a file; `writes`: what comes stays here, and needs room."""

    methods: tuple[str, ...]
    path: str
    access: Access
    uploads: bool = False
    writes: bool = False


TABLE: tuple[Route, ...] = (
    # To sign in, and for those who watch over the server.
    Route(READ, "/healthz", "open"),
    Route(READ, "/readyz", "open"),
    Route(READ, "/metrics", "local"),  # it tells how busy people are, and nothing of a patient or user
    Route(READ, "/favicon.ico", "open"),
    Route(READ, "/auth/", "open"),
    Route(("POST",), "/auth/token", "open"),
    Route(READ, "/auth/token/valid", READER),
    Route((*READ, "POST"), "/login", "open"),
    Route(("POST",), "/logout", "open"),
    # Would drop the app, and all that it knows, at anybody's wish.
    Route(ANY, "/reload", "closed"),
    # Pages.
    Route(READ, "/", READER),
    Route(READ, "/docs", READER),
    Route(READ, "/openapi.json", READER),
    Route(READ, "/ohif**", READER),
    Route(READ, "/static/**", READER),
    Route(READ, "/polycl**", READER),
    Route(("DELETE",), "/polycl/work/{}", READER),  # only what one asked for oneself
    Route(("POST",), "/polycl/api/training/start", REVIEWER, writes=True),
    Route(("POST",), "/polycl/api/pretraining/start", REVIEWER, writes=True),
    Route(ANY, "/polycl**", REVIEWER),
    # Work on studies. Saving the result of an inference needs an annotator; see `polycl.server.checks`.
    Route(READ, "/info/", READER),
    Route(("POST",), "/infer/wsi/{}", READER, uploads=True),
    Route(("POST",), "/infer/wsi_v2/{}", READER, uploads=True),
    Route(("POST",), "/infer/{}", READER, uploads=True),
    Route(("POST",), "/activelearning/{}", READER),
    Route(READ, "/session/{}", READER),
    Route(("PUT",), "/session/", READER, uploads=True, writes=True),
    Route(("DELETE",), "/session/{}", READER),
    Route(READ, "/datastore/dataset", ANNOTATOR),
    Route(READ, "/datastore/", READER),
    Route(READ, "/datastore/image", READER),
    Route(READ, "/datastore/image/info", READER),
    Route(READ, "/datastore/label", READER),
    Route(READ, "/datastore/label/info", READER),
    Route(("PUT",), "/datastore/", ANNOTATOR, uploads=True, writes=True),
    Route(("PUT",), "/datastore/image", ANNOTATOR, uploads=True, writes=True),
    Route(("PUT",), "/datastore/image/info", ANNOTATOR),
    Route(("PUT",), "/datastore/label", ANNOTATOR, uploads=True, writes=True),
    Route(("PUT",), "/datastore/label/info", ANNOTATOR),
    Route(("PUT",), "/datastore/updatelabelinfo", ANNOTATOR),
    Route(("DELETE",), "/datastore/label", REVIEWER),
    Route(("DELETE",), "/datastore/image", ADMIN),
    Route(("DELETE",), "/datastore/", ADMIN),
    # The PACS, with the server's own account there.
    Route(READ, "/proxy/dicom/**", READER),
    Route(("POST",), "/proxy/dicom/**", ANNOTATOR),
    # What all others work with afterwards.
    Route(READ, "/train/", READER),
    Route(("POST",), "/train/", REVIEWER, writes=True),
    Route(("POST",), "/train/{}", REVIEWER, writes=True),
    Route(("DELETE",), "/train/", REVIEWER),
    Route(READ, "/scoring/", READER),
    Route(("POST",), "/scoring/", REVIEWER),
    Route(("POST",), "/scoring/{}", REVIEWER),
    Route(("DELETE",), "/scoring/", REVIEWER),
    Route(READ, "/batch/infer", READER),
    Route(("POST",), "/batch/infer/{}", ADMIN, writes=True),
    Route(("DELETE",), "/batch/infer", ADMIN),
    # The machine.
    Route(READ, "/logs/", ADMIN),
    Route(READ, "/logs/gpu", ADMIN),
    Route(READ, "/model/{}", ADMIN),
    Route(READ, "/model/info/{}", ADMIN),
    Route(("PUT", "DELETE"), "/model/{}", ADMIN, uploads=True),
)


def route_of(method: str, path: str) -> Route | None:
    """The row for a request; None if there is none. `path` as the router gets it, without escapes."""
    for pattern, route in _PATTERNS:
        if method in route.methods and pattern.fullmatch(path):
            return route
    return None


def _pattern(path: str) -> re.Pattern[str]:
    text = re.escape(path).replace(re.escape("{}"), "[^/]+")
    if text.endswith(r"/\*\*"):
        text = text.removesuffix(r"/\*\*") + "/.*"
    elif text.endswith(r"\*\*"):
        text = text.removesuffix(r"\*\*") + "(/.*)?"
    return re.compile(text, re.DOTALL)


_PATTERNS = tuple((_pattern(route.path), route) for route in TABLE)
