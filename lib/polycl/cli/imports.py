"""`polycl import`: DICOM series into a folder that the server and the other commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polycl.cli import options
from polycl.errors import InputError


def import_(
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM files; folders inside it are read too.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to fill, one NIfTI file a CT series.")],
    as_json: options.Json = False,
) -> None:
    """Write every CT series in FOLDER as NIfTI, named by its SeriesInstanceUID. Series already there are left alone."""
    from polycl.server.imports import import_studies

    with options.progress("Importing series") as report:
        result = import_studies(folder, output, report)
    if as_json:
        options.print_json({"imported": result.imported, "present": result.present, "refused": result.refused})
    else:
        typer.echo(f"{output}: {len(result.imported)} imported, {len(result.present)} there already")
    for uid, reason in result.refused.items():
        typer.echo(f"refused {uid}: {reason}", err=True)
    if not result.imported and not result.present:
        raise InputError(f"no series in {folder} can be used")
