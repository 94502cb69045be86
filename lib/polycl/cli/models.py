"""`polycl models`: what there is to segment with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.errors import ModelError

if TYPE_CHECKING:
    from polycl.catalogue import Catalogue

app = typer.Typer(help="List, show and verify models.", no_args_is_help=True)


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """Every model by name."""
    catalogue = _catalogue()
    rows = []
    for name in catalogue.names():
        entry = catalogue.entry(name)
        here = entry.path.is_file()
        rows.append({"name": name, "kind": entry.kind, "here": here, "summary": entry.summary})
    if as_json:
        options.print_json({"models": rows})
        return
    for row in rows:
        typer.echo(f"{row['name']:<20} {row['kind']:<10} {'here' if row['here'] else 'missing':<8} {row['summary']}")


@app.command()
def show(name: str, as_json: options.Json = False) -> None:
    """A model's header and card."""
    entry = _catalogue().entry(name)
    header = entry.header().model_dump(mode="json")
    if as_json:
        options.print_json({"name": entry.name, "path": str(entry.path), "sha256": entry.sha256, "header": header})
        return
    if entry.card is not None and entry.card.is_file():
        typer.echo(entry.card.read_text())
    options.print_json(header)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models to check; all if not given.")] = None,
) -> None:
    """Check each model's file against the sum in the catalogue, and that its header can be read."""
    catalogue = _catalogue()
    failures = []
    for name in names or catalogue.names():
        entry = catalogue.entry(name)
        try:
            found = entry.verify()
            entry.header()
        except ModelError as error:
            failures.append(error.in_full())
            continue
        typer.echo(f"{name}: sha256 {found[:16]}… {'as listed' if entry.sha256 else '(not in the catalogue)'}")
    if failures:
        raise ModelError("; ".join(failures))


def _catalogue() -> Catalogue:
    from polycl.catalogue import Catalogue

    return Catalogue.default(options.settings())
