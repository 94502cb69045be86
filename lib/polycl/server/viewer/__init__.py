"""OHIF as MONAI Label brings it, and `polycl.js`, which adds what it lacks: a brush, propagation, and saving.

What its page and its style sheet would fetch from other hosts is taken out of them.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response

OURS = Path(__file__).with_name("polycl.js")
SCRIPT = f'<script src="/ohif/{OURS.name}"></script></head>'
"""At the end of the head: after the viewer's configuration, before its own code, which is deferred."""
ELSEWHERE = re.compile(r'<link\b[^>]*\bhref="(?:https?:)?//[^>]*>|@import url\(["\']?(?:https?:)?//[^)]*\);?')
HASHED = re.compile(r"\b[0-9a-f]{20}\b")
"""In the names of files whose contents never change."""
FOREVER, ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"


def viewer_file(arguments: dict[str, Any]) -> Response:
    """The file of the viewer that the endpoint's `path` names, or its page, which has addresses of its own."""
    folder, path = viewer_folder(), str(arguments["path"])
    file = OURS if path == OURS.name else (folder / path).resolve()
    if file != OURS and not (file.is_file() and file.is_relative_to(folder)):
        file = folder / "index.html"
    headers = {"Cache-Control": FOREVER if HASHED.search(file.name) else ASK_AGAIN}
    if file.suffix in (".html", ".css"):
        text = ELSEWHERE.sub("", file.read_text("utf-8"))
        kind = f"text/{file.suffix[1:]}"
        return Response(text.replace("</head>", SCRIPT, 1), media_type=kind, headers=headers)
    return FileResponse(file, headers=headers)


def viewer_folder() -> Path:
    """Where MONAI Label keeps the viewer."""
    package = find_spec("monailabel")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).resolve().parent / "endpoints" / "static" / "ohif"
