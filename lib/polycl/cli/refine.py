"""`polycl refine`: let SAM follow the edges of a label map that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.cli import options
from polycl.errors import InputError, ModelError, NotFoundError

if TYPE_CHECKING:
    from polycl.refinement import RefineParameters
    from polycl.settings import Settings
    from polycl.volume import Volume

Window = Annotated[
    str | None,
    typer.Option(help="What SAM sees: soft-tissue, lung, bone, brain, header (the image's own), or LEVEL,WIDTH in HU."),
]


def refine(
    image: options.Image,
    mask: Annotated[Path, typer.Option(help="The label map to refine, on the grid of IMAGE.")],
    output: options.Output,
    model: Annotated[str | None, typer.Option(help="A SAM model of the catalogue; the one at hand otherwise.")] = None,
    label: Annotated[list[int] | None, typer.Option(help="Refine only this label; may be repeated.")] = None,
    window: Window = None,
    parameter: options.Set = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Refine the label map MASK on IMAGE by SAM, slice by slice; it stays as it is wherever SAM is not trusted."""
    how = parameters(window, parameter)
    settings = options.settings(device, precision)
    from polycl.volume import require_writable, write_volume

    require_writable(output)
    volume = options.read_image(image, settings, series, any_values)
    coarse = options.read_labels(mask, volume, settings)
    _check_labels(coarse, label)
    engine, follower = load(model, settings)
    result, report = run(volume, coarse, engine, how, label, follower)
    write_volume(result, output)
    if as_json:
        options.print_json({"output": str(output), "model": engine.name, "refined": True, "refinement": report})
    else:
        typer.echo(f"{output}: {summary(report)}")


def parameters(window: str | None, given: list[str] | None = None) -> RefineParameters:
    """The refinement's parameters of `--window` and `--set NAME=VALUE`; InputError for what cannot be used."""
    import json

    from polycl.refinement import RefineParameters

    values: dict[str, Any] = {}
    for item in given or []:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"--set {item!r} must be NAME=VALUE; names are {', '.join(RefineParameters.model_fields)}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    if window is not None:
        parts = window.split(",")
        try:
            values["window"] = [float(part) for part in parts] if len(parts) == 2 else window
        except ValueError:
            values["window"] = window
    return RefineParameters(**values)


def load(name: str | None, settings: Settings) -> tuple[Any, Any]:
    """The SAM engine called `name`, or the one at hand, and the SAM 2 that follows, if there is one.

    ModelError where weights are missing.
    """
    from polycl.propagate.loading import follower
    from polycl.sam import default_engine, load_engine

    name = name or default_engine(settings)
    if name is None:
        raise ModelError("there are no weights of a SAM model; `polycl models fetch mobile-sam` gets some")
    return load_engine(name, settings), follower(settings)


def run(
    volume: Volume,
    coarse: Volume,
    engine: Any,
    how: RefineParameters,
    labels: list[int] | None = None,
    follower: Any = None,
) -> tuple[Volume, dict[str, Any]]:
    """The refined label map and the report, with a bar while it goes on."""
    from polycl.refinement import refine as refine_volume

    with options.progress("Refining slices") as report_progress:
        result, report = refine_volume(
            volume, coarse, engine, None, how, report_progress, labels=labels or None, follower=follower
        )
    return result, report.as_dict()


def summary(report: dict[str, Any]) -> str:
    """One line about what a refinement did."""
    return (
        f"{report['accepted']} outlines refined, {report['kept'] + report['small']} kept, "
        f"{report['encoded']} of {report['slices']} slices shown to SAM, {report['followed']} followed from slice to "
        f"slice, {len(report['by_tissue'])} thin labels outlined by their HU ({report['seconds']['total']:.1f} s)"
    )


def _check_labels(coarse: Volume, labels: list[int] | None) -> None:
    import numpy as np

    present = [int(value) for value in np.unique(coarse.voxels) if value]
    if unknown := [value for value in labels or [] if value not in present]:
        raise NotFoundError(
            f"the mask has no label {', '.join(map(str, unknown))}; it has {', '.join(map(str, present)) or 'none'}"
        )
