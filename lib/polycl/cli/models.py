"""`polycl models`: what there is to segment and to refine with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.cli import options, versions
from polycl.errors import ModelError

if TYPE_CHECKING:
    from polycl.catalogue import Catalogue

app = typer.Typer(
    help="List, show, fetch and verify models; publish what was trained, or roll it back.", no_args_is_help=True
)
app.command("publish")(versions.publish)
app.command("rollback")(versions.rollback)


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """Every model by name, with the versions that were trained here."""
    catalogue = _catalogue()
    engines = catalogue.engines()
    rows: list[dict[str, Any]] = []
    for name in catalogue.names():
        if name in engines:
            engine = catalogue.engine(name, None)
            rows.append({"name": name, "kind": engine.kind, "here": engine.here(), "summary": engine.summary})
            continue
        entry = catalogue.entry(name)
        here = entry.path.is_file()
        row: dict[str, Any] = {"name": name, "kind": entry.kind, "here": here, "summary": entry.summary}
        rows.append(row | (versions.rows(name) if entry.kind == "segmenter" else {}))
    if as_json:
        options.print_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        state = "here" if row["here"] else "missing"
        typer.echo(f"{row['name']:<{width}} {row['kind']:<10} {state:<8} {row['summary']}")
        for line in versions.lines(row) if "versions" in row else ():
            typer.echo(line)


@app.command()
def show(name: str, as_json: options.Json = False) -> None:
    """A model's header and card, or where a SAM engine comes from."""
    catalogue = _catalogue()
    if name in catalogue.engines():
        engine = catalogue.engine(name, None)
        options.print_json({"name": name, "here": engine.here()} | engine.listing.model_dump(mode="json"))
        return
    entry = catalogue.entry(name)
    header = entry.described().model_dump(mode="json")
    if as_json:
        options.print_json({"name": entry.name, "path": str(entry.path), "sha256": entry.sha256, "header": header})
        return
    if entry.card is not None and entry.card.is_file():
        typer.echo(entry.card.read_text())
    options.print_json(header)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models to check; all that are here if not given.")] = None,
) -> None:
    """Check each model's files against the sums in the catalogue, and that its header can be read."""
    catalogue = _catalogue()
    engines = catalogue.engines()
    failures = []
    for name in names or catalogue.names():
        try:
            if name in engines:
                engine = catalogue.engine(name, None)
                if names is None and not engine.here():
                    continue  # it does not ship, and nobody asked for it
                found, listed = engine.verify(), True
            else:
                entry = catalogue.entry(name)
                found, listed = entry.verify(), entry.sha256 is not None
                entry.described()
        except ModelError as error:
            failures.append(error.in_full())
            continue
        typer.echo(f"{name}: sha256 {found[:16]}… {'as listed' if listed else '(not in the catalogue)'}")
    if failures:
        raise ModelError("; ".join(failures))


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A SAM engine of the catalogue.")]) -> None:
    """Get the weights of a SAM engine: resumed where an earlier try stopped, and checked."""
    from polycl.sam.fetch import fetch as fetch_engine

    settings = options.settings()
    engine = _catalogue().engine(name, None)
    typer.echo(f"{name}: licence {engine.listing.licence}")
    with _transfers() as started:
        paths = fetch_engine(engine, settings.models, started)
    for path in paths:
        typer.echo(str(path))


@contextmanager
def _transfers() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars with bytes, speed and the time left on stderr, if that is a terminal. Yields a function of a file's name."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def started(file: str) -> Callable[[int, int], None]:
            task = bars.add_task(file, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield started


def _catalogue() -> Catalogue:
    from polycl.catalogue import Catalogue

    return Catalogue.default(options.settings())
