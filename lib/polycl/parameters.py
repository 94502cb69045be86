"""What a part of the program lets its callers set, typed and frozen."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from polycl.errors import InputError


class Parameters(BaseModel):
    """Settings by name; a subclass says in `of` what they are settings of.

    Raises InputError for an unknown key, naming those there are, and for a value that cannot be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    of: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(self._sentence(error)) from None

    @classmethod
    def _sentence(cls, error: ValidationError) -> str:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            return f"{cls.of} has no parameter {name}; it has {', '.join(cls.model_fields)}"
        return f"{cls.of} parameter {name}={problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
