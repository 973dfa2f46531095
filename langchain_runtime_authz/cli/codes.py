"""`runtime-authz codes`: what each reason code means, and what to do."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from typer import Argument

from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.errors import RETRY, Code, ConfigError


def codes(
    names: Annotated[list[str] | None, Argument(metavar="CODE", help="Codes; without one, all.")] = None,
) -> Printout:
    """Print reason codes: meaning, most frequent cause, remedy, and whether to retry.

    runtime-authz codes pdp_timeout
    """
    found, lines = [], list[str]()
    for name in names or Code:
        if name not in Code.__members__.values():
            near = [f"did you mean `{code}`?" for code in get_close_matches(name, [*Code], 1)]
            raise ConfigError(f"`{name}` is not a code of this package; {(*near, 'look for it in your policy')[0]}")
        code = Code(name)
        told = {"means": code.meaning, "cause": code.cause, "do": code.remedy, "retry": RETRY[code.retry]}
        found.append({"code": code, **told})
        lines += [code, *(f"  {name:<6} {value}" for name, value in told.items())]
    return Printout(found, lines)
