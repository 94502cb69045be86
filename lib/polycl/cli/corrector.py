"""`polycl train-corrector`: teach a 3D network to correct what a segmenter finds, by annotated slices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.cli.pretrain import check_checkpoint, command_line
from polycl.dataset import Case, Target, find_cases
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.corrector.examples import Patient
    from polycl.corrector.header import CorrectorHeader
    from polycl.corrector.training import Report
    from polycl.segmenter import Segmenter
    from polycl.settings import Settings

ECHO_EVERY = 100
"""Steps between two lines of figures."""


def train_corrector(
    dataset: Annotated[Path, typer.Argument(help="A folder with images/ and labels/ of same-named files.")],
    segmenter: Annotated[str, typer.Option(help="Whose findings it learns to correct: a name in the catalogue.")],
    target: Annotated[list[str], typer.Option(help="NAME=ID or NAME=ID,ID; NAME is a label of it. May be repeated.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (.safetensors).")],
    train: Annotated[list[str] | None, typer.Option(help="Cases to learn from, as a name pattern.")] = None,
    validate: Annotated[list[str] | None, typer.Option(help="Cases to choose the best weights by.")] = None,
    start: Annotated[Path | None, typer.Option(help="Checkpoint to go on from, instead of new weights.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    size: Annotated[int, typer.Option(min=32, help="Voxels a side of an example, a multiple of 16.")] = 48,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0, help="At its peak.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Train a network that corrects what a segmenter finds of an organ, once one slice of it is annotated. Resumes."""
    check_checkpoint(output)
    if size % 16:
        raise InputError(f"--size {size} is not a multiple of 16")
    settings = options.settings(device, precision)
    targets = [Target.parse(text) for text in target]
    held_out = find_cases(dataset, validate) if validate else []
    learn = [case for case in find_cases(dataset, train or ["*"]) if case not in held_out]
    if not learn:
        raise InputError("every case is held out for validation; name others with --train")
    from polycl import devices
    from polycl.checkpoints import load_as
    from polycl.corrector.header import CorrectorHeader
    from polycl.corrector.training import Recipe
    from polycl.corrector.training import train as learn_from

    weights = None if start is None else load_as(CorrectorHeader, start)[1]
    header, model = _header(segmenter, targets, learn, "" if start is None else start.name, settings)
    patients, others = _patients(learn, held_out, targets, model)
    with options.progress("Training steps") as bar:
        best = learn_from(
            header,
            patients,
            others,
            output,
            recipe=Recipe(steps=steps, batch=batch, size=size, learning_rate=learning_rate, seed=seed),
            where=devices.choose(settings.device, settings.precision),
            start=None if weights is None else {name: one.float() for name, one in weights.items()},
            report=lambda now: _tell(now, bar),
        )
    typer.echo(f"{output}: best validation Dice {best:.4f}" if held_out else f"{output}")


def _header(
    name: str, targets: list[Target], cases: list[Case], parent: str, settings: Settings
) -> tuple[CorrectorHeader, Segmenter]:
    """The header of the checkpoint to be, and the segmenter; InputError for a target that this has no label for."""
    from polycl.catalogue import Catalogue
    from polycl.checkpoints import Provenance
    from polycl.corrector.header import CorrectorHeader
    from polycl.segmenter import Segmenter

    entry = Catalogue.default(settings).entry(name, "segmenter")
    model = Segmenter.load(entry.path, sha256=entry.sha256, device=settings.device, precision=settings.precision)
    if unknown := [one.name for one in targets if one.name not in model.header.labels]:
        raise InputError(f"{name} has no label {', '.join(unknown)}; its labels are {', '.join(model.header.labels)}")
    provenance = Provenance(
        data=tuple(case.name for case in cases),
        command=command_line(sys.argv[1:]),
        parent=parent,
        created=datetime.now(UTC).date().isoformat(),
    )
    labels = tuple(one.name for one in targets)
    return CorrectorHeader(segmenter=entry.name, labels=labels, provenance=provenance), model


def _patients(
    learn: list[Case], held_out: list[Case], targets: list[Target], model: Segmenter
) -> tuple[list[Patient], list[Patient]]:
    from polycl.corrector.examples import read_patients

    every = len(learn) + len(held_out)
    with options.progress("Outlining scans") as bar:
        patients = read_patients(learn, targets, model, lambda done, _: bar(done, every))
        return patients, read_patients(held_out, targets, model, lambda done, _: bar(len(learn) + done, every))


def _tell(now: Report, bar: Callable[[int, int], None]) -> None:
    """Move the bar, and print a line now and then."""
    bar(now.step, now.steps)
    if now.dice is not None or now.step % ECHO_EVERY == 0:
        line = f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.seconds:.2f} s a step"
        typer.echo(line + (f" validation Dice {now.dice:.4f}" if now.dice is not None else ""), err=True)
