"""`polycl finetune`: teach a segmenter from labelled slices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from polycl.cli import options
from polycl.cli.starts import Start, start_of
from polycl.dataset import Case, Target, find_cases, labelled_slices
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.checkpoints import Header
    from polycl.dataset import LabelledSlice
    from polycl.segmenter.training import Report, TrainingData
    from polycl.settings import Settings

NEGATIVE_EVERY = 6
"""Of a volume without the targets, so many slices apart are enough."""


def finetune(
    dataset: Annotated[Path, typer.Argument(help="A folder with images/ and labels/ of same-named files.")],
    target: Annotated[list[str], typer.Option(help="What to learn: NAME=ID or NAME=ID,ID. May be repeated.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (.safetensors).")],
    train: Annotated[list[str] | None, typer.Option(help="Cases to learn from, as a name pattern.")] = None,
    validate: Annotated[list[str] | None, typer.Option(help="Cases to choose the best weights by.")] = None,
    negatives: Annotated[Path | None, typer.Option(help="A data set known to hold none of the targets.")] = None,
    negative_cases: Annotated[int, typer.Option(help="Use the first so many cases of it.")] = 80,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="More: halves without the target, mirrored.")] = False,
    unenhanced: Annotated[float, typer.Option(min=0, max=1, help="Show this share as without contrast medium.")] = 0.0,
    removed: Annotated[float, typer.Option(min=0, max=1, help="Take one of several targets out of this share.")] = 0.0,
    certain: Annotated[float, typer.Option(min=0, max=1, help="Drop a label with fewer sure pixels, a share.")] = 0.0,
    smooth: Annotated[float, typer.Option(min=0, help="Average slices with their neighbours, by so many mm.")] = 0.0,
    contrast: Annotated[float, typer.Option(min=0.5, max=2, help="Narrow the window by so much after training.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side of a training crop, a multiple of 16.")] = 192,
    spacing: Annotated[float, typer.Option(min=0.1, help="In-plane pixel spacing of the network, mm.")] = 1.5,
    beside: Annotated[
        list[float] | None, typer.Option(help="See what lies so many mm below and above with it. May be repeated.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Name or checkpoint of an encoder, or of a segmenter.")] = None,
    start: Annotated[str | None, typer.Option(help="A segmenter with as many labels to go on from, whole.")] = None,
    slices: Annotated[int | None, typer.Option(min=1, help="Learn from so many slices with a target only.")] = None,
    scans: Annotated[int | None, typer.Option(min=1, help="Learn from so many scans with a target only.")] = None,
    absent: Annotated[bool, typer.Option("--absent", help="With few: all slices without a target, too.")] = False,
    outline: Annotated[
        int, typer.Option(min=0, help="With few: outline so many of the rest itself, told what is in each; learn on.")
    ] = 0,
    background: Annotated[float, typer.Option(min=0, max=1, help="Its weight in cross entropy; 1 as all else.")] = 1.0,
    tighten: Annotated[
        float, typer.Option(min=0, max=1, help="Let that weight grow to 1 over this share of the steps.")
    ] = 0.0,
    loss: Annotated[Literal["dice", "dice-ce"], typer.Option(help="Dice alone, or with cross entropy.")] = "dice-ce",
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0, help="The highest of the schedule.")] = 2e-3,
    freeze: Annotated[int, typer.Option(min=0, help="Steps for which the encoder keeps its weights.")] = 0,
    architecture: Annotated[Literal["unet", "resnet18"], typer.Option(help="Where no encoder is given.")] = "unet",
    norm: Annotated[Literal["batch", "instance"] | None, typer.Option(help="batch, or the encoder's.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare training crops.")] = 0,
    seed: int = 0,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Train a segmenter on DATASET; keep the weights with the best Dice on whole validation volumes. Resumes."""
    _check(size, output, encoder, start, removed=removed, targets=len(target))
    settings = options.settings(device, precision)
    from polycl.segmenter.augment import Augmentation
    from polycl.segmenter.training import Schedule

    targets, without = [Target.parse(text) for text in target], _negatives(negatives, negative_cases)
    begin = start_of(settings, encoder, start, architecture, norm, targets).seeing(beside)
    everything = _data(dataset, targets, train, validate, without, begin.beside)
    data = _few(everything, slices, scans, seed, absent=absent)
    loss_options: dict[str, Any] = {"loss": loss, "background": background, "tighten": tighten}
    schedule = Schedule(steps, batch, learning_rate, seed=seed, workers=workers, freeze=freeze, **loss_options)
    after = {"certain": certain, "smooth": smooth, "contrast": contrast}
    header = _header(begin, targets, size, spacing, data).model_copy(update=after)
    given = {"schedule": schedule, "augmentation": Augmentation(unenhanced=unenhanced, removed=removed)}
    data, rest = _mirrored(data) if mirrored else data, _rest(everything, data, outline, seed)
    _learn(header, data, rest, output, given | begin.weights, settings)


