"""Whether a server works in a state folder: each holds a lock there while it lives, together with others.

Whoever replaces the files of the folder needs the lock alone. It is the system's: a killed server lets go of it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from polycl.errors import InputError

LOCK = ".serving.lock"


def serving(state: Path) -> IO[bytes]:
    """The lock on the folder, shared with other servers, until what is returned is closed or the process ends.

    InputError while a back-up is restored there.
    """
    file = (state / LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError("a back-up is being restored into this state folder: wait until that is done") from None
    except OSError:  # a file system without locks: then a restore cannot tell either
        pass
    return file


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Inside, no server starts in the folder. InputError if one works there."""
    with (state / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("a server works in this state folder: stop it first", hint=os.fspath(state)) from None
        except OSError:
            pass
        yield
