"""`runtime-authz codes`: what each reason code means, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from langchain_runtime_authz.cli._errors import reporting
from langchain_runtime_authz.errors import GROUPS, RETRY, Code, ConfigError

__all__ = ["codes", "page"]

_HEAD = """# Reason codes

Made by `runtime-authz codes` from [`errors.py`](../langchain_runtime_authz/errors.py). A code is stable: search for it in
logs, records and spans. `runtime-authz codes CODE` prints one. A policy may give codes of its own.
"""


def codes(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CODE]...", help="Codes; without one, all.")] = None,
) -> None:
    """Print what reason codes mean, their most frequent cause, what to do, and whether to retry.

    Without CODE, the page `docs/codes.md` is printed.

    \b
    Examples:
      runtime-authz codes pdp_timeout
    """  # noqa: D301  (`\b` keeps the lines apart)
    if not names:
        typer.echo(page(), nl=False)
        return
    with reporting():
        for name in names:
            if name not in Code.__members__.values():
                raise ConfigError(f"`{name}` is not a code of this package; look for it in your policy")
            code = Code(name)
            typer.echo(f"{code}\n  means  {code.meaning}\n  cause  {code.cause}\n  do     {code.remedy}")
            typer.echo(f"  retry  {RETRY[code.retry]}")


def page() -> str:
    """Return `docs/codes.md`."""
    lines = [_HEAD]
    for code in Code:
        if code in GROUPS:
            lines.append(
                f"\n## {GROUPS[code]}\n\n| code | means | most frequent cause | do | retry |\n|---|---|---|---|---|\n"
            )
        cells = (f'<a id="{code}"></a>`{code}`', code.meaning, code.cause, code.remedy, RETRY[code.retry])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)
