"""`polycl experiment collapse`: which norm and pooling let embeddings collapse."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from polycl.cli import options


def collapse(
    task: Annotated[str, typer.Argument(help="headneck or liver.")],
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("../shared/data"),
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the table.")] = Path("docs/results"),
    method: Annotated[str, typer.Option(help="scan, organ or mixed.")] = "mixed",
    steps: Annotated[int, typer.Option(min=1, help="Pre-training steps of each.")] = 200,
    batch: Annotated[int, typer.Option(min=2)] = 24,
    seed: int = 0,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Pre-train shortly with each norm and pooling, on the same triplets; tell loss, spread and rank of embeddings."""
    settings = options.settings(device, precision)
    from polycl import devices
    from polycl.experiments import collapse as experiment
    from polycl.experiments.label_efficiency import Experiment, Plan
    from polycl.experiments.tasks import chosen
    from polycl.experiments.tasks import task as find_task
    from polycl.files import write_atomically

    found = find_task(task, data)
    chosen([method], [one for one in found.methods if one in ("scan", "organ", "mixed")], "method")
    where = devices.choose(settings.device, settings.precision)
    plan = Plan(pretrain_steps=steps, pretrain_batch=batch)
    study = Experiment(found, plan, output / f"collapse-{task}.jsonl", settings.cache / "experiments", where)
    with TemporaryDirectory() as scratch, options.progress("Pre-training") as bar:
        outcomes = experiment.compare(
            found.coarse,
            study.views(method, seed),
            study.recipe(method, seed),
            where,
            Path(scratch),
            bar,
        )
    page = output / f"collapse-{task}.md"
    head = (
        f"# Collapse: {task}, {method}\n\n{steps} steps of {batch} triplets with each norm and pooling, seed {seed}.\n"
    )
    write_atomically(page, f"{head}\n{experiment.table(outcomes)}\n".encode())
    typer.echo(f"{page}: {len(outcomes)} runs")
