"""Lines of the log: text or JSON, each with the id of the request that it is about."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from polycl.server.connection import current

Format = Literal["text", "json"]


class Text(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the id of the request before the message."""
        line = super().format(record)
        connection = current.get()
        return line.replace(": ", f" [{connection.request_id}]: ", 1) if connection else line


class Json(logging.Formatter):
    """A line for programs: an object with `time` (UTC), `level`, `logger`, `message`, and what is known beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if connection := current.get():
            values["request"] = connection.request_id
        values |= getattr(record, "values", {})
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


FORMATS: dict[Format, type[logging.Formatter]] = {"text": Text, "json": Json}
