"""`runtime-authz codes`: what each reason code means, and what to do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from langchain_runtime_authz.cli._errors import Json, reporting
from langchain_runtime_authz.errors import GROUPS, RETRY, Code, ConfigError

_HEAD = """# Reason codes

Made by `runtime-authz codes` from [`errors.py`](../langchain_runtime_authz/errors.py). A code is stable: search for it in
logs, records and spans. `runtime-authz codes CODE` prints one. A policy may give codes of its own.
"""


def codes(
    names: Annotated[list[str] | None, typer.Argument(metavar="[CODE]...", help="Codes; without one, all.")] = None,
    as_json: Json = False,
) -> None:
    """Print what reason codes mean, their most frequent cause, what to do, and whether to retry.

    Without CODE, the page `docs/codes.md` is printed.

    \b
    Examples:
      runtime-authz codes pdp_timeout
    """  # noqa: D301  (`\b` keeps the lines apart)
    if not names and not as_json:
        typer.echo(page(), nl=False)
        return
    found = []
    with reporting():
        for name in names or Code:
            if name not in Code.__members__.values():
                raise ConfigError(f"`{name}` is not a code of this package; look for it in your policy")
            code = Code(name)
            told = {"code": code, "means": code.meaning, "cause": code.cause, "do": code.remedy}
            found.append({**told, "retry": RETRY[code.retry]})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for told in found:
        typer.echo(told.pop("code"))
        typer.echo("".join(f"  {name:<6} {value}\n" for name, value in told.items()), nl=False)


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
