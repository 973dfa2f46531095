"""What the commands write for a shape: `init` with the questions answered, and `learn` from a run of its tasks."""

import io
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli.init import init
from langchain_runtime_authz.cli.learn import LEARNED, learn

ANSWERS: Final[Mapping[str, Mapping[str, Any]]] = yaml.safe_load((Path(__file__).parent / "answers.yaml").read_text())
WITHOUT_TOOLS: Final = ("executive_assistant", "codeact")  # `init` says so; their effects are declared in code


@cache
def answered(app: str) -> Mapping[str, Any]:
    """Return the profiles that `init` writes, with those that code gives its declared effects."""
    if app in WITHOUT_TOOLS:
        return ANSWERS[app]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        answers, file = Path(folder) / "answers.yaml", Path(folder) / "authz.yaml"
        answers.write_text(yaml.safe_dump({"tools": ANSWERS[app]}))
        init(f"tests.real_graphs.graphs:{app}", yes=False, answers=answers, file=file)
        return yaml.safe_load(file.read_text())["tools"]


def learned(app: str, run: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any] | None:
    """Return the mandate that `learn` writes from a run with these options of `RuntimeAuthz`, if it proposes one."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        log, file = Path(folder) / "audit.jsonl", Path(folder) / "authz.yaml"
        run({"audit": FileSink(log, content=True)})
        file.write_text(yaml.safe_dump({"tools": dict(answered(app))}, default_flow_style=None, sort_keys=False))
        learn(log, profiles=file, write=True)
        return yaml.safe_load(file.read_text()).get("mandates", {}).get(LEARNED)
