"""`polycl experiment refinement`: what SAM makes of masks that learned from few labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polycl.experiments.refinement import Study, Trial

SHOWABLE = ("chaos", "openkbp", "totalseg")
"""Data sets whose licences allow pictures of them: CHAOS CC BY-SA 4.0, OpenKBP MIT, TotalSegmentator Apache-2.0."""


def refinement(
    organ: Annotated[str, typer.Argument(help="liver or mandible.")],
    data: Annotated[Path, typer.Option(help="The folder that holds the data sets.")] = Path("../shared/data"),
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for rows, tables and plot.")] = Path(
        "docs/results"
    ),
    pictures: Annotated[Path, typer.Option(help="Folder for pictures before and after.")] = Path("docs/images"),
    model: Annotated[str, typer.Option(help="A SAM model of the catalogue.")] = "mobile-sam",
    seeds: Annotated[int, typer.Option(min=1, help="Few-label models for each number of slices.")] = 2,
    sweep: Annotated[list[int] | None, typer.Option(help="Labelled slices of the sweep; may be repeated.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Labelled slices to tell the gain at.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant of the sweep; may be repeated.")] = None,
    patients: Annotated[int | None, typer.Option(min=1, help="Only so many volumes of each part.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the few-label models.")] = 400,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after so many masks.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Sweep the refinement's parameters on validation volumes, and tell what the defaults gain on test volumes.

    What is in OUTPUT is not computed again.
    """
    settings = options.settings(device, precision)
    from polycl import devices
    from polycl.experiments.coarse import organ as find_organ
    from polycl.experiments.refinement import Study
    from polycl.propagate.loading import follower
    from polycl.sam import load_engine

    where = devices.choose(settings.device, settings.precision)
    results = output / f"refinement-{organ}.jsonl"
    cache = settings.cache / "experiments" / "refinement"
    engine, whole = load_engine(model, settings), follower(settings)
    study = Study(find_organ(organ, data), engine, results, cache, where, follower=whole, steps=steps)
    study.ship(settings)
    wanted = [*_sweep(study, sweep or [10, 25], seeds, variant, patients)]
    wanted += _gain(study, budget or [10, 25, 50, 100], seeds, patients)
    left = study.missing(dict.fromkeys(wanted))[:limit]
    with options.progress(f"{len(left)} masks") as bar:
        for done, trial in enumerate(left):
            bar(done, len(left))
            row = study.run(trial)
            typer.echo(
                f"{trial.case}, {trial.budget} slices, seed {trial.seed}, {trial.variant}: "
                f"{row['before']['dice']} to {row['after']['dice']}, {row['report']['seconds']['total']:.0f} s",
                err=True,
            )
    _write(study, output, pictures)


def _sweep(
    study: Study, budgets: list[int], seeds: int, only: list[str] | None, patients: int | None
) -> Iterator[Trial]:
    """The variants on validation volumes; those that SAM must encode anew on the first budget and seed alone."""
    from polycl.experiments.refinement import ANOTHER_LOOK, VARIANTS
    from polycl.experiments.tasks import chosen

    variants = chosen(only, [*VARIANTS, *ANOTHER_LOOK], "variant")
    yield from study.trials("validation", budgets, seeds, [v for v in variants if v in VARIANTS], patients)
    yield from study.trials("validation", budgets[:1], 1, [v for v in variants if v in ANOTHER_LOOK], patients)


def _gain(study: Study, budgets: list[int], seeds: int, patients: int | None) -> Iterator[Trial]:
    """The defaults on all volumes and budgets, and the limits; SAM with right boxes does not depend on the model."""
    from polycl.experiments.refinement import CEILING, PROPOSED, SHIPPED, WITHIN

    all_budgets = [*budgets, *([SHIPPED] if study.shipped else [])]
    for part in ("validation", "test"):
        yield from study.trials(part, all_budgets, seeds, [PROPOSED, WITHIN], patients)
        yield from study.trials(part, budgets[:1], 1, [CEILING], patients)


def _write(study: Study, output: Path, pictures: Path) -> None:
    """The page of tables and the plot, and pictures of the masks that gained and lost most."""
    from polycl.experiments import refinement_report as report
    from polycl.files import write_atomically

    rows, name = study.rows(), study.organ.name
    report.plot(rows, output / f"refinement-{name}.png")
    parts = [
        f"# Refinement by SAM: {name}\n",
        f"{len(rows)} masks refined by {study.engine.name}; few-label models trained for {study.steps} steps.\n",
        f"![Change of Dice and HD95 against labelled slices](refinement-{name}.png)\n",
        "## Parameters, on validation volumes\n",
        report.sweep(rows) + "\n",
    ]
    for part in ("validation", "test"):
        parts += [f"## {part.capitalize()} volumes\n", report.by_budget(rows, part) + "\n"]
    parts += ["## Where SAM makes it worse\n", report.worse(rows) + "\n"]
    page = output / f"refinement-{name}.md"
    write_atomically(page, "\n".join(parts).encode())
    for title, trial in report.extremes(rows, SHOWABLE).items():
        study.draw(trial, pictures / f"refinement-{name}-{title}.png")
    typer.echo(f"{page}: {len(rows)} masks")
