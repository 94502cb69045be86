"""`polycl users`: who may sign in. With one user or more the server asks everybody to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from polycl.cli import options

if TYPE_CHECKING:
    from polycl.accounts import Accounts

app = typer.Typer(help="Who may sign in. With one user or more the server asks everybody to.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="As the user types it to sign in.")]


@app.command()
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="reader, annotator, reviewer or admin.")] = "annotator",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    """Add a user, or give one another role and password."""
    from polycl.accounts import Role

    accounts, chosen = _accounts(), Role.named(role)
    first = not accounts.all()
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    accounts.add(name, chosen, password)
    options.audit("user.add", name=name, role=str(chosen))
    typer.echo(f"{name} may sign in, as {chosen}")
    if first:
        typer.echo("From its next start on, the server asks everybody to sign in.")


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """Who there is."""
    users = _accounts().all()
    if as_json:
        rows = [{"name": name, "role": one.role, "created": one.created.isoformat()} for name, one in users.items()]
        options.print_json({"users": rows})
        return
    for name, one in users.items():
        typer.echo(f"{name:<32} {one.role:<10} {one.created:%Y-%m-%d}")


@app.command()
def remove(name: Name) -> None:
    """Remove a user. A running server refuses the user's next request."""
    _accounts().remove(name)
    options.audit("user.remove", name=name)
    typer.echo(f"{name} may no longer sign in")


def _accounts() -> Accounts:
    from polycl.accounts import Accounts

    return Accounts(options.settings().users)
