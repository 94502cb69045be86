"""Writing where the disk may be full, and what killed processes leave behind."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from polycl.errors import InputError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
UNCHANGED = "nothing was saved, and what was saved before is as it was"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
ABANDONED_SECONDS = 3600.0
"""What is half written for longer belongs to a process that was killed."""


@contextmanager
def storing() -> Iterator[None]:
    """Makes StorageErrors of a full or closed disk, and of a lock that another process does not give back."""
    try:
        yield
    except (OSError, InputError) as error:
        reason = why_not_stored(error)
        if reason is None:
            raise
        raise StorageError(reason) from error


def why_not_stored(error: BaseException) -> str | None:
    """One line on a disk that is full or cannot be written, if that is what `error` or its cause is."""
    if isinstance(error, Timeout):
        return f"another program keeps this store locked; {UNCHANGED}: try again"
    if isinstance(error, OSError):
        if error.errno in FULL:
            return f"the disk of the server is full; {UNCHANGED}: make room there and save again"
        if error.errno in CLOSED:
            return f"the store of the server cannot be written ({error.strerror}); {UNCHANGED}"
        return None
    inner = error.__cause__ or error.__context__  # writers of files make InputErrors of OSErrors
    return why_not_stored(inner) if isinstance(error, InputError) and isinstance(inner, OSError) else None


def is_abandoned(path: Path) -> bool:
    """Whether a staged folder or temporary file is so old that nobody can be at work on it."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def is_temporary(path: Path) -> bool:
    """Whether `polycl.files.replacing` made a file of this name."""
    return path.is_file() and TEMPORARY.fullmatch(path.name) is not None
