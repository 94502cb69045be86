"""The audit trail: who changed what, when, in lines that are only ever added.

    STATE/audit/audit.jsonl         one JSON object a line, on disk before the next is written
    STATE/audit/audit-000001.jsonl  earlier lines; never removed by the program
    STATE/audit/key                 made once; readable by its owner alone, as the lines are

Ids of images may be a patient's, so a line holds a keyed hash of them (HMAC-SHA256): without the key nobody can try
names until one fits, with it `polycl audit --image ID` finds every line about an image. Several processes may write.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

CURRENT, KEY = "audit.jsonl", "key"
BYTES = 10 << 20
"""A file that has grown above is kept aside, and a new one begun."""


class Line(BaseModel):
    """One thing that happened.

    Attributes:
        action: what, such as `label.save`; `outcome` is "done", or "refused" with its HTTP status in `details`.
        user: who signed in; "" where nobody has to. `client`: what the client calls itself, or its address.
        request: id of the HTTP request; "" for the command line.
        image: keyed hash of the image's id.
        details: what else is known, such as model and version; nothing about a patient.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    action: str
    outcome: str = "done"
    user: str = ""
    client: str = ""
    request: str = ""
    image: str = ""
    details: dict[str, Any] = {}


class Audit:
    """The trail in a folder. Safe for several threads and processes."""

    def __init__(self, folder: Path, limit: int = BYTES) -> None:
        self.folder, self._limit = folder, limit

    def add(self, action: str, *, image: str = "", details: Mapping[str, Any] | None = None, **what: str) -> None:
        """Add a line; it is on disk when this returns. OSError where it cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            named = self._hash(image, self._key()) if image else ""
            line = Line(at=datetime.now(UTC), action=action, image=named, details=dict(details or {}), **what)
            path = self.folder / CURRENT
            if path.exists() and path.stat().st_size > self._limit:
                path.rename(self.folder / f"audit-{len(self._earlier()) + 1:06d}.jsonl")
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(file).st_size
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a machine that went down
                _write(file, b"\n" * torn + line.model_dump_json(exclude_defaults=True).encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)

    def lines(
        self, since: datetime | None = None, *, image: str = "", user: str = "", action: str = ""
    ) -> Iterator[Line]:
        """Lines from `since` on, oldest first, of one image, user or (kind of) action; those torn are left out."""
        key = self._read_key()
        named = self._hash(image, key) if image and key else ""
        if image and not named:
            return
        for path in (*self._earlier(), self.folder / CURRENT):
            with suppress(FileNotFoundError), path.open("rb") as stream:
                for text in stream:
                    line = _parsed(text)
                    if line is None or (since is not None and line.at < since):
                        continue
                    about = line.action == action or line.action.startswith(f"{action}.")
                    if named in ("", line.image) and user in ("", line.user) and (not action or about):
                        yield line

    def _earlier(self) -> list[Path]:
        return sorted(self.folder.glob("audit-*.jsonl"))

    def _key(self) -> bytes:
        """Made at the first use; with the lock held."""
        if (key := self._read_key()) is None:
            key = secrets.token_hex(32).encode()
            file = os.open(self.folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write(file, key)
                os.fsync(file)
            finally:
                os.close(file)
        return key

    def _read_key(self) -> bytes | None:
        try:
            return (self.folder / KEY).read_bytes() or None
        except FileNotFoundError:
            return None

    @staticmethod
    def _hash(image: str, key: bytes) -> str:
        return hmac.new(key, image.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _parsed(text: bytes) -> Line | None:
    try:
        return Line.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        return None
