"""Checksums of files of weights, written as "sha256:<hex>", or "md5:<hex>" where a publisher gives no other.

An md5 shows a damaged download, not a forged one. What is loaded after it must be harmless by itself: tensors only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from polycl.errors import ModelError
from polycl.files import sha256_of

PATTERN = r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$"


def checksum(path: Path, kind: str = "sha256") -> str:
    """The checksum of a file, as in `PATTERN`."""
    with path.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()}"


def require(path: Path, expected: str) -> None:
    """ModelError unless the file has the checksum `expected`."""
    found = checksum(path, expected.partition(":")[0])
    if found != expected:
        raise ModelError(
            f"{path.name} has {found[:19]}…, but {expected[:19]}… is expected: fetch it again",
            hint=f"it is in {path.parent}",
        )


def checked(files: Sequence[Path], sums: Mapping[str, str] | None = None) -> str:
    """One sha256 (hex) for all of `files`, each checked against `sums` by file name where that has it.

    ModelError where one is missing or altered.
    """
    for file in files:
        if not file.is_file():
            raise ModelError(f"the weights {file.name} are missing", hint=f"they are looked for in {file.parent}")
        if (expected := (sums or {}).get(file.name)) is not None:
            require(file, expected)
    each = [sha256_of(file) for file in files]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
