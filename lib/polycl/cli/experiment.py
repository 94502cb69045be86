"""`polycl experiment`: compare methods on the fixed splits; what was found goes into a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.cli.experiment_annotation import annotation
from polycl.cli.experiment_collapse import collapse
from polycl.cli.experiment_refinement import refinement

if TYPE_CHECKING:
    from polycl.experiments.label_efficiency import Experiment
    from polycl.experiments.tasks import Task

app = typer.Typer(help="Compare methods on the fixed splits.", no_args_is_help=True)
app.command("refinement")(refinement)
app.command("annotation")(annotation)
app.command("collapse")(collapse)


@app.command("label-efficiency")
def label_efficiency(
    task: Annotated[str, typer.Argument(help="headneck or liver.")],
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("../shared/data"),
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for rows, tables and plot.")] = Path(
        "docs/results"
    ),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Only so many labelled slices; 0 for all of them.")] = None,
    pretrain_steps: Annotated[int, typer.Option(min=1)] = 600,
    finetune_steps: Annotated[int, typer.Option(min=1)] = 400,
    patients: Annotated[int | None, typer.Option(min=1, help="Only so many of each group, to try it out.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after so many runs.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Dice against labelled slices for each way of pre-training. Runs that are in OUTPUT are not run again."""
    settings = options.settings(device, precision)
    from polycl import devices
    from polycl.experiments.label_efficiency import Experiment, Plan, runs
    from polycl.experiments.tasks import chosen
    from polycl.experiments.tasks import task as find_task

    found = find_task(task, data, patients=patients)
    methods = chosen(method, found.methods, "method")
    plan = Plan(pretrain_steps=pretrain_steps, finetune_steps=finetune_steps)
    cache = settings.cache / "experiments"
    results = output / f"label-efficiency-{task}.jsonl"
    where = devices.choose(settings.device, settings.precision)
    experiment = Experiment(found, plan, results, cache, where)
    left = experiment.missing(runs(found, seeds, methods, budget or found.budgets))[:limit]
    with options.progress(f"{len(left)} runs") as bar:
        for done, run in enumerate(left):
            bar(done, len(left))
            row = experiment.run(run)
            typer.echo(f"{run.method} {run.budget} slices, seed {run.seed}: {row['seconds']:.0f} s", err=True)
    _write(experiment, found, output)


def _write(experiment: Experiment, task: Task, output: Path) -> None:
    """The page with tables and plots that the rows give."""
    from polycl.experiments import report
    from polycl.files import write_atomically

    rows = experiment.rows()
    methods = [method for method in task.methods if any(row["method"] == method for row in rows)]
    parts = [f"# Label efficiency: {task.name}\n", f"{len(rows)} runs of {experiment.plan}.\n"]
    for domain in task.tests:
        picture = f"label-efficiency-{task.name}-{domain.replace(' ', '-')}.png"
        report.plot(rows, domain, methods, output / picture)
        parts.append(f"## {domain.capitalize()}\n\n![Dice against labelled slices, {domain}]({picture})\n")
        for figure, title in report.FIGURES.items():
            parts.append(f"{title}, mean ± standard deviation over seeds (how many):\n\n")
            parts.append(report.table(rows, domain, methods, figure) + "\n")
        for baseline, title in report.BASELINES.items():
            if baseline in methods:
                parts.append(f"Dice less that of {title}, the same slices and seed (Wilcoxon's p over patients):\n\n")
                parts.append(report.differences(rows, domain, methods, baseline) + "\n")
    page = output / f"label-efficiency-{task.name}.md"
    write_atomically(page, "\n".join(parts).encode())
    typer.echo(f"{page}: {len(rows)} runs")
