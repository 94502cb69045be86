"""`polycl labels`: what was saved in a folder of studies, and how to get an older version back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options
from polycl.errors import NotFoundError

if TYPE_CHECKING:
    from polycl.labels.library import Library

app = typer.Typer(help="List saved labels, and restore older versions.", no_args_is_help=True)

Studies = Annotated[Path, typer.Argument(help="The folder of studies that the server serves.")]
Image = Annotated[str, typer.Argument(help="Id of the image: its file name without suffix.")]
Tag = Annotated[str, typer.Option(help="The tag that the label was saved under.")]


@app.command("list")
def list_(
    studies: Studies,
    image: Annotated[str | None, typer.Argument(help="Show every version of this image's label.")] = None,
    tag: Tag = "final",
    as_json: options.Json = False,
) -> None:
    """The current label of each image, or all versions of one."""
    library = _library(studies)
    if image is None:
        records = [record for name in library.images(tag) if (record := library.record(name, tag))]
    else:
        records = library.versions(image, tag)
    if as_json:
        options.print_json({"labels": [record.model_dump(mode="json") for record in records]})
        return
    for record in records:
        what = ", ".join(f"{name} {'all' if where == 'all' else 'in part'}" for name, where in record.known.items())
        when = record.saved.strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{record.image:<32} {record.version:>4}  {when}  {record.annotator or '-':<16} {what or 'empty'}")


@app.command()
def restore(studies: Studies, image: Image, version: int, tag: Tag = "final") -> None:
    """Make VERSION of the label the current one again, also of a label that was deleted. It becomes a new version."""
    record = _library(studies).restore(image, version, tag)
    options.audit("label.restore", image=image, tag=tag, version=record.version, restored=version)
    typer.echo(f"{image}: version {version} is current again, as version {record.version}")


@app.command()
def complete(
    studies: Studies,
    image: Image,
    names: Annotated[list[str] | None, typer.Argument(help="Labels that are complete; all if none is named.")] = None,
    tag: Tag = "final",
) -> None:
    """Mark labels of an image as complete: what is not painted is not the structure. It becomes a new version."""
    library = _library(studies)
    current = library.current(image, tag)
    if current is None:
        raise NotFoundError(f"{image} has no label {tag!r}")
    record = library.mark_complete(image, tag, tuple(names or current.record.labels))
    options.audit("label.note", image=image, tag=tag, version=record.version)
    typer.echo(f"{image}: {', '.join(record.complete) or 'nothing'} complete, in version {record.version}")


def _library(studies: Path) -> Library:
    from polycl.catalogue import Catalogue
    from polycl.labels.library import Library
    from polycl.labels.served import served_labels
    from polycl.settings import Settings

    if not studies.is_dir():
        raise NotFoundError(f"there is no folder {studies}")
    settings = Settings()
    return Library(studies, settings.label_versions, served_labels(Catalogue.default(settings)))
