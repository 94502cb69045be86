"""The `--conf KEY VALUE` pairs of MONAI Label's start command, typed."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from polycl.errors import InputError
from polycl.settings import Settings

FOREIGN_KEYS = frozenset({"server_mode", "sam2", "zoo_source", "zoo_repo"})
"""Keys that MONAI Label itself, or the advice to its users, passes to every app; they mean nothing here."""


class AppConfig(BaseModel):
    """What `--conf` may say. A field left out keeps the value of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(
        default=(), description="comma-separated names of the models to serve; all if empty"
    )
    device: str | None = Field(default=None, pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: str | None = Field(default=None, pattern=r"^(auto|fp32|bf16|fp16)$")

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @classmethod
    def parse(cls, conf: Mapping[str, str]) -> "AppConfig":
        """The configuration in MONAI Label's `conf`; InputError names the right keys, or what is wrong with a value."""
        own = {key: value for key, value in conf.items() if key not in FOREIGN_KEYS}
        if unknown := sorted(set(own) - set(cls.model_fields)):
            raise InputError(f"no --conf key {', '.join(unknown)}; the keys are {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(own)
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"--conf {problem['loc'][0]} {problem['input']!r}: {problem['msg']}") from None

    def apply(self, settings: Settings) -> Settings:
        """`settings` with what `--conf` says instead."""
        changes = {name: value for name in ("device", "precision") if (value := getattr(self, name)) is not None}
        return settings.model_copy(update=changes)
