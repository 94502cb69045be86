"""`polycl propagate`: from a few annotated slices to the volume."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from polycl.cli import options
from polycl.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polycl.catalogue import Catalogue, Entry
    from polycl.propagate.guides import Guide as Helper
    from polycl.propagate.header import FrameConfig
    from polycl.propagate.parameters import PropagateParameters
    from polycl.propagate.seeds import Choice, Found
    from polycl.propagate.session import Propagation, Roi
    from polycl.settings import Settings
    from polycl.volume import Volume

DEFAULT_MODEL = "polycl-sam2-ct"
STAGES = ("read", "load", "propagate", "write")
"""What the command spends its time on."""
LAST = 255
"""The highest id of a label."""

Label = Annotated[
    list[str] | None,
    typer.Option(help="Propagate only this label: an id, a segment's name, or ID=NAME to name it; may be repeated."),
]
SeedSlice = Annotated[
    str,
    typer.Option(
        help="Which slices of LABELS are seeds: all that are not empty; auto, the largest of each label; middle; or a "
        "slice's index in the image."
    ),
]
SeedFile = Annotated[
    Path | None,
    typer.Option("--seed", help="LABELS: a label map on the grid of IMAGE, its annotated slices not empty."),
]
ClickFile = Annotated[
    Path | None,
    typer.Option("--clicks", help="Instead of --seed: JSON with points and boxes by structure, which a SAM outlines."),
]
Outliner = Annotated[
    str | None, typer.Option("--outline-by", help="The SAM for --clicks; the one at hand otherwise.", metavar="NAME")
]
Onto = Annotated[
    Path | None,
    typer.Option(help="With --clicks: keep this label map; new labels, numbered on, take what it leaves free."),
]
Model = Annotated[str, typer.Option(help="A SAM 2 of the catalogue (see polycl models list), or a .safetensors file.")]
Size = Annotated[int | None, typer.Option(help="Pixels a side that the model sees, a multiple of 32.")]
Window = Annotated[
    str | None,
    typer.Option(help="Another window: soft-tissue, lung, bone, brain, header (the image's own), or LEVEL,WIDTH."),
]
Box = Annotated[
    str | None, typer.Option("--roi", help="Stay within i0,i1,j0,j1,k0,k1: voxels of the image, the ends left out.")
]
Guide = Annotated[
    str,
    typer.Option(help="A segmenter that helps with what it recognises; auto, any of the catalogue; or none."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter of the propagation, as NAME=VALUE; may be repeated.")
]


def propagate(
    image: options.Image,
    output: options.Output,
    seed: SeedFile = None,
    clicks: ClickFile = None,
    label: Label = None,
    model: Model = DEFAULT_MODEL,
    seed_slice: SeedSlice = "all",
    size: Size = None,
    window: Window = None,
    roi: Box = None,
    guide: Guide = "auto",
    outline_by: Outliner = None,
    onto: Onto = None,
    parameter: Set = None,
    series: options.Series = None,
    any_values: options.AnyValues = False,
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Carry the annotated slices of LABELS through IMAGE, in both directions, to where each label ends.

    Slices that are annotated stay as they are. Only axial slices count as annotated: what is painted on sagittal or
    coronal ones is taken as points.
    """
    _check_given(seed, clicks, onto)
    how = parameters(parameter)
    settings = options.settings(device, precision)
    from polycl.volume import require_writable, write_volume

    require_writable(output)
    clock = [time.perf_counter()]
    volume = options.read_image(image, settings, series, any_values)
    kept = None if onto is None else _labels(onto, volume, settings)
    if clicks is not None:
        found, names = _outlined(clicks, volume, outline_by, kept, settings)
    else:
        found, names = _seeds(cast("Path", seed), volume, label, seed_slice, how.labels, settings)
    box = None if roi is None else parse_roi(roi, volume)
    clock.append(time.perf_counter())
    session = _session(volume, (model, size, window, guide), how, box, settings)
    session.put_found(found)
    clock.append(time.perf_counter())
    with options.progress("Propagating slices") as report:
        result = session.run(report)
    if kept is not None:
        result = _added(result, kept, found)
    clock.append(time.perf_counter())
    named = {names.get(index, f"Segment {index}"): index for index in sorted(found.seeds)}
    write_volume(result, output, names=named)
    clock.append(time.perf_counter())
    millilitres = {name: round(result.millilitres(result.voxels == index), 2) for name, index in named.items()}
    if as_json:
        done = {"output": str(output), "labels": named, **_done(session, found, named, clock)}
        options.print_json(done | {"volumes_ml": millilitres})
    else:
        organs = ", ".join(f"{name} {ml:.0f} ml" for name, ml in millilitres.items())
        typer.echo(f"{output}: {organs} ({clock[-1] - clock[0]:.1f} s)")


