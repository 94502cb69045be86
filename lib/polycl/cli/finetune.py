"""`polycl finetune`: teach a segmenter from labelled slices."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.dataset import Case, Target, find_cases, labelled_slices
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.checkpoints import Header
    from polycl.segmenter.training import TrainingData

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
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side of a training crop, a multiple of 16.")] = 192,
    spacing: Annotated[float, typer.Option(min=0.1, help="In-plane pixel spacing of the network, mm.")] = 1.5,
    seed: int = 0,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Train a segmenter on DATASET and keep the weights with the best mean Dice on whole validation volumes.

    A run that was interrupted goes on where it was when the same command is given again.
    """
    if size % 16:
        raise InputError(f"--size {size} is not a multiple of 16")
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    settings = options.settings(device, precision)
    from polycl import devices
    from polycl.segmenter.augment import Augmentation
    from polycl.segmenter.training import Report, Schedule
    from polycl.segmenter.training import finetune as run

    targets, without = [Target.parse(text) for text in target], _negatives(negatives, negative_cases)
    data = _data(dataset, targets, train, validate, without)
    learnt = {one.case: None for one in (*data.slices, *data.negatives)}
    with options.progress("Training steps") as bar:

        def report(now: Report) -> None:
            bar(now.step, now.steps)
            if now.dice is not None or now.step % 100 == 0:
                line = f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.slices_per_second:.1f} slices/s"
                typer.echo(line + (f" validation Dice {now.dice:.4f}" if now.dice is not None else ""), err=True)

        best = run(
            _header(targets, size, spacing, tuple(learnt)),
            data,
            output,
            schedule=Schedule(steps=steps, batch=batch, seed=seed),
            augmentation=Augmentation(),
            report=report,
            where=devices.choose(settings.device, settings.precision),
        )
    typer.echo(f"{output}: best validation Dice {best:.4f}" if data.validation else f"{output}")


def _negatives(folder: Path | None, count: int) -> list[Case]:
    """The first `count` cases of a data set that holds none of the targets; their labels, if any, are not read."""
    if folder is None:
        return []
    return [Case(case.name, case.image, None) for case in find_cases(folder, labelled=False)[:count]]


def _data(
    dataset: Path, targets: list[Target], train: list[str] | None, validate: list[str] | None, without: list[Case]
) -> TrainingData:
    from polycl.segmenter.training import TrainingData

    held_out = find_cases(dataset, validate) if validate else []
    chosen = [case for case in find_cases(dataset, train or ["*"]) if case not in held_out]
    if not chosen:
        raise InputError("every case is held out for validation; name others with --train")
    return TrainingData(
        slices=list(labelled_slices(chosen, targets)),
        negatives=list(labelled_slices(without, targets, every=NEGATIVE_EVERY)),
        validation=[(case, targets) for case in held_out],
    )


def _header(targets: list[Target], size: int, spacing: float, cases: tuple[str, ...]) -> Header:
    from polycl.checkpoints import Header, NetworkConfig, Preprocessing, Provenance

    return Header(
        network=NetworkConfig(classes=len(targets) + 1),
        preprocessing=Preprocessing(size=size, spacing=spacing),
        labels={one.name: index for index, one in enumerate(targets, start=1)},
        largest={one.name: 1 for one in targets},
        provenance=Provenance(
            data=cases,
            command="polycl " + " ".join(sys.argv[1:]),
            created=datetime.now(UTC).date().isoformat(),
        ),
    )
