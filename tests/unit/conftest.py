"""What several unit tests use: the command line in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polycl.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path
) -> Run:
    """`polycl ARGS…` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("POLYCL_WEIGHTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("POLYCL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("POLYCL_DEVICE", "cpu")
    monkeypatch.setenv("POLYCL_PRECISION", "fp32")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polycl", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capfd.readouterr()
        return code, out, err

    return call