def _session(
    volume: Volume,
    by: tuple[str, int | None, str | None, str],
    how: PropagateParameters,
    box: Roi | None,
    settings: Settings,
) -> Propagation:
    """A propagation `by` --model, --size, --window and --guide."""
    from polycl.propagate.loading import load_propagator
    from polycl.propagate.session import Propagation

    model, size, window, guide = by
    engine = load_propagator(model, settings, size=size)
    seen = _frames(engine.frames, window, volume)
    guides = _guides(guide, volume, settings)
    return Propagation(volume, engine, parameters=how, frames=seen, roi=box, guides=guides)


def _check_given(seed: Path | None, clicks: Path | None, onto: Path | None) -> None:
    if (seed is None) == (clicks is None):
        raise InputError("give --seed, a label map, or --clicks, a JSON file: one of the two")
    if onto is not None and clicks is None:
        raise InputError("--onto goes with --clicks; labels of --seed keep their own ids")


def _done(session: Propagation, found: Found, named: Mapping[str, int], clock: Sequence[float]) -> dict[str, Any]:
    """What was done, for JSON."""
    known = {name: session.recognised[index] for name, index in named.items() if index in session.recognised}
    stages = itertools.pairwise(clock)
    return {
        "model": session.engine.name,
        "seed_slices": {name: len(found.seeds[index]) for name, index in named.items()},
        "recognised": {name: {"by": one.guide, "as": one.label} for name, one in known.items()},
        "seconds": {name: round(b - a, 3) for name, (a, b) in zip(STAGES, stages, strict=True)},
    }


def _seeds(
    path: Path, volume: Volume, given: list[str] | None, choice: str, most: int, settings: Settings
) -> tuple[Found, dict[int, str]]:
    """The seeds in the label map at `path`, and the names of ids that have one."""
    from polycl.propagate.seeds import from_labels
    from polycl.volume import read_segments

    labels = _labels(path, volume, settings)
    ids, names = wanted(given, read_segments(path))
    found = from_labels(labels, ids, seed_choice(choice, volume), most=most)
    for note in found.notes:
        typer.echo(f"polycl: {note}", err=True)
    return found, names


def _labels(path: Path, volume: Volume, settings: Settings) -> Volume:
    """The label map at `path`; InputError unless it is on the grid of `volume`."""
    from polycl.volume import read_volume

    labels = read_volume(path, kind="label", max_voxels=settings.max_voxels)
    volume.require_same_grid(labels, f"{path.name}:")
    return labels


def _outlined(
    path: Path, volume: Volume, by: str | None, kept: Volume | None, settings: Settings
) -> tuple[Found, dict[int, str]]:
    """What a SAM outlines at the clicks in the file at `path`, numbered on from the labels of `kept`, and the names."""
    from polycl.propagate.outlined import outline, parse
    from polycl.propagate.seeds import Found
    from polycl.sam import default_engine, load_engine

    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    entries = parse(path.read_bytes())
    seeds = outline(entries, volume, load_engine(by or default_engine(settings) or DEFAULT_MODEL, settings))
    first = 1 if kept is None else int(kept.voxels.max()) + 1
    names = dict(enumerate(seeds, start=first))
    if max(names) > LAST:
        raise InputError(f"{len(names)} more labels are too many: ids end at {LAST}, and the first free one is {first}")
    return Found({index: seeds[name] for index, name in names.items()}, {}), names


def _added(result: Volume, kept: Volume, found: Found) -> Volume:
    """`kept` with the labels of `result` where it has none."""
    import numpy as np

    wanted = np.where(np.isin(result.voxels, list(found.seeds)) & (kept.voxels == 0), result.voxels, kept.voxels)
    return result.with_voxels(wanted.astype(np.uint8))


