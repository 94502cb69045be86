"""`polycl seg`: label maps to DICOM SEG, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.dicomseg import Algorithm
    from polycl.volume import Volume

app = typer.Typer(help="Write label maps as DICOM SEG, and read them back.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--series", help="Folder of the DICOM series that the labels belong to.")]
Uid = Annotated[str | None, typer.Option("--uid", help="SeriesInstanceUID, where the folder holds several series.")]


@app.command("export")
def export(
    labels: Annotated[Path, typer.Argument(help="A label map on the grid of the series: NIfTI, NRRD or .seg.nrrd.")],
    series: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="DICOM file to write: .dcm.")],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What a value is, as VALUE=NAME; may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model that outlined it, as NAME or NAME@VERSION; by hand if not given.")
    ] = None,
    rtstruct: Annotated[bool, typer.Option("--rtstruct", help="Write outlines as RTSTRUCT instead.")] = False,
    uid: Uid = None,
) -> None:
    """Write LABELS as a DICOM SEG that refers to the series. Names come from a .seg.nrrd, or from --name."""
    from polycl.dicomseg import Identity, Segment, SourceSeries, write_rtstruct, write_seg
    from polycl.files import sha256_of
    from polycl.volume import read_segments, read_volume

    if output.suffix.lower() != ".dcm":
        raise InputError(f"{output.name}: DICOM is written as .dcm")
    given = _given(name)
    source = SourceSeries.read(series, uid)
    label = read_volume(labels, kind="label")
    names = {value: known for known, value in read_segments(labels).items()} | given
    algorithm = _algorithm(model)
    segments = [Segment(_named(names, value), value, algorithm) for value in sorted({*names, *_present(label)})]
    identity = Identity.of(source.uid, sha256_of(labels), sorted(names.items()), model, rtstruct)
    (write_rtstruct if rtstruct else write_seg)(label, segments, source, output, identity)
    typer.echo(f"{output}: {', '.join(segment.name for segment in segments)}")


@app.command("import")
def import_(
    seg: Annotated[Path, typer.Argument(help="A DICOM SEG.")],
    series: Folder,
    output: options.Output,
    uid: Uid = None,
    as_json: options.Json = False,
) -> None:
    """Write a DICOM SEG as a label map on the grid of the series it refers to."""
    from polycl.dicomseg import SourceSeries, read_seg
    from polycl.volume import require_writable, write_volume

    require_writable(output)
    found = read_seg(seg, SourceSeries.read(series, uid))
    names = found.unique_names()
    write_volume(found.label, output, names=names)
    if as_json:
        made_by = {name: vars(found.algorithms[value]) for name, value in names.items()}
        options.print_json({"output": str(output), "labels": names, "made_by": made_by})
    else:
        typer.echo(f"{output}: {', '.join(f'{value} {name}' for name, value in names.items())}")
    if found.overlapping:
        typer.echo(f"segments overlap in {found.overlapping} voxels: the last of them has these", err=True)


def _given(names: list[str] | None) -> dict[int, str]:
    given = {}
    for item in names or []:
        value, _, name = item.partition("=")
        if not value.isdigit() or not 0 < int(value) <= 255 or not name.strip():
            raise InputError(f"--name {item!r} must be VALUE=NAME, as in 1=liver, with a value of 1 to 255")
        given[int(value)] = name.strip()
    return given


def _named(names: dict[int, str], value: int) -> str:
    return names.get(value, f"label_{value}")


def _present(label: Volume) -> list[int]:
    from polycl.labels.placing import values_in

    return values_in(label.voxels)


def _algorithm(model: str | None) -> Algorithm:
    from polycl.dicomseg import Algorithm

    if model is None:
        return Algorithm()
    name, _, version = model.partition("@")
    return Algorithm("AUTOMATIC", name, version)
