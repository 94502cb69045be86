"""`polycl audit`: who saved, trained, published, rolled back and signed in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from polycl.cli import options


def audit(
    since: Annotated[
        datetime | None, typer.Option(help="From this local time on; all lines if not given.", show_default=False)
    ] = None,
    image: Annotated[str, typer.Option(help="Only what happened to this image.")] = "",
    user: Annotated[str, typer.Option(help="Only what this user did.")] = "",
    action: Annotated[str, typer.Option(help="Only this, such as label.save, or a kind, such as model.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show the audit trail, oldest first. Images are shown as hashes; --image finds those of one."""
    from polycl.audit import Audit

    trail = Audit(options.settings().audit)
    lines = list(trail.lines(since.astimezone() if since else None, image=image, user=user, action=action))
    if as_json:
        options.print_json({"lines": [line.model_dump(mode="json") for line in lines]})
        return
    for line in lines:
        who = line.user or line.client or "-"
        more = " ".join(f"{name}={value}" for name, value in line.details.items())
        about = f"image {line.image[:12]} " if line.image else ""
        refused = "refused " if line.outcome != "done" else ""
        text = f"{line.at.astimezone():%Y-%m-%d %H:%M:%S}  {line.action:<18} {who:<20} {refused}{about}{more}"
        typer.echo("".join(one if one.isprintable() else "?" for one in text))  # anybody may try any name