def parameters(given: list[str] | None) -> PropagateParameters:
    """The parameters of `--set NAME=VALUE`; InputError for what cannot be used."""
    import json

    from polycl.propagate.parameters import PropagateParameters

    values: dict[str, Any] = {}
    for item in given or []:
        name, equals, text = item.partition("=")
        if not equals:
            known = ", ".join(PropagateParameters.model_fields)
            raise InputError(f"--set {item!r} must be NAME=VALUE; names are {known}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return PropagateParameters(**values)


def wanted(given: list[str] | None, segments: Mapping[str, int]) -> tuple[list[int] | None, dict[int, str]]:
    """Ids of `--label`, None for all, and the names of ids that have one.

    Raises InputError for what is no label, NotFoundError for the name of no segment.
    """
    names = {index: name for name, index in segments.items()}
    ids: list[int] = []
    for text in given or ():
        number, equals, name = text.partition("=")
        if number.isascii() and number.isdigit():
            index = int(number)
            if equals and name:
                names[index] = name
        elif text in segments:
            index = segments[text]
        else:
            there = f"; its segments are {', '.join(segments)}" if segments else "; its labels have no names, only ids"
            raise NotFoundError(f"the seed has no label {text!r}{there}")
        if not 0 < index < 256:
            raise InputError(f"{text!r} is no label; ids are 1 to 255")
        ids += [index] if index not in ids else []
    return ids or None, names


def seed_choice(text: str, volume: Volume) -> Choice:
    """`--seed-slice`, an index in the image as a canonical one; InputError for anything else."""
    if text in ("all", "auto", "middle"):
        return cast("Choice", text)
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"--seed-slice {text!r} is none of all, auto, middle, or the index of a slice")
    import numpy as np

    from polycl.volume import from_canonical_index, to_canonical_index

    # The own axis that runs through axial slices is the one along which canonical z changes.
    step = np.diff(from_canonical_index([[0, 0, 0], [0, 0, 1]], volume.shape, volume.affine), axis=0)[0]
    axis, index = int(np.flatnonzero(step)[0]), int(text)
    if index >= volume.shape[axis]:
        raise InputError(f"--seed-slice {index}: the axial slices of the image are 0 to {volume.shape[axis] - 1}")
    own = np.zeros(3, dtype=int)
    own[axis] = index
    return int(to_canonical_index(own, volume.shape, volume.affine)[2])


def parse_roi(text: str, volume: Volume) -> Roi:
    """`--roi` as a canonical box; InputError unless it is six whole numbers."""
    import numpy as np

    from polycl.volume import to_canonical_index

    try:
        ends = np.array([int(part) for part in text.split(",")]).reshape(3, 2)
    except ValueError:
        raise InputError(f"--roi {text!r} must be six whole numbers: i0,i1,j0,j1,k0,k1") from None
    ends.sort(axis=1)
    if (ends[:, 0] == ends[:, 1]).any():
        raise InputError(f"--roi {text!r} has no volume; the ends are left out")
    corners = to_canonical_index(np.stack([ends[:, 0], ends[:, 1] - 1]), volume.shape, volume.affine)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    x0, x1, y0, y1, z0, z1 = (int(value) for pair in zip(low, high, strict=True) for value in pair)
    return x0, x1, y0, y1, z0, z1


def _frames(frames: FrameConfig, window: str | None, volume: Volume) -> FrameConfig:
    """How the network sees slices, through another window if one is given."""
    if window is None:
        return frames
    from polycl.window import seen_through, window_from

    parts = window.split(",")
    try:
        choice = window_from([float(part) for part in parts] if len(parts) == 2 else window)
    except ValueError:
        choice = window_from(window)
    return frames.model_copy(update={"windows": (seen_through(choice, volume.window),)})


def _guides(name: str, volume: Volume, settings: Settings) -> list[Helper]:
    """The segmenters that may help: one by its name, with `auto` all whose weights are here, with `none` none."""
    from polycl.catalogue import Catalogue
    from polycl.propagate.guides import SegmenterGuide
    from polycl.segmenter import Segmenter

    catalogue = Catalogue.default(settings)
    entries = [] if name == "none" else [catalogue.entry(name, "segmenter")] if name != "auto" else _here(catalogue)
    where = {"device": settings.device, "precision": settings.precision}
    loaded = [(entry.name, Segmenter.load(entry.path, sha256=entry.sha256, **where)) for entry in entries]
    return [SegmenterGuide(segmenter, known, volume.canonical()) for known, segmenter in loaded]


def _here(catalogue: Catalogue) -> list[Entry]:
    entries = [catalogue.entry(name, "segmenter") for name in catalogue.names("segmenter")]
    return [entry for entry in entries if entry.path.is_file()]
