"""What stands in a line of the log."""

import json
import logging
import sys

import pytest

from polycl.server.connection import Connection, current
from polycl.server.logs import Json, Text

pytestmark = pytest.mark.unit


async def nothing() -> dict[str, object]:
    return {}


def record(message: str = "a: %d", *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("polycl.x", logging.INFO, "", 0, message, arguments or (1,), None)


def test_a_line_names_its_request() -> None:
    assert Text().format(record()).endswith("INFO polycl.x: a: 1")
    token = current.set(Connection("abc", "10.0.0.1", nothing))
    try:
        assert Text().format(record()).endswith("INFO polycl.x [abc]: a: 1")
        assert json.loads(Json().format(record()))["request"] == "abc"
    finally:
        current.reset(token)


def test_a_json_line_is_one_object() -> None:
    told = record("two\nlines %d")
    told.values = {"status": 503}
    line = Json().format(told)
    assert "\n" not in line
    values = json.loads(line)
    assert (values["message"], values["status"], values["level"]) == ("two\nlines 1", 503, "INFO")
    assert values["time"].endswith("+00:00")


def test_a_traceback_is_kept() -> None:
    told = record()
    try:
        raise ValueError("why")
    except ValueError:
        told.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(Json().format(told))["traceback"]
