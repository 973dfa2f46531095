"""`runtime-authz codes`: what each reason code means, and what to do."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.errors import GROUPS, RETRY, Code, ConfigError

_HEAD = """# Reason codes

Made by `runtime-authz codes` from [`errors.py`](../langchain_runtime_authz/errors.py). A code is stable: search for it in
logs, records and spans. `runtime-authz codes CODE` prints one. A policy may give codes of its own."""
_TABLE = """
## {}

| code | means | most frequent cause | do | retry |
|---|---|---|---|---|"""


def codes(
    names: Annotated[list[str] | None, Argument(metavar="[CODE]...", help="Codes; without one, all.")] = None,
) -> Printout:
    """Print reason codes: meaning, most frequent cause, remedy, and whether to retry.

    Without CODE, the page `docs/codes.md` is printed.

    runtime-authz codes pdp_timeout
    """
    found, lines = [], [] if names else [_HEAD]
    for name in names or Code:
        if name not in Code.__members__.values():
            raise ConfigError(f"`{name}` is not a code of this package; look for it in your policy")
        code = Code(name)
        told = {"means": code.meaning, "cause": code.cause, "do": code.remedy, "retry": RETRY[code.retry]}
        found.append({"code": code, **told})
        if names:
            lines += [code, *(f"  {name:<6} {value}" for name, value in told.items())]
            continue
        lines += [_TABLE.format(GROUPS[code])] if code in GROUPS else []
        cells = (f'<a id="{code}"></a>`{code}`', *told.values())
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return Printout(found, lines)
