"""`polycl annotate`: from points and boxes in a file to a label map of the volume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.cli.propagate import DEFAULT_MODEL, Guide, Model, Set, guides_of, parameters
from polycl.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from polycl.settings import Settings
    from polycl.volume import Volume

LAST = 255
"""The highest id of a label."""


def annotate(
    image: options.Image,
    output: options.Output,
    clicks: Annotated[
        Path, typer.Option(help="JSON with points and boxes by structure; docs/propagation.md tells how.")
    ],
    outline_by: Annotated[str | None, typer.Option(help="The SAM that outlines; the one at hand otherwise.")] = None,
    onto: Annotated[
        Path | None, typer.Option(help="Keep this label map; the new labels, numbered on, take what it leaves free.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    guide: Guide = "auto",
    parameter: Set = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Outline structures of IMAGE by a SAM where CLICKS say, and carry them through the volume to where each ends."""
    how, settings = parameters(parameter), options.settings(device, precision)
    from polycl.propagate.outlined import outline, parse
    from polycl.propagate.seeds import Found
    from polycl.sam import check_engine, default_engine, load_engine
    from polycl.volume import require_writable, write_volume

    require_writable(output)
    if not clicks.is_file():
        raise NotFoundError(f"there is no file {clicks}")
    entries = parse(clicks.read_bytes())
    sam = outline_by or default_engine(settings) or DEFAULT_MODEL
    check_engine(sam, settings)
    volume = options.read_image(image, settings, series, any_values)
    kept, names = _kept(onto, volume, settings)
    named = _numbered(list(entries), names, 0 if kept is None else int(kept.voxels.max()))
    from polycl.propagate.loading import load_propagator
    from polycl.propagate.session import Propagation

    engine = load_propagator(model, settings)
    session = Propagation(volume, engine, parameters=how, guides=guides_of(guide, volume, settings))
    with options.progress("Outlining") as report:
        seeds = outline(entries, volume, load_engine(sam, settings), report)
    session.put_found(Found({named[name]: found for name, found in seeds.items()}, {}))
    with options.progress("Propagating slices") as report:
        result = session.run(report)
    millilitres = {name: round(result.millilitres(result.voxels == index), 2) for name, index in named.items()}
    write_volume(result if kept is None else _onto(kept, result), output, names=names | named)
    if as_json:
        done = {"output": str(output), "outlined_by": sam, "model": engine.name, "labels": named}
        options.print_json(done | {"volumes_ml": millilitres})
    else:
        typer.echo(f"{output}: {', '.join(f'{name} {ml:.0f} ml' for name, ml in millilitres.items())}")


def _kept(path: Path | None, volume: Volume, settings: Settings) -> tuple[Volume | None, dict[str, int]]:
    """The label map to keep, if there is one, and all its labels by name; InputError unless it is on the grid."""
    import numpy as np

    from polycl.volume import read_segments

    if path is None:
        return None, {}
    kept = options.read_labels(path, volume, settings)
    names = read_segments(path)
    unnamed = {int(value) for value in np.unique(kept.voxels) if value} - set(names.values())
    return kept, names | {f"Segment {value}": value for value in sorted(unnamed)}


def _numbered(wanted: list[str], names: dict[str, int], highest: int) -> dict[str, int]:
    """Ids for the structures `wanted`, from `highest` on; InputError for a name that is there, and for too many."""
    if again := [name for name in wanted if name in names]:
        raise InputError(f"the label map has a {again[0]!r} already; its labels are {', '.join(names)}")
    first = max([highest, *names.values()]) + 1
    if first + len(wanted) - 1 > LAST:
        raise InputError(
            f"{len(wanted)} new labels, numbered on from {first}, are too many: ids end at {LAST}, {first - 1} is taken"
        )
    return dict(zip(wanted, range(first, LAST + 1), strict=False))


def _onto(kept: Volume, result: Volume) -> Volume:
    """`kept` with what `result` has where it is free."""
    import numpy as np

    return result.with_voxels(np.where(kept.voxels > 0, kept.voxels, result.voxels).astype(np.uint8))
