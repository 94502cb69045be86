"""`polycl models publish` and `rollback`: which version of a model is served. A running server follows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.cli import options

if TYPE_CHECKING:
    from polycl.learning.versions import Versions

Name = Annotated[str, typer.Argument(help="A segmenter of the catalogue.")]


def publish(
    name: Name,
    version: Annotated[int | None, typer.Argument(min=0, help="The newest that was never live, if not given.")] = None,
) -> None:
    """Serve a version of a model that the gate did not let through, or one that was served before."""
    versions = _versions(name)
    number = versions.newest_candidate(name) if version is None else version
    versions.publish(name, number, "as requested")
    options.audit("model.publish", model=name, version=number)
    reason = f" ({versions.get(name, number).reason})" if number else ""
    typer.echo(f"{name}: version {number} is live{reason}")


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(min=0, help="A version to serve instead of the live one's parent.")] = None,
) -> None:
    """Serve the version before again; 0 is the model as it came."""
    number = _versions(name).rollback(name, to)
    options.audit("model.rollback", model=name, version=number)
    typer.echo(f"{name}: version {number} is live")


def rows(name: str) -> dict[str, Any]:
    """The live version of a model and those that are kept, as JSON; nothing for a model that was never trained here."""
    versions = _versions(name)
    kept = versions.kept(name)
    if not kept:
        return {}
    return {"live": versions.live(name), "versions": [one.model_dump(mode="json", exclude={"data"}) for one in kept]}


def lines(found: dict[str, Any]) -> list[str]:
    """What `rows` gave, for a person."""
    if not found:
        return []
    texts = {0: "as it came"}
    for one in found["versions"]:
        made = f"{one['created'][:16].replace('T', ' ')} from {one['parent']} in {one['seconds']:.0f} s"
        texts[one["number"]] = f"{made}: {one['reason']}"
    return [f"  {'live' if number == found['live'] else '':<4} {number:>4}  {text}" for number, text in texts.items()]


def _versions(name: str) -> Versions:
    """The versions of a segmenter; NotFoundError if there is none of this name."""
    from polycl.catalogue import Catalogue
    from polycl.learning.versions import Versions

    settings = options.settings()
    Catalogue.default(settings).entry(f"{name}@0", "segmenter")
    return Versions(settings.versions, settings.versions_kept)
