"""`polycl segment`: outline organs on one image."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.cli import options
from polycl.cli import refine as refining
from polycl.errors import ModelError, NotFoundError

if TYPE_CHECKING:
    from polycl.catalogue import Catalogue
    from polycl.refinement import RefineParameters
    from polycl.settings import Settings
    from polycl.volume import Volume

DEFAULT_MODEL = "polycl-liver"


def segment(
    image: options.Image,
    output: options.Output,
    model: options.Model = DEFAULT_MODEL,
    label: Annotated[list[str] | None, typer.Option(help="Keep only this label; may be repeated.")] = None,
    refine: Annotated[str, typer.Option(help="A SAM model to refine the result with, or none.")] = "none",
    parameter: options.Set = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw the result in three views, as PNG.")] = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Outline the organs a model knows on IMAGE, and write the label map on the image's own grid."""
    from polycl.volume import require_writable, write_volume

    how = refining.parameters(None, parameter)
    settings = options.settings(device, precision)
    require_writable(output)
    options.require_png(picture)
    clock = [time.perf_counter()]
    volume = options.read_image(image, settings, series, any_values)
    clock.append(time.perf_counter())
    from polycl.catalogue import Catalogue
    from polycl.segmenter import Segmenter

    catalogue = Catalogue.default(settings)
    entry = catalogue.entry(model, "segmenter")
    if refine != "none":
        _check_name(catalogue, refine)
    segmenter = Segmenter.load(entry.path, sha256=entry.sha256, device=settings.device, precision=settings.precision)
    clock.append(time.perf_counter())
    with options.progress("Segmenting slices") as report:
        result = segmenter.segment(volume, label, report)
    clock.append(time.perf_counter())
    notes: dict[str, Any] = {}
    if refine != "none":
        result, notes = _refined(volume, result, refine, how, settings)
        clock.append(time.perf_counter())
    names = {name: index for name, index in segmenter.header.labels.items() if label is None or name in label}
    write_volume(result, output, names=names)
    clock.append(time.perf_counter())
    millilitres = {name: round(result.millilitres(result.voxels == index), 2) for name, index in names.items()}
    if picture is not None:
        from polycl.picture import draw

        draw(volume, result, names, picture, segmenter.header.preprocessing.window)
    stages = ("read", "load", "segment", *(("refine",) if notes else ()), "write")
    seconds = {stage: round(b - a, 3) for stage, a, b in zip(stages, clock[:-1], clock[1:], strict=True)}
    if as_json:
        done = {"output": str(output), "model": model, "labels": names, "volumes_ml": millilitres}
        options.print_json(done | notes | {"seconds": seconds})
    else:
        organs = ", ".join(f"{name} {ml:.0f} ml" for name, ml in millilitres.items())
        typer.echo(f"{output}: {organs} ({clock[-1] - clock[0]:.1f} s)")


def _check_name(catalogue: Catalogue, refine: str) -> None:
    """NotFoundError for the name of no SAM model: said now, not after the segmentation."""
    try:
        catalogue.engine(refine)
    except NotFoundError as error:
        raise NotFoundError(f"{error}, or none") from None


def _refined(
    volume: Volume, coarse: Volume, name: str, how: RefineParameters, settings: Settings
) -> tuple[Volume, dict[str, Any]]:
    """The label map refined by the SAM model called `name`, or as it is, with a warning, without its weights."""
    try:
        engine, follower = refining.load(name, settings)
    except ModelError as error:
        typer.echo(f"polycl: not refined: {' '.join(error.in_full().split())}", err=True)
        return coarse, {"refined": False, "reason": str(error)}
    result, report = refining.run(volume, coarse, engine, how, follower=follower)
    return result, {"refined": True, "refinement": report}
