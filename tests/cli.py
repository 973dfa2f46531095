"""Call `runtime-authz` in this process."""

from typing import Any

from typer.testing import CliRunner

from langchain_runtime_authz.cli import app

WIDE = {"COLUMNS": "120"}


def cli(*words: object, **options: Any) -> Any:
    """What the command answers; `options` are those of `CliRunner.invoke`."""
    return CliRunner().invoke(app, [str(word) for word in words], **options)
