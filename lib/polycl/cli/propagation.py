"""`polycl train-propagation`: teach a small SAM 2 to follow objects through CT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.cli.pretrain import check_checkpoint, command_line
from polycl.dataset import Case, find_cases
from polycl.errors import InputError

if TYPE_CHECKING:
    import torch

    from polycl.devices import Device
    from polycl.propagate.training.loop import Report
    from polycl.propagate.training.recipe import Recipe
    from polycl.propagate.training.store import ObjectStore
    from polycl.settings import Settings

ECHO_EVERY = 50
"""Steps between two lines of figures."""


def train_propagation(
    datasets: Annotated[list[Path], typer.Argument(help="Folders with images/, and labels/ if there are any.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (.safetensors).")],
    train: Annotated[list[str] | None, typer.Option(help="Cases to learn from, as a name pattern.")] = None,
    validate: Annotated[list[str] | None, typer.Option(help="Labelled cases to choose the best weights by.")] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Generated patients to learn from besides.")] = 8,
    start: Annotated[Path | None, typer.Option(help="Checkpoint to go on from, instead of new weights.")] = None,
    teacher: Annotated[
        str, typer.Option(help="mobile-sam: start from its decoder, and an encoder that it taught; or none.")
    ] = "mobile-sam",
    stage: Annotated[
        list[str] | None,
        typer.Option(help="STEPS,SIZE,BATCH[,LENGTH[,OBJECTS]], see the docs. Repeatable."),
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0, help="At its peak.")] = 8e-4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared scans; in the state folder if none.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare clips.")] = 0,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Train the small SAM 2 for CT to follow whatever was outlined on one slice: organs, lesions, and regions of scans
    without labels.

    A run that was interrupted goes on where it was when the same command is given again.
    """
    check_checkpoint(output)
    settings = options.settings(device, precision)
    learn, held_out = _split(datasets, train or ["*"], validate or [])
    from polycl.devices import choose
    from polycl.propagate.training.recipe import Recipe, Stage

    recipe = Recipe(learning_rate=learning_rate, seed=seed, workers=workers)
    if stage:
        recipe = replace(recipe, stages=tuple(Stage.parse(text) for text in stage))
    folder = cache or settings.cache / "objects"
    with options.progress("Preparing scans") as bar:
        store, validation = _stores(learn, held_out, phantoms, folder, bar)
    where = choose(settings.device, settings.precision)
    first = _first(start, teacher, store, recipe, settings, where, output)
    _run(store, validation, recipe, output, where, first)


def _split(datasets: list[Path], train: list[str], validate: list[str]) -> tuple[list[Case], list[Case]]:
    """The cases to learn from and those to validate by; NotFoundError or InputError if there are none."""
    cases = [case for folder in datasets for case in find_cases(folder, labelled=False)]
    held_out = [case for case in cases if any(fnmatch(case.name, pattern) for pattern in validate)]
    learn = [case for case in cases if case not in held_out and any(fnmatch(case.name, pattern) for pattern in train)]
    if not learn:
        raise InputError(f"no case is left to learn from: {len(cases)} were found, {len(held_out)} are held out")
    if missing := [case.name for case in held_out if case.label is None]:
        raise InputError(f"validation needs labels, and there are none for {', '.join(missing[:5])}")
    return learn, held_out


def _stores(
    learn: list[Case], held_out: list[Case], phantoms: int, folder: Path, bar: Callable[[int, int], None]
) -> tuple[ObjectStore, ObjectStore | None]:
    from polycl.propagate.training.store import ObjectStore

    count = len(learn) + len(held_out)
    store = ObjectStore.build(learn, folder, progress=lambda done, _: bar(done, count)).with_phantoms(phantoms)
    if not held_out:
        return store, None
    return store, ObjectStore.build(held_out, folder, progress=lambda done, _: bar(len(learn) + done, count))


@dataclass(frozen=True)
class First:
    """Weights to begin with, None for new ones, and the name of what they come from."""

    name: str = ""
    weights: dict[str, torch.Tensor] | None = None


def _first(
    start: Path | None,
    teacher: str,
    store: ObjectStore,
    recipe: Recipe,
    settings: Settings,
    where: Device,
    output: Path,
) -> First:
    """The first weights: a checkpoint's, or what the teacher taught. A run that goes on has its own."""
    if start is not None:
        from polycl.propagate.training.start import weights_of

        return First(start.name, weights_of(start))
    if teacher == "none":
        return First()
    if output.with_suffix(".resume").is_file():
        return First(teacher, {})
    from polycl import checksums
    from polycl.catalogue import Catalogue
    from polycl.propagate.training.distil import taught

    entry = Catalogue.default(settings).engine(teacher)
    if entry.listing.architecture != "onnx":
        raise InputError(f"{teacher} cannot teach; mobile-sam can")
    encoder, decoder = sorted(entry.paths(), key=lambda path: path.name, reverse=True)
    checksums.checked([encoder, decoder], {file.name: file.sum for file in entry.listing.files})
    with options.progress("Slices shown to the teacher") as shown, options.progress("Learning from it") as learned:
        return First(teacher, taught(store, recipe, (encoder, decoder), where, (shown, learned)))


def _run(
    store: ObjectStore,
    validation: ObjectStore | None,
    recipe: Recipe,
    output: Path,
    where: Device,
    first: First,
) -> None:
    from polycl.checkpoints import Provenance
    from polycl.propagate.training.loop import train

    provenance = Provenance(
        data=tuple(scan.name for scan in store.scans),
        command=command_line(sys.argv[1:]),
        parent=first.name,
        created=datetime.now(UTC).date().isoformat(),
    )
    with options.progress("Training steps") as bar:

        def report(now: Report) -> None:
            bar(now.step, now.steps)
            if now.validation is not None or now.step % ECHO_EVERY == 0:
                typer.echo(_line(now), err=True)

        best = train(
            store,
            validation,
            output,
            recipe=recipe,
            where=where,
            provenance=provenance,
            start=first.weights,
            report=report,
        )
    typer.echo(f"{output} validation Dice {best:.4f}" if validation else str(output))


def _line(now: Report) -> str:
    line = f"step {now.step}/{now.steps} loss {now.loss:.3f} Dice {now.dice:.3f} {now.seconds:.2f} s a step"
    return line if now.validation is None else f"{line} validation Dice {now.validation:.4f}"
