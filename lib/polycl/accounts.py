"""Who may use a server at a small site: names, roles and salted password hashes in one file of the state folder.

Light: the command line imports it. Passwords are hashed by scrypt (RFC 7914), with the parameters that OWASP's password
storage cheat sheet gives for 32 MiB; they stand in each hash, so that they may be raised later.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from polycl.errors import InputError, NotFoundError
from polycl.files import write_atomically

SCRYPT = {"n": 1 << 15, "r": 8, "p": 3}
SCRYPT_MEMORY = 64 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MIN_PASSWORD, MAX_PASSWORD = 10, 256
"""Characters. NIST SP 800-63B asks for length, not for kinds of characters."""


class Role(IntEnum):
    """What somebody may do; each role may do all that those before it may."""

    READER = 1
    ANNOTATOR = 2
    REVIEWER = 3
    ADMIN = 4

    @classmethod
    def named(cls, name: str) -> Role:
        """InputError for a name that is no role."""
        try:
            return cls[name.upper()]
        except KeyError:
            raise InputError(f"no role {name!r}; there are: {', '.join(map(str, cls))}") from None

    def __str__(self) -> str:
        return self.name.lower()


class Account(BaseModel):
    """One user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    password: str
    created: datetime


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    users: dict[str, Account] = {}


class Accounts:
    """The users in the file at `path`. Safe for several threads and processes; a change is seen at the next call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hashing = threading.Lock()
        self._read: tuple[tuple[int, int], dict[str, Account]] | None = None

    def all(self) -> dict[str, Account]:
        """Every user by name; none if there is no file. InputError for a file that is damaged."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, dict(_File.model_validate_json(self.path.read_bytes()).users)
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise InputError("the file of users cannot be read", hint=f"{self.path}: {type(error).__name__}") from None
        return dict(self._read[1])

    def add(self, name: str, role: Role, password: str) -> None:
        """Add a user, or give one another role and password. InputError for a name or password that cannot be."""
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no user name: letters, digits and . _ @ - are allowed, 64 of them at most")
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise InputError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
        account = Account(role=str(role), password=hashed(password), created=datetime.now(UTC))
        with self._changing() as users:
            users[name] = account

    def remove(self, name: str) -> None:
        """NotFoundError if there is no such user."""
        with self._changing() as users:
            if users.pop(name, None) is None:
                raise NotFoundError(f"no user is called {name!r}")

    def check(self, name: str, password: str) -> Account | None:
        """The account if the password is right. As slow for a name that nobody has; one at a time, as it costs."""
        account = self.all().get(name)
        with self._hashing:
            right = matches(password[: MAX_PASSWORD + 1], account.password if account else NOBODY)
        return account if account and right else None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Account]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            users = self.all()
            yield users
            write_atomically(self.path, _File(users=users).model_dump_json(indent=2).encode())
            self.path.chmod(0o600)
            self._read = None


def hashed(password: str) -> str:
    """`scrypt$n$r$p$salt$hash` with a new salt; the last two in base 64."""
    salt = secrets.token_bytes(16)
    parts = [
        *map(str, SCRYPT.values()),
        *(b64encode(part).decode() for part in (salt, _scrypt(password, salt, SCRYPT))),
    ]
    return "$".join(("scrypt", *parts))


def matches(password: str, kept: str) -> bool:
    """Whether `kept` was made of `password`, in time that does not depend on how far they agree."""
    n, r, p, salt, digest = kept.removeprefix("scrypt$").split("$")
    made = _scrypt(password, b64decode(salt), {"n": int(n), "r": int(r), "p": int(p)})
    return hmac.compare_digest(made, b64decode(digest))


def _scrypt(password: str, salt: bytes, cost: dict[str, int]) -> bytes:
    return hashlib.scrypt(password.encode(errors="surrogatepass"), salt=salt, **cost, maxmem=SCRYPT_MEMORY, dklen=32)


NOBODY = "$".join(("scrypt", *map(str, SCRYPT.values()), b64encode(bytes(16)).decode(), b64encode(bytes(32)).decode()))
"""A hash that no password has."""
