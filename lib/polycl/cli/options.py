"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.settings import Settings
    from polycl.volume import Volume

Image = Annotated[Path, typer.Argument(help="A CT: NIfTI, NRRD, a DICOM folder or file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter of the refinement, as NAME=VALUE; may be repeated.")
]
Model = Annotated[str, typer.Option(help="A model of the catalogue (see polycl models list), or a .safetensors file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write: .nii.gz, .nii, .nrrd or .seg.nrrd.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; POLYCL_DEVICE otherwise.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16; POLYCL_PRECISION otherwise.")]
AnyValues = Annotated[
    bool, typer.Option("--any-values", help="Accept an image whose values do not look like CT in HU.")
]
Series = Annotated[str | None, typer.Option(help="SeriesInstanceUID, where a DICOM folder holds several series.")]


def settings(device: str | None = None, precision: str | None = None) -> Settings:
    """The settings from the environment, with what the command line gave on top."""
    from polycl.settings import Settings

    given = {"device": device, "precision": precision}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def audit(action: str, image: str = "", **details: object) -> None:
    """Note in the audit trail what a command did, by whom of this machine. StorageError where that cannot be."""
    import os

    import psutil

    from polycl.audit import Audit
    from polycl.errors import StorageError

    try:
        person = psutil.Process().username()
    except (psutil.Error, KeyError):  # as in a container
        person = f"user {os.getuid()}"
    try:
        Audit(settings().audit).add(action, image=image, details=details, client=f"{person} at the machine")
    except OSError as error:
        raise StorageError(f"it is done, but the audit trail cannot be written: {error.strerror}") from None


def read_image(image: Path, settings: Settings, series: str | None, any_values: bool) -> Volume:
    """The CT in `image`, as `--series` and `--any-values` say."""
    from polycl.volume import read_volume

    return read_volume(image, series_uid=series, allow_any_values=any_values, max_voxels=settings.max_voxels)


def read_labels(path: Path, volume: Volume, settings: Settings) -> Volume:
    """The label map at `path`; InputError unless it is on the grid of `volume`."""
    from polycl.volume import read_volume

    labels = read_volume(path, kind="label", max_voxels=settings.max_voxels)
    volume.require_same_grid(labels, f"{path.name}:")
    return labels


def require_png(picture: Path | None) -> None:
    """InputError for a picture that is not to be a PNG."""
    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"{picture} must end in .png")


def print_json(value: Any) -> None:
    """`value` as indented JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr, if that is a terminal. Yields a function of (done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
