"""`polycl segment`: outline organs on one image."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from polycl.cli import options
from polycl.errors import NotFoundError

DEFAULT_MODEL = "polycl-liver"


def segment(
    image: Annotated[Path, typer.Argument(help="A CT: NIfTI, NRRD, a DICOM folder or file.")],
    output: options.Output,
    model: options.Model = DEFAULT_MODEL,
    label: Annotated[list[str] | None, typer.Option(help="Keep only this label; may be repeated.")] = None,
    refine: Annotated[str, typer.Option(help="A refinement model, or none.")] = "none",
    picture: Annotated[Path | None, typer.Option(help="Also draw the result in three views, as PNG.")] = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Outline the organs a model knows on IMAGE, and write the label map on the image's own grid."""
    if refine != "none":
        raise NotFoundError(f"no refinement is called {refine!r}; there is: none")
    from polycl.volume import read_series, read_volume, write_volume

    settings = options.settings(device, precision)
    clock = [time.perf_counter()]
    volume = (
        read_series(image, series_uid=series)
        if series
        else read_volume(image, allow_any_values=any_values, max_voxels=settings.max_voxels)
    )
    clock.append(time.perf_counter())
    from polycl.catalogue import Catalogue
    from polycl.segmenter import Segmenter

    entry = Catalogue.default(settings).entry(model)
    segmenter = Segmenter.load(entry.path, sha256=entry.sha256, device=settings.device, precision=settings.precision)
    clock.append(time.perf_counter())
    with options.progress("Segmenting slices") as report:
        result = segmenter.segment(volume, label, report)
    clock.append(time.perf_counter())
    names = {name: index for name, index in segmenter.header.labels.items() if label is None or name in label}
    write_volume(result, output, names=names)
    clock.append(time.perf_counter())
    millilitres = {name: round(result.millilitres(result.voxels == index), 2) for name, index in names.items()}
    if picture is not None:
        from polycl.picture import draw

        draw(volume, result, names, picture, segmenter.header.preprocessing.window)
    stages = ("read", "load", "segment", "write")
    seconds = {stage: round(b - a, 3) for stage, a, b in zip(stages, clock[:-1], clock[1:], strict=True)}
    if as_json:
        options.print_json(
            {"output": str(output), "model": model, "labels": names, "volumes_ml": millilitres, "seconds": seconds}
        )
    else:
        organs = ", ".join(f"{name} {ml:.0f} ml" for name, ml in millilitres.items())
        typer.echo(f"{output}: {organs} ({clock[-1] - clock[0]:.1f} s)")
