"""Typed settings from `POLYCL_*` environment variables; one writable state folder holds all that the program writes.

Light on purpose: the command line imports it before anything heavy.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from polycl.errors import InputError

PREFIX = "POLYCL_"


def _default_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "polycl"


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


Folder = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """What a user may set. Raises InputError for a wrong value and for a `POLYCL_*` variable that does not exist."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)

    state: Folder = Field(
        default_factory=_default_state, description="writable folder for models, logs, caches, sessions"
    )
    weights: Folder | None = Field(default=None, description="a folder of more weights")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_voxels: int = Field(default=2000 * 1024 * 1024, gt=0, description="larger images are refused")
    embedding_memory: ByteSize = Field(
        default=ByteSize(1 << 29), ge=0, description="SAM's embeddings of slices that are kept in memory, 4 MB each"
    )
    embedding_disk: ByteSize = Field(
        default=ByteSize(0), ge=0, description="and on disk, in the state folder, also for the next start; 0: none"
    )
    embed_ahead: bool = Field(default=True, description="embed slices of an opened study while nobody waits")
    label_versions: int = Field(default=20, ge=2, description="versions of each label that are kept")
    learn_after: int = Field(default=0, ge=0, description="train by itself after so many new labels; 0: on request")
    learn_margin: float = Field(default=0.005, ge=0, le=1, description="mean Dice to gain before a model is published")
    learn_patients: int = Field(default=3, ge=1, description="validation patients needed to publish by")
    learn_threads: int = Field(default=0, ge=0, description="threads that training uses; 0: all but one, at least one")
    learn_nice: int = Field(default=15, ge=0, le=19, description="how far training steps back for everything else")
    score_ahead: bool = Field(default=True, description="score images for what to label next while nobody waits")
    serve_models: str = Field(default="", description="the segmenters to serve, by commas; all if empty")
    score_model: str = Field(default="", description="the segmenter that scores; the first that is served if empty")
    lease_minutes: float = Field(default=30, ge=0, description="an image handed out is kept for its annotator so long")
    versions_kept: int = Field(default=10, ge=2, description="versions of a model that are kept beside the first")
    queue: int = Field(default=32, ge=1, description="requests for the device that may wait; more are answered 503")
    log: Literal["text", "json"] = "text"
    max_upload: ByteSize = Field(default=ByteSize(4 << 30), gt=0, description="larger uploads are refused")
    session_minutes: float = Field(
        default=60.0, gt=0, description="images that people send for their own use are kept so long after the last use"
    )
    session_room: ByteSize = Field(
        default=ByteSize(16 << 30), gt=0, description="what they may take together; of one user, half of it"
    )
    pacs_room: ByteSize = Field(
        default=ByteSize(100 << 30), gt=0, description="what series of a PACS may take; those with a label here stay"
    )
    disk_reserve: ByteSize = Field(
        default=ByteSize(1 << 29), ge=0, description="with less than this free on a disk nothing more is taken in"
    )
    hosts: str = Field(default="", description="more names that browsers may reach this server by, comma-separated")
    sign_in_hours: float = Field(default=12.0, gt=0, description="how long a user stays signed in")
    oidc_issuer: str | None = Field(default=None, pattern=r"^https?://", description="who signs tokens")
    oidc_audience: str = Field(default="polycl", min_length=1, description="whom tokens are for")
    oidc_client: str = Field(default="polycl", min_length=1, description="as what the server asks for tokens")
    oidc_roles: str = Field(default="realm_access.roles", description="the claim that lists roles, dots for levels")

    def __init__(self, **values: Any) -> None:
        _refuse_unknown(os.environ)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError("; ".join(_sentence(dict(part)) for part in error.errors())) from None
        if self.weights is not None and not self.weights.is_dir():
            raise InputError(f"{PREFIX}WEIGHTS={str(self.weights)!r}: there is no such folder")

    @property
    def models(self) -> Path:
        """Published and fetched weights."""
        return self.state / "models"

    @property
    def logs(self) -> Path:
        """Rotating log files of the server."""
        return self.state / "logs"

    @property
    def cache(self) -> Path:
        """What can be made again: series from a PACS, results on their way to a client."""
        return self.state / "cache"

    @property
    def sessions(self) -> Path:
        """Images that clients sent, until they expire."""
        return self.state / "sessions"

    @property
    def store(self) -> Path:
        """Images and labels of the stores that the server keeps itself: the sample study, imported DICOM."""
        return self.state / "store"

    @property
    def versions(self) -> Path:
        """Versions of models that were trained here."""
        return self.models / "versions"

    @property
    def learning(self) -> Path:
        """Training runs, and which patients are kept for validation."""
        return self.state / "learning"

    @property
    def acquisition(self) -> Path:
        """What is known for choosing the next image to label: scores by model version, and leases."""
        return self.state / "acquisition"

    @property
    def users(self) -> Path:
        """Who may sign in, where the site has no identity provider."""
        return self.state / "users.json"

    @property
    def audit(self) -> Path:
        """Who changed what."""
        return self.state / "audit"

    def prepare(self) -> None:
        """Create the state folder and those inside it. InputError if it cannot be written."""
        for folder in (self.state, self.models, self.logs, self.cache, self.sessions, self.store):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot create the state folder {folder} ({error.strerror}); {_hint()}") from None
        if (reason := why_unwritable(self.state)) is not None:
            raise InputError(f"the state folder {self.state} cannot be written ({reason}); {_hint()}")


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be made in `folder`, by trying; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _hint() -> str:
    return f"set {PREFIX}STATE to a folder that can be"


def _variables() -> list[str]:
    return [PREFIX + name.upper() for name in Settings.model_fields]


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    unknown = sorted({name for name in environment if name.upper().startswith(PREFIX)} - set(_variables()))
    unknown = [name for name in unknown if name.upper() not in _variables()]
    if unknown:
        raise InputError(f"no setting {', '.join(unknown)}; the settings are {', '.join(_variables())}")


def _sentence(problem: dict[str, Any]) -> str:
    """One pydantic error as `POLYCL_DEVICE='gpu': …`."""
    name = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
    if problem["type"] == "extra_forbidden":
        return f"no setting {name}; the settings are {', '.join(_variables())}"
    return f"{name}={problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
