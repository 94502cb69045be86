"""Images that clients sent for their own use (`PUT /session/`): whose they are, how long they stay, how much they take.

MONAI Label's sessions, but: with people who sign in, each has an owner, and for everybody else it does not exist; ids
cannot be guessed; what has expired goes before room is refused; a folder that is no session does not stop the clean-up.
"""

import threading
import time
import uuid
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from polycl.errors import StorageError

OWNER = "owner"
"""In a session's `meta`: the login of who made it, "" where nobody signed in."""
SHARE = 0.5
"""Of the room for all sessions, how much one person's may take."""
UNFINISHED_S = 3600.0
"""A folder without a description is being written; after so long by nobody."""


class NoRoom(StorageError):
    """The sessions take as much as they may."""

    retry_after = 60


class OwnedSessions(Sessions):  # type: ignore[misc, unused-ignore]
    """Sessions in `folder` that take `room` bytes at most and go `minutes` after they were last used."""

    def __init__(self, folder: Path, minutes: float, room: int) -> None:
        super().__init__(str(folder))
        self.expiry = max(1, round(minutes * 60))
        self._folder, self._room = folder, room
        self._adding = threading.Lock()

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """MONAI Label's, for whoever sends the request under way."""
        session_id, info = super().add_session(data_file, expiry, uncompress, session_id or uuid.uuid4().hex)
        info.meta[OWNER] = _who() or ""
        self._write_meta_info(session_id, info)
        return session_id, info

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """The session; None for one that is not there, has expired, or belongs to somebody else."""
        info = super().get_session(session_id, update_ts=False, fetch_cache=fetch_cache)
        if info is None or _expired(info) or _who() not in (None, _owner(info)):
            return None
        return super().get_session(session_id, update_ts=update_ts) if update_ts else info

    def remove_expired(self) -> int:
        """Remove what has expired, or was never finished. How many that were."""
        count = 0
        for folder in self._sessions():
            info = self._described(folder)
            unfinished = info is None and time.time() - _changed(folder) > UNFINISHED_S
            if unfinished or (info is not None and _expired(info)):
                self.remove_session(folder.name)
                count += 1
        return count

    def require_room(self, size: int) -> None:
        """NoRoom unless a session of `size` bytes may be added, when those that have expired are gone."""
        with self._adding:
            self.remove_expired()
            owner, taken, own = _who(), 0, 0
            for folder in self._sessions():
                info, held = self._described(folder), _size(folder)
                taken += held
                own += held if info is not None and owner in (None, _owner(info)) else 0
        if owner is not None and own + size > self._room * SHARE:
            raise NoRoom(
                f"your images on this server take {own >> 20} MiB, and may take {int(self._room * SHARE) >> 20}: "
                f"delete a session, or wait until one expires"
            )
        if taken + size > self._room:
            raise NoRoom("there is no room for more images that people send: wait until some expire")

    def _sessions(self) -> list[Path]:
        return [one for one in self._folder.iterdir() if one.is_dir()] if self._folder.is_dir() else []

    def _described(self, folder: Path) -> SessionInfo | None:
        try:
            info: SessionInfo | None = super().get_session(folder.name, update_ts=False, fetch_cache=False)
        except (OSError, ValueError, AttributeError):  # a description that is half written, or none of ours
            return None
        return info


def _who() -> str | None:
    """The login of who sent the request under way; None where nobody has to sign in, and for the server itself."""
    from polycl.server.connection import identity

    user = identity()
    return user.name if user else None


def _owner(info: SessionInfo) -> str:
    return str((info.meta or {}).get(OWNER, ""))


def _expired(info: SessionInfo) -> bool:
    """Also what was last used in a time to come: the clock was set back, and it would never go."""
    return bool(info.expiry > 0 and abs(time.time() - info.last_access_ts) > info.expiry)


def _changed(folder: Path) -> float:
    """When something came into the folder, or went; just now if it vanishes meanwhile: who removed it saw to it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _size(folder: Path) -> int:
    """Bytes of the files below; what vanishes meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
