"""`runtime-authz kill engage | release | status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langchain_runtime_authz.cli._errors import FINDING, reporting
from langchain_runtime_authz.pep.kill_switch import KILL_SWITCH, KillSwitch

__all__ = ["app"]

app = typer.Typer(
    help="""Stop everything, at once: a file that every process watches.

    Give the file to the application, as `RuntimeAuthz(kill_switch=FILE)` or in the environment variable
    RUNTIME_AUTHZ_KILL_SWITCH. While it exists every step is denied (`killed`), also when PDP and ledger
    are down. `touch FILE` does the same.""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Watched = Annotated[
    Path, typer.Option("--file", envvar=KILL_SWITCH, metavar="FILE", help="The file that the application watches.")
]


@app.command("engage")
def engage(file: Watched, reason: Annotated[str, typer.Option(help="For whoever finds it engaged.")] = "") -> None:
    """Deny every step from here on.

    \b
    Example:
      runtime-authz kill engage --file /run/agents/kill --reason "incident 42"
    """  # noqa: D301  (`\b` is what keeps the lines apart)
    with reporting():
        switch = KillSwitch(file)
        switch.engage(reason)
    typer.echo(f"engaged: {switch.reason()}")


@app.command("release")
def release(file: Watched) -> None:
    """Let steps be decided again."""
    with reporting():
        released = KillSwitch(file).release()
    typer.echo("released" if released else "was not engaged")


@app.command("status")
def status(file: Watched) -> None:
    """Say whether it is engaged; exit code 1 if it is."""
    with reporting():
        switch = KillSwitch(file)
        engaged = switch.engaged
    typer.echo(f"engaged: {switch.reason()}" if engaged else "not engaged")
    if engaged:
        raise typer.Exit(FINDING)
