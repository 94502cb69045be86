"""`polycl backup` and `polycl restore`: labels, models, scores and users, in one archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options

if TYPE_CHECKING:
    from polycl.backup import Report

Studies = Annotated[
    Path | None, typer.Option(help="The folder of studies that the server serves, where labels lie beside the images.")
]


def backup(
    archive: Annotated[Path, typer.Argument(help="The .tar file to write; an earlier one is replaced at the end.")],
    studies: Studies = None,
    images: Annotated[bool, typer.Option(help="Pack the images too, which may come again from elsewhere.")] = True,
    as_json: options.Json = False,
) -> None:
    """Pack the state folder, and the labels in STUDIES, into ARCHIVE. The server may run meanwhile."""
    from polycl.backup import back_up

    report = back_up(options.settings(), archive, studies, images=images)
    _tell(report, f"{archive} holds", as_json)


def restore(
    archive: Annotated[Path, typer.Argument(help="A .tar file that polycl backup wrote.")],
    studies: Studies = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put aside what is there already.")] = False,
    as_json: options.Json = False,
) -> None:
    """Put everything in ARCHIVE back. The server must be stopped."""
    from polycl.backup import restore as put_back

    _tell(put_back(options.settings(), archive, studies, replace=replace), "restored", as_json)


def _tell(report: Report, what: str, as_json: bool) -> None:
    if as_json:
        aside = [str(folder) for folder in report.aside]
        options.print_json({"files": report.files, "bytes": report.bytes, "aside": aside})
        return
    typer.echo(f"{what} {report.files} files, {report.bytes / 1e6:.1f} MB")
    for folder in report.aside:
        typer.echo(f"what was there is in {folder}")
