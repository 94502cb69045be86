"""Headers that tell browsers what pages of this server may do.

The bundled OHIF needs WebAssembly, code from text in its bundles, workers from blobs and inline styles and scripts; it
gets fonts and flags from elsewhere, which is not allowed and not missed. A response that brings a policy of its own
keeps it.
"""

from starlette.datastructures import MutableHeaders

_COMMON = "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; script-src 'self'; " + _COMMON
)
OHIF_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:{more}; " + _COMMON
)
DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data: https:; style-src 'self' 'unsafe-inline' https:; worker-src blob:; "
    "font-src 'self' https:; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; " + _COMMON
)
"""MONAI Label's pages about its own interface, which get their script from there."""
PUBLIC = ("/ohif", "/static/")
"""Program code, the same for everybody; all else may say something of a patient, and stays in no cache."""


def harden(path: str, headers: MutableHeaders, origins: list[str]) -> None:
    """Add to the `headers` of the answer to `path`. `origins` are those that OHIF's panel may name as its server."""
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    if not path.startswith(PUBLIC):
        headers.setdefault("Cache-Control", "no-store")
    if headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("Content-Security-Policy", _policy(path, origins))


def _policy(path: str, origins: list[str]) -> str:
    if path.startswith("/ohif"):
        return OHIF_POLICY.format(more="".join(f" {origin}" for origin in origins))
    return DOCS_POLICY if path in ("/", "/docs") else POLICY
