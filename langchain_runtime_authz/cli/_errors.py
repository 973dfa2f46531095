"""Report a command's failure: one line on stderr with a stable code, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, sentence

FINDING: Final = 1
UNUSABLE: Final = 2
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Key = Annotated[
    Path | None, typer.Option("--key", metavar="PEM", help="The private key to which the log's contents were sealed.")
]


@contextmanager
def reporting() -> Iterator[None]:
    """Turn the package's own errors into one line and exit code 2. A defect keeps its traceback."""
    try:
        yield
    except AuthzError as exc:
        fail(exc)
    except FileExistsError as exc:
        fail(ConfigError(f"{exc.filename}: the file exists; name a new one"))
    except BrokenPipeError:  # the reader has seen enough (`| head`); click leaves quietly
        raise
    except OSError as exc:
        fail(ConfigError(f"{exc.filename or 'a file'}: {exc.strerror or type(exc).__name__}"))


def fail(exc: AuthzError, code: int = UNUSABLE) -> NoReturn:
    """Print `error: <stable code>: …` on one line and leave with `code`."""
    # The sentence of `config` adds nothing to the detail before it.
    text = str(exc).removesuffix(f": {sentence(Code.CONFIG)}")
    typer.echo(f"error: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)


def show(document: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print a command's answer: JSON, or the text, or a line for each member that has a value."""
    if as_json or text is not None:
        typer.echo(json.dumps(document, indent=2) if as_json else text)
        return
    for name, value in document.items():
        if value is not None:
            typer.echo(f"{name:<8} {value}")
