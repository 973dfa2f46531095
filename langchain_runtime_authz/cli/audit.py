"""`runtime-authz audit verify`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from langchain_runtime_authz.cli._errors import FINDING, fail, reporting

__all__ = ["app"]

app = typer.Typer(help="Read the decision log.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Read the decision log."""


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="The log that `RuntimeAuthz(audit=FILE)` wrote.")],
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="HASH", help="The hash that the last line must have, from elsewhere."),
    ] = None,
) -> None:
    """Verify a decision log from its first line to its last.

    Without --head, an edit of the last line and a cut at the end are not found: keep the head that is
    printed somewhere else, and give it next time.

    \b
    Examples:
      runtime-authz audit verify audit.jsonl
      runtime-authz audit verify audit.jsonl --head "$(cat pinned-head)"
    """  # noqa: D301  (`\b` is what keeps the lines apart)
    from langchain_runtime_authz.audit.chain import verify_chain
    from langchain_runtime_authz.errors import AuditError, Code

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise typer.BadParameter("must be 64 hexadecimal digits", param_hint="--head")
    with reporting():
        report = verify_chain(file, head)
    typer.echo(f"records  {report.records}")
    typer.echo(f"head     {report.head}")
    if report.ok:
        pinned = "and ends at the pinned head" if head is not None else "but no head was given: its end is not verified"
        typer.echo(f"result   whole, {pinned}")
        return
    typer.echo(f"result   BROKEN at line {report.error_line}")
    fail(AuditError(Code.CHAIN_BROKEN, f"{file.name}, line {report.error_line}: {report.error}"), FINDING)