def _learn(
    header: Header,
    data: TrainingData,
    rest: list[LabelledSlice],
    output: Path,
    given: dict[str, Any],
    settings: Settings,
) -> None:
    """Train, with progress: twice if slices are left to be outlined in between. Tells the best validation Dice."""
    from polycl import devices
    from polycl.segmenter.self_training import finetune_twice
    from polycl.segmenter.training import finetune

    where = devices.choose(settings.device, settings.precision)
    with options.progress("Training steps") as bar:
        given = {**given, "where": where, "report": lambda now: _tell(now, bar)}
        best = finetune_twice(header, data, rest, output, **given) if rest else finetune(header, data, output, **given)
    typer.echo(f"{output}: best validation Dice {best:.4f}" if data.validation else f"{output}")


def _check(size: int, output: Path, encoder: str | None, start: str | None, *, removed: float, targets: int) -> None:
    if removed and targets < 2:
        raise InputError("--removed takes one of several targets out; give more than one --target")
    if start is not None and encoder is not None:
        raise InputError("give --start or --encoder, not both")
    if size % 16:
        raise InputError(f"--size {size} is not a multiple of 16")
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")


def _tell(now: Report, bar: Callable[[int, int], None]) -> None:
    """Move the bar, and print a line now and then."""
    bar(now.step, now.steps)
    if now.dice is not None or now.step % 100 == 0:
        line = f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.slices_per_second:.1f} slices/s"
        typer.echo(line + (f" validation Dice {now.dice:.4f}" if now.dice is not None else ""), err=True)


def _few(data: TrainingData, slices: int | None, scans: int | None, seed: int, *, absent: bool) -> TrainingData:
    """The data with only so many labelled slices, or scans; with `absent`, slices without a target as negatives."""
    from polycl.segmenter.budget import draw_scans, draw_slices

    if slices is not None and scans is not None:
        raise InputError("give --slices or --scans, not both")
    if absent:
        if slices is None and scans is None:
            raise InputError("--absent needs --slices or --scans; without them all slices are learned from anyway")
        data = replace(data, negatives=[*data.negatives, [one for one in data.slices if not one.classes.any()]])
    if slices is not None:
        return replace(data, slices=draw_slices(data.slices, slices, seed))
    return data if scans is None else replace(data, slices=draw_scans(data.slices, scans, seed))


def _rest(everything: TrainingData, few: TrainingData, count: int, seed: int) -> list[LabelledSlice]:
    """`count` slices that hold a target and are not among the few, or all of those there are."""
    from polycl.segmenter.budget import draw_slices

    if not count:
        return []
    chosen = {id(one) for one in few.slices}
    rest = [one for one in everything.slices if id(one) not in chosen and one.classes.any()]
    if not rest:
        raise InputError("--outline needs --slices or --scans; without them no slice is left to outline")
    return draw_slices(rest, min(count, len(rest)), seed + 1)


def _mirrored(data: TrainingData) -> TrainingData:
    """The data with more negatives: the halves of its slices without a target, mirrored."""
    from polycl.segmenter.mirror import mirrored

    return replace(data, negatives=[*data.negatives, mirrored(data.slices)])


def _negatives(folder: Path | None, count: int) -> list[Case]:
    """The first `count` cases of a data set that holds none of the targets; their labels, if any, are not read."""
    if folder is None:
        return []
    return [Case(case.name, case.image, None) for case in find_cases(folder, labelled=False)[:count]]


def _data(
    dataset: Path,
    targets: list[Target],
    train: list[str] | None,
    validate: list[str] | None,
    without: list[Case],
    beside: tuple[float, ...] = (),
) -> TrainingData:
    from polycl.segmenter.training import TrainingData

    held_out = find_cases(dataset, validate) if validate else []
    chosen = [case for case in find_cases(dataset, train or ["*"]) if case not in held_out]
    if not chosen:
        raise InputError("every case is held out for validation; name others with --train")
    return TrainingData(
        slices=list(labelled_slices(chosen, targets, beside=beside)),
        negatives=[list(labelled_slices(without, targets, every=NEGATIVE_EVERY, beside=beside))],
        validation=[(case, targets) for case in held_out],
    )


def _header(start: Start, targets: list[Target], size: int, spacing: float, data: TrainingData) -> Header:
    from polycl.checkpoints import Header, Preprocessing, Provenance

    return Header(
        network=start.network.model_copy(update={"classes": len(targets) + 1}),
        preprocessing=Preprocessing(size=size, spacing=spacing, beside=start.beside),
        labels={one.name: index for index, one in enumerate(targets, start=1)},
        largest={one.name: 1 for one in targets},
        provenance=Provenance(
            data=tuple({one.case: None for pool in (data.slices, *data.negatives) for one in pool}),
            command="polycl " + " ".join(sys.argv[1:]),
            parent=start.parent,
            created=datetime.now(UTC).date().isoformat(),
        ),
    )
