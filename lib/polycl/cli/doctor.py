"""`polycl doctor`: what may keep this installation from working, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from polycl.cli import options

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    studies: Annotated[str | None, typer.Option(help="What is to be served: a folder, or a DICOMweb address.")] = None,
    host: Annotated[str, typer.Option(help="Address that the server is to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="And the port.")] = 8000,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Check installation, weights, folders, device, port, sign-in and PACS. Exit code 1 if anything fails."""
    from polycl.doctor import Asked, Finding, examine

    asked = Asked(options.settings(device, precision), studies, host, port)
    found: list[Finding] = list(examine(asked))
    if as_json:
        options.print_json(
            {"ok": all(one.level != "fail" for one in found), "findings": [asdict(one) for one in found]}
        )
    else:
        _show([(one.check, one.level, one.message, one.advice) for one in found])
    if any(one.level == "fail" for one in found):
        raise typer.Exit(1)


def _show(rows: list[tuple[str, str, str, str]]) -> None:
    """A table on a terminal, lines elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        for check, level, message, advice in rows:
            typer.echo(f"{level:<4} {check:<12} {message}{f'; {advice}' if advice else ''}")
        return
    table = Table("", "check", "found", "what to do")
    for check, level, message, advice in rows:
        table.add_row(Text(level, COLOURS[level]), Text(check), Text(message), Text(advice))
    console.print(table)
