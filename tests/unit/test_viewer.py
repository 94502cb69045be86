"""The files of the viewer as they are served."""

import pytest

from polycl.server.viewer import viewer_file, viewer_folder

pytestmark = pytest.mark.unit


def served(path: str) -> tuple[str, str, str]:
    """Type, caching and text of what is answered."""
    reply = viewer_file({"path": path})
    text = getattr(reply, "path", None)
    content = text.read_text("utf-8", errors="replace") if text is not None else bytes(reply.body).decode()
    return reply.headers["content-type"].partition(";")[0], reply.headers["cache-control"], content


@pytest.mark.parametrize("path", ["", "index.html", "monai-label", "a/b", "../ohif.py", "/etc/hostname"])
def test_every_address_of_the_viewer_is_its_page_with_our_script(path: str) -> None:
    kind, cached, text = served(path)
    assert (kind, cached) == ("text/html", "no-cache")
    head = text.partition("</head>")[0]
    assert head.endswith('<script src="/ohif/polycl.js"></script>')
    assert head.index("/ohif/app-config.js") < head.index("/ohif/polycl.js")


def test_page_and_style_name_no_other_host() -> None:
    for path in ("", "app.bundle.css"):
        text = served(path)[2]
        assert "https://fonts" not in text
        assert "//fonts" in (viewer_folder() / (path or "index.html")).read_text("utf-8")  # the test can fail


def test_our_script_is_asked_for_again_and_bundles_are_not() -> None:
    assert served("polycl.js")[:2] == ("text/javascript", "no-cache")
    bundle = next(viewer_folder().glob("app.bundle.*.js")).name
    assert "immutable" in served(bundle)[1]
    assert served("assets/favicon-16x16.png")[0] == "image/png"
