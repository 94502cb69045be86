"""`polycl propagate`: from a few annotated slices to the volume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from polycl.cli import options
from polycl.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polycl.catalogue import Catalogue, Entry
    from polycl.propagate.guides import Guide as Helper
    from polycl.propagate.header import FrameConfig
    from polycl.propagate.parameters import PropagateParameters
    from polycl.propagate.seeds import Choice, Found
    from polycl.propagate.session import Roi
    from polycl.settings import Settings
    from polycl.volume import Volume

DEFAULT_MODEL = "polycl-sam2-ct"
DIGITS = 9
"""Of the index of a slice, at most."""

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
Ends = Annotated[
    list[str] | None,
    typer.Option(
        help="FIRST:LAST axial slices that show the object, as indices in the image; either may be left out. Of one of "
        "several labels: LABEL=FIRST:LAST; may be repeated."
    ),
]
SeedFile = Annotated[
    Path, typer.Option("--seed", help="LABELS: a label map on the grid of IMAGE, its annotated slices not empty.")
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
    seed: SeedFile,
    output: options.Output,
    label: Label = None,
    model: Model = DEFAULT_MODEL,
    seed_slice: SeedSlice = "all",
    ends: Ends = None,
    size: Size = None,
    window: Window = None,
    roi: Box = None,
    guide: Guide = "auto",
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
    how = parameters(parameter)
    settings = options.settings(device, precision)
    from polycl.volume import require_writable, write_volume

    require_writable(output)
    clock = [time.perf_counter()]
    volume = options.read_image(image, settings, series, any_values)
    from polycl.propagate.loading import load_propagator
    from polycl.propagate.session import Propagation

    found, names = _seeds(seed, volume, label, (seed_slice, ends or []), how.labels, settings)
    box = None if roi is None else parse_roi(roi, volume)
    clock.append(time.perf_counter())
    engine, guides = load_propagator(model, settings, size=size), guides_of(guide, volume, settings)
    clock.append(time.perf_counter())
    frames = _frames(engine.frames, window, volume)
    session = Propagation(volume, engine, parameters=how, frames=frames, roi=box, guides=guides)
    session.put_found(found)
    with options.progress("Propagating slices") as report:
        result = session.run(report)
    clock.append(time.perf_counter())
    named = {_name(index, names): index for index in sorted(found.seeds)}
    write_volume(result, output, names=named)
    clock.append(time.perf_counter())
    millilitres = {name: round(result.millilitres(result.voxels == index), 2) for name, index in named.items()}
    if as_json:
        stages = ("read", "load", "propagate", "write")
        seconds = {stage: round(b - a, 3) for stage, a, b in zip(stages, clock[:-1], clock[1:], strict=True)}
        counts = {name: sum(not one.is_end for one in found.seeds[index].values()) for name, index in named.items()}
        known = [(name, one) for name, index in named.items() if (one := session.recognised.get(index)) is not None]
        done = {"output": str(output), "model": engine.name, "labels": named, "seed_slices": counts}
        done["recognised"] = {name: {"by": one.guide, "as": one.label} for name, one in known}
        options.print_json(done | {"volumes_ml": millilitres, "seconds": seconds})
    else:
        organs = ", ".join(f"{name} {ml:.0f} ml" for name, ml in millilitres.items())
        typer.echo(f"{output}: {organs} ({clock[-1] - clock[0]:.1f} s)")


def _seeds(
    path: Path, volume: Volume, given: list[str] | None, chosen: tuple[str, list[str]], most: int, settings: Settings
) -> tuple[Found, dict[int, str]]:
    """The seeds in the label map at `path`, and the names of ids that have one.

    `chosen`: which slices are seeds, and where labels begin and end.
    """
    from polycl.propagate.seeds import from_labels
    from polycl.volume import read_segments

    labels = options.read_labels(path, volume, settings)
    ids, names = wanted(given, read_segments(path))
    found = from_labels(labels, ids, seed_choice(chosen[0], volume), most=most)
    for note in found.notes:
        typer.echo(f"polycl: {note}", err=True)
    return _bounded(found, names, chosen[1], volume), names


def _bounded(found: Found, names: Mapping[int, str], given: list[str], volume: Volume) -> Found:
    """The seeds, with where `--ends` says that labels begin and end; InputError for what cannot be."""
    from polycl.propagate.seeds import bounded

    done: set[int] = set()
    for text in given:
        label, equals, span = text.rpartition("=")
        first, colon, last = span.partition(":")
        if not colon or not (first or last):
            raise InputError(f"--ends {text!r} must be FIRST:LAST or LABEL=FIRST:LAST; one of the two may be left out")
        index = _labelled(label if equals else None, sorted(found.seeds), names)
        low, high = (_axial(one, volume, "--ends") if one else None for one in (first, last))
        if first and last and int(first) > int(last):
            raise InputError(f"--ends {text!r}: the first slice comes after the last")
        if index in done:
            raise InputError(f"--ends {text!r}: where {_name(index, names)} begins and ends was said already")
        done.add(index)
        bounds = (high, low) if _through(volume)[1] < 0 else (low, high)
        found = bounded(found, index, volume, *bounds)
    return found


def _labelled(text: str | None, ids: list[int], names: Mapping[int, str]) -> int:
    """The id that `text` names or is, of those that have seeds; without `text` the only one. InputError if unclear."""
    meant = [index for index in ids if text in (None, str(index), _name(index, names))]
    if len(meant) != 1:
        there = ", ".join(f"{index} ({_name(index, names)})" for index in ids)
        raise InputError(f"--ends: say which label begins and ends there, as LABEL=FIRST:LAST; there are {there}")
    return meant[0]


def _name(index: int, names: Mapping[int, str]) -> str:
    return names.get(index, f"Segment {index}")


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
    return _axial(text, volume, "--seed-slice")


def _axial(text: str, volume: Volume, option: str) -> int:
    """The canonical number of the axial slice with the index `text` in the image; InputError if there is none."""
    import numpy as np

    from polycl.volume import to_canonical_index

    axis, _ = _through(volume)
    digits = text.isascii() and text.isdigit() and len(text) <= DIGITS
    if not digits or int(text) >= volume.shape[axis]:
        raise InputError(f"{option} {text}: the axial slices of the image are 0 to {volume.shape[axis] - 1}")
    own = np.zeros(3, dtype=int)
    own[axis] = int(text)
    return int(to_canonical_index(own, volume.shape, volume.affine)[2])


def _through(volume: Volume) -> tuple[int, int]:
    """The image's own axis that runs through axial slices, and whether it runs to the head, 1, or to the feet, -1."""
    import numpy as np

    from polycl.volume import from_canonical_index

    step = np.diff(from_canonical_index([[0, 0, 0], [0, 0, 1]], volume.shape, volume.affine), axis=0)[0]
    axis = int(np.flatnonzero(step)[0])
    return axis, int(step[axis])


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


def guides_of(name: str, volume: Volume, settings: Settings) -> list[Helper]:
    """The segmenters that may help: one by its name, with `auto` all whose weights are here, with `none` none."""
    from polycl.catalogue import Catalogue
    from polycl.corrector.loading import load_correctors
    from polycl.propagate.guides import SegmenterGuide
    from polycl.segmenter import Segmenter

    catalogue = Catalogue.default(settings)
    entries = [] if name == "none" else [catalogue.entry(name, "segmenter")] if name != "auto" else _here(catalogue)
    where = {"device": settings.device, "precision": settings.precision}
    loaded = [(entry.name, Segmenter.load(entry.path, sha256=entry.sha256, **where)) for entry in entries]
    correctors = load_correctors(settings, {known for known, _ in loaded})
    return [SegmenterGuide(segmenter, known, volume.canonical(), correctors) for known, segmenter in loaded]


def _here(catalogue: Catalogue) -> list[Entry]:
    entries = [catalogue.entry(name, "segmenter") for name in catalogue.names("segmenter")]
    return [entry for entry in entries if entry.path.is_file()]
