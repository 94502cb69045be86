"""`polycl experiment annotation`: annotators played over a fixed split, by each strategy of what to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from polycl.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polycl.experiments.annotation import Annotation, Round


def annotation(
    task: Annotated[str, typer.Argument(help="headneck or liver.")],
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("../shared/data"),
    output: Annotated[Path, typer.Option("-o", help="Folder for rows, table and plot.")] = Path("docs/results"),
    strategy: Annotated[
        list[str] | None, typer.Option(help="Only this strategy, or 'all labels'; may be repeated.")
    ] = None,
    reveal: Annotated[
        str, typer.Option(help="What is labelled of an image: slices, volumes, propagated (from one), or checked.")
    ] = "slices",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    picks: Annotated[int, typer.Option(min=1, help="Images a round.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps a round; three times as many in the first.")] = 40,
    width: Annotated[int, typer.Option(min=1, help="Channels of the network's first level; 16 is PolyCL's.")] = 8,
    look: Annotated[int, typer.Option(min=1, help="Slices of each image that strategies score.")] = 8,
    blind: Annotated[
        bool, typer.Option("--blind", help="Strategies do not know which slices hold something; random does.")
    ] = False,
    pool: Annotated[int | None, typer.Option(min=1, help="Only so many cases to annotate.")] = None,
    tests: Annotated[int | None, typer.Option(min=1, help="Only so many test cases of each domain.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only the tests of this domain: 'in domain', say.")] = None,
    propagator: Annotated[str, typer.Option(help="The model that fills volumes.")] = "polycl-sam2-ct",
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after so many rounds.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Dice against annotated slices, and minutes, for each way to choose them. Rounds in OUTPUT are not run again."""
    settings = options.settings(device, precision)
    from polycl import devices
    from polycl.experiments import annotation as played
    from polycl.experiments import tasks
    from polycl.experiments.annotator import Reveal
    from polycl.propagate.loading import load_propagator

    found = tasks.task(task, data)
    strategies = tasks.chosen(strategy, (played.ALL, *played.STRATEGIES), "strategy")
    (how,) = tasks.chosen([reveal], get_args(Reveal), "way to reveal labels")
    plan = played.Plan(
        reveal=how,  # type: ignore[arg-type]  # checked above
        picks=picks,
        first_steps=3 * steps,
        steps=steps,
        width=width,
        look=look,
        sighted=not blind,
        pool=pool,
        tests=tests,
        domain=None if domain is None else tasks.chosen([domain], list(found.tests), "domain")[0],
    )
    experiment = played.Annotation(
        found,
        plan,
        output / f"annotation-{task}.jsonl",
        settings.cache / "experiments" / "annotation",
        devices.choose(settings.device, settings.precision),
        load_propagator(propagator, settings) if how in ("propagated", "checked") else None,
    )
    _play(experiment, experiment.missing(played.rounds(strategies, seeds, rounds))[:limit])
    _write(experiment, output)


def _play(experiment: Annotation, left: Sequence[Round]) -> None:
    """Run the rounds, and say what each cost."""
    with options.progress(f"{len(left)} rounds") as bar:
        for done, one in enumerate(left):
            bar(done, len(left))
            row = experiment.run(one)
            costs = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in row["seconds"].items())
            told = f"{one.strategy}, seed {one.seed}, round {one.number}: {row['slices']} slices; {costs}"
            typer.echo(told, err=True)


def _write(experiment: Annotation, output: Path) -> None:
    """The page with tables and plots that the rows give."""
    from polycl.experiments import annotation_report as report
    from polycl.experiments import annotator
    from polycl.files import write_atomically

    rows, way = experiment.rows(), [experiment.plan.reveal, *([] if experiment.plan.sighted else ["blind"])]
    name = "-".join(["annotation", experiment.task.name, *way])
    parts = [
        f"# What to label next: {experiment.task.name}, {', '.join(way)}\n",
        f"{len(rows)} rounds of {experiment.plan}.\n",
        f"Minutes are a model: {annotator.OPEN_MINUTES:g} to open a volume, {annotator.OUTLINE_MINUTES:g} to outline "
        f"one structure on one slice, {annotator.CHECK_MINUTES:g} to check a propagation, {annotator.END_MINUTES:g} to "
        "say where one structure begins and ends.\n",
    ]
    for domain in experiment.task.tests:
        picture = f"{name}-{domain.replace(' ', '-')}.png"
        report.plot(rows, domain, output / picture)
        parts.append(f"## {domain.capitalize()}\n\n![Dice against slices and minutes, {domain}]({picture})\n")
        parts.append(report.summary(rows, domain) + "\n")
        parts.append(report.table(rows, domain) + "\n")
    page = output / f"{name}.md"
    write_atomically(page, "\n".join(parts).encode())
    typer.echo("\n".join(parts[3:]))
    typer.echo(f"{page}: {len(rows)} rounds")
