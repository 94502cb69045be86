"""Errors a user can act on: what was wrong, and what is accepted.

The command line prints the message and exits 1; the server answers with `status` and the message. Anything else that
is raised is a bug. Messages never hold patient data: no DICOM attribute values but UIDs, no voxel contents. What only
someone at this machine may know, as its folders, is a `hint`: the command line and the log show it, not the server.
"""

from typing import ClassVar


class PolyclError(Exception):
    """The request cannot be served as it is; the message says what would be."""

    status: ClassVar[int] = 400

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def in_full(self) -> str:
        """Message and hint."""
        return f"{self}; {self.hint}" if self.hint else str(self)


class InputError(PolyclError):
    """An image, label or parameter that cannot be used."""

    status: ClassVar[int] = 422


class NotFoundError(PolyclError):
    """A name that nothing here has: an image, a model, a label."""

    status: ClassVar[int] = 404


class ModelError(PolyclError):
    """Weights that are missing, of the wrong hash, or no checkpoint of ours."""

    status: ClassVar[int] = 424


class StorageError(PolyclError):
    """The server cannot write what was sent: its disk is full, or the folder is not writable."""

    status: ClassVar[int] = 507


class Cancelled(PolyclError):
    """The one who asked no longer wants the answer."""

    status: ClassVar[int] = 499
