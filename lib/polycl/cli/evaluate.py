"""`polycl evaluate`: how well a label map agrees with a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.volume import Volume

Pairs = list[tuple[int, tuple[int, ...]]]
"""A label's id in the prediction, and its ids in the reference."""


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="A label map.")],
    reference: Annotated[Path, typer.Argument(help="The reference label map, on the same grid.")],
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label id, or N=M,M where the reference has several ids for it (1=1,6). May be repeated."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The CT of both, for --picture.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw three views of what was found and of what is wrong, as PNG.")
    ] = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    as_json: options.Json = False,
) -> None:
    """Dice, 95 % Hausdorff distance in mm and surface Dice (2 mm) of each label of one volume."""
    pairs = [parse_label(text) for text in label or ()]
    if (image is None) != (picture is None):
        raise InputError("--picture and --image belong together: it is drawn over the CT")
    options.require_png(picture)
    if picture is not None:
        _require_apart(pairs)
    from polycl.metrics import compare
    from polycl.settings import Settings
    from polycl.volume import read_volume

    ours, theirs = read_volume(prediction, kind="label"), read_volume(reference, kind="label")
    ct = None if image is None else options.read_image(image, Settings(), series, any_values)
    if ct is not None:
        ct.require_same_grid(ours, "the prediction")
    if not pairs:
        import numpy as np

        present = {int(i) for i in np.unique(ours.voxels)} | {int(i) for i in np.unique(theirs.voxels)}
        pairs = [(index, (index,)) for index in sorted(present - {0})]
    rows = {str(index): compare(ours, theirs, index, reference_indices=ids).as_dict() for index, ids in pairs}
    if as_json:
        options.print_json({"labels": rows})
    else:
        _print_table(rows)
    if picture is not None and ct is not None:
        _draw(ct, ours, theirs, pairs, picture)


def _print_table(rows: dict[str, dict[str, float | None]]) -> None:
    """Figures of labels, a line each."""
    typer.echo(f"{'label':>5}  {'Dice':>6}  {'HD95 mm':>8}  {'surface Dice':>12}  {'ml':>9}  {'reference ml':>12}")
    for name, row in rows.items():
        figures = [_figure(row[key], digits) for key, digits in (("dice", 4), ("hd95_mm", 2), ("surface_dice", 4))]
        typer.echo(
            f"{name:>5}  {figures[0]:>6}  {figures[1]:>8}  {figures[2]:>12}"
            f"  {_figure(row['predicted_ml'], 1):>9}  {_figure(row['reference_ml'], 1):>12}"
        )


def _require_apart(pairs: Pairs) -> None:
    """InputError where labels are not told apart: an id of either map would be two things in one picture."""
    ours, theirs = [index for index, _ in pairs], [index for _, ids in pairs for index in ids]
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        raise InputError("--picture shows each label once; an id comes twice in --label: draw a picture of each")


def _draw(ct: Volume, ours: Volume, theirs: Volume, pairs: Pairs, path: Path) -> None:
    """Draw what was found of the labels `pairs`, and what is wrong, over the CT."""
    import numpy as np

    from polycl.picture import draw_errors
    from polycl.window import Window

    found, reference = np.zeros(ours.shape, np.uint8), np.zeros(ours.shape, np.uint8)
    for index, ids in pairs:
        found[ours.voxels == index] = index
        reference[np.isin(theirs.voxels, ids)] = index
    draw_errors(ct, ours.with_voxels(found), theirs.with_voxels(reference), path, Window.named("soft-tissue"))


def parse_label(text: str) -> tuple[int, tuple[int, ...]]:
    """`N` or `N=M,M` to an id in the prediction and ids in the reference; InputError if it is neither."""
    ours, _, theirs = text.partition("=")
    try:
        ids = tuple(int(number) for number in (theirs or ours).split(","))
        pair = int(ours), ids
    except ValueError:
        raise InputError(f"{text!r} is no label; write an id such as 1, or 1=1,6") from None
    if not all(0 < index < 256 for index in (pair[0], *ids)):
        raise InputError(f"{text!r} is no label; ids are 1 to 255")
    return pair


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
