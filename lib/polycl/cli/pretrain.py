"""`polycl pretrain`: teach an encoder from unlabelled CT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polycl.cli import options
from polycl.dataset import Target
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.checkpoints import Header, NetworkConfig
    from polycl.contrast.examples import Examples
    from polycl.contrast.objective import Recipe
    from polycl.contrast.pretraining import Report
    from polycl.contrast.tracking import OpenTracker
    from polycl.devices import Device

ECHO_EVERY = 100
"""Steps between two lines of figures."""
NAMED = 5
"""Scans left out that are named with their reason."""


def pretrain(
    dataset: Annotated[Path, typer.Argument(help="A data set, a folder of MONAI Label, or a folder of DICOM series.")],
    strategy: Annotated[Literal["scan", "organ", "mixed", "simclr"], typer.Option(help="How examples are chosen.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint to write (.safetensors).")],
    target: Annotated[
        list[str] | None, typer.Option(help="Organ of organ and mixed: NAME=ID[,ID]. Repeatable.")
    ] = None,
    presence: Annotated[Path | None, typer.Option(help="Where it is, instead: a CSV of scan,first,last.")] = None,
    train: Annotated[list[str] | None, typer.Option(help="Scans to learn from, as a name pattern.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    batch: Annotated[int, typer.Option(min=2, help="Triplets (simclr: slices) a step, over all devices.")] = 32,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side of a slice, a multiple of 16.")] = 192,
    spacing: Annotated[float, typer.Option(min=0.1, help="In-plane pixel spacing, mm.")] = 1.5,
    temperature: Annotated[float, typer.Option(min=0.001)] = 0.1,
    negatives: Annotated[Literal["one", "batch"], typer.Option(help="The drawn one, or all of the batch.")] = "one",
    architecture: Annotated[Literal["unet", "resnet18"], typer.Option(help="The encoder.")] = "unet",
    norm: Annotated[Literal["batch", "instance"], typer.Option(help="instance needs --pool max or grid.")] = "batch",
    pool: Annotated[Literal["average", "max", "grid"], typer.Option(help="From features to embedding.")] = "average",
    local: Annotated[float, typer.Option(min=0, help="Weight of the loss within slices; trains a decoder too.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    slice_range: Annotated[tuple[float, float], typer.Option(help="Part of each scan, as fractions.")] = (0.0, 1.0),
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared slices; in the state folder if none.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read scans and draw examples.")] = 0,
    devices: Annotated[int | None, typer.Option(min=1, help="Processes that share the work, one a GPU.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a scan that cannot be used.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs.")] = None,
    mlflow: Annotated[str | None, typer.Option(help="MLflow server (with ://), or a folder.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Train an encoder by contrast on DATASET, without pixel labels, for polycl finetune --encoder.

    A run that was interrupted goes on where it was when the same command is given again.
    """
    settings = options.settings(device, precision)
    _check(output, size)
    from polycl.checkpoints import NetworkConfig
    from polycl.contrast.examples import Examples
    from polycl.contrast.objective import Recipe
    from polycl.devices import choose

    examples = Examples(
        dataset,
        strategy,
        cache or settings.cache / "slices",
        targets=[Target.parse(text) for text in target or ()],
        table=presence,
        patterns=train or ["*"],
        slice_range=slice_range,
        seed=seed,
        workers=workers,
        strict=strict,
    )
    recipe = Recipe(
        strategy, negatives, temperature, pool, local=local, steps=steps, batch=batch, seed=seed, workers=workers
    )
    header = _header(NetworkConfig(architecture=architecture, norm=norm), size, spacing)
    trackers = _trackers(recipe, tensorboard, mlflow)
    _run(examples, recipe, header, output, choose(settings.device, settings.precision), devices, trackers)


def _run(
    examples: Examples,
    recipe: Recipe,
    header: Header,
    output: Path,
    where: Device,
    processes: int | None,
    trackers: list[OpenTracker],
) -> None:
    from polycl.contrast.launch import is_leader
    from polycl.contrast.pretraining import pretrain
    from polycl.devices import matrix_product_peak

    # slices are prepared before further processes start: those find them ready
    with _progress("Preparing scans") as bar:
        views, left_out = examples.views(header.preprocessing, bar)
    with _progress("Pre-training steps") as bar:

        def report(now: Report) -> None:
            bar(now.step, now.steps)
            if now.step % ECHO_EVERY == 0 or now.step == now.steps:
                typer.echo(_line(now), err=True)

        pretrain(
            _with_data(header, tuple(views.store.names)),
            views,
            output,
            recipe=recipe,
            where=where,
            processes=processes,
            peak=matrix_product_peak(where) if is_leader() else None,
            trackers=trackers,
            report=report,
        )
    if is_leader():
        typer.echo(str(output))
        if left_out:
            reasons = [f"{name}: {reason}" for name, reason in list(left_out.items())[:NAMED]]
            typer.echo(f"{len(left_out)} scans were left out: {'; '.join(reasons)}", err=True)


def _progress(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    from polycl.contrast.launch import is_leader

    return options.progress(title) if is_leader() else nullcontext(lambda _done, _total: None)


def _line(now: Report) -> str:
    share = "" if now.share is None else f" ({now.share:.0%} of this machine's peak)"
    return (
        f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.slices_per_second:.1f} slices/s{share} "
        f"spread {now.health.spread:.4f} rank {now.health.rank:.1f}"
    )


def _check(output: Path, size: int) -> None:
    """InputError for what would else fail only at the end."""
    if size % 16:
        raise InputError(f"--size {size} is not a multiple of 16")
    check_checkpoint(output)


def check_checkpoint(output: Path) -> None:
    """InputError where a checkpoint cannot be written to `output`; its folder is made."""
    from polycl.settings import why_unwritable

    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        reason = why_unwritable(output.parent)
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise InputError(f"{output} cannot be written: {reason}")


def _header(network: NetworkConfig, size: int, spacing: float) -> Header:
    from polycl.checkpoints import Header, Preprocessing, Provenance

    return Header(
        kind="encoder",
        network=network,
        preprocessing=Preprocessing(size=size, spacing=spacing),
        provenance=Provenance(command=command_line(sys.argv[1:]), created=datetime.now(UTC).date().isoformat()),
    )


def _with_data(header: Header, names: tuple[str, ...]) -> Header:
    return header.model_copy(update={"provenance": header.provenance.model_copy(update={"data": names})})


def command_line(arguments: list[str]) -> str:
    """The command as it may be published: of an absolute path, only the last part.

    >>> command_line(["pretrain", "/home/me/ct", "--cache=/tmp/slices", "-o", "e.safetensors"])
    'polycl pretrain ct --cache=slices -o e.safetensors'
    """
    shown = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
        shown.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return " ".join(["polycl", *shown])


def _trackers(recipe: Recipe, tensorboard: Path | None, mlflow: str | None) -> list[OpenTracker]:
    from polycl.contrast.tracking import Mlflow, TensorBoard

    trackers: list[OpenTracker] = []
    if tensorboard is not None:
        trackers.append(lambda: TensorBoard(tensorboard))
    if mlflow is not None:
        trackers.append(lambda: Mlflow(mlflow, asdict(recipe)))
    return trackers
