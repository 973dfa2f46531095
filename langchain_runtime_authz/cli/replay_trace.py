"""`runtime-authz replay-trace`: show how a recorded trace would be decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from typer import Argument, Option

from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.cli.mandate import Profiles
from langchain_runtime_authz.errors import sentence

if TYPE_CHECKING:
    from langchain_runtime_authz.cli._recorded_run import DecidedStep, Replayed

MAX_ARGS: Final = 120  # characters shown of a call's arguments
_WORDS: Final = {"permit": "ran", "approval_required": "ASKED", "deny": "DENIED", "halt": "HALTED"}


def replay_trace(
    file: Annotated[Path, Argument(metavar="FILE.jsonl", help="The trace.")],
    profiles: Profiles,
    mandate: Annotated[Path | None, Option(metavar="FILE", help="What is ordered (YAML); default: the words.")] = None,
    policy: Annotated[Path | None, Option(metavar="POLICY", help="Project, bundle or data.json.")] = None,
) -> Printout:
    """Show which calls of a trace would be stopped or asked about. Nothing runs.

    A trace is JSON Lines: a header, then the user's messages, the calls and their outputs.

    \b
      {"trace": "runtime-authz", "version": 1, "subject": "alice"}
      {"type": "user", "text": "Pay the bill"}
      {"type": "tool_call", "id": "1", "tool": "read_file", "args": {"path": "bill.txt"}}
      {"type": "tool_output", "id": "1", "output": "Pay 10 to DE21"}
      {"type": "delegate", "agent": "child", "parent": "main"}
      {"type": "tool_call", "id": "2", "agent": "child", "tool": "pay", "args": {}, "unwanted": true}
      {"type": "end", "agent": "child"}

    Optional: `at`, seconds, on each line; `unwanted` on a call that serves an attack; `error` for the output of a
    failed call. A question is approved unless its call is unwanted. Version 1 is a closed format: an unknown field or
    version is an error that names its line.

    Without --policy the shipped policy decides. A project's Rego is compiled first, which needs OPA.

    Exit codes: 0; 1 if an unwanted call would have run; 2 for a file that cannot be used.
    """
    from langchain_runtime_authz.cli import _recorded_run as traces
    from langchain_runtime_authz.cli.policy.open_policy import open_policy

    trace = traces.read_trace(file)
    with closing(open_policy(policy).pdp()) as pdp:
        result = traces.decide_trace(trace, profiles=profiles, pdp=pdp, mandate=mandate)
    return Printout(result.to_dict(), _text(result), bool(result.let_through))


def _text(result: Replayed) -> Iterator[str]:
    for step in result.steps:
        yield _line(step)
        if step.outcome != "permit":
            yield from (f"      {code}: {sentence(code)}" for code in step.reasons)
            yield from (f"      {line}" for line in step.evidence)
    told = result.to_dict()
    if (first := next(iter(result.stopped), None)) is not None:
        yield f"\nThe first step that would not have run: line {first.line}, {json.dumps(first.call.tool)[1:-1]}."
    yield (
        f"\n{told['calls']} calls: {told['permitted']} permitted, {told['asked']} asked about, "
        f"{told['stopped']} would not have run.\n"
        f"Disturbed: {told['disturbed']} of {told['calls'] - told['unwanted']} calls that are not marked as unwanted.\n"
        f"Unwanted: {told['unwanted']}, of which {told['let_through']} would have run."
    )


def _line(step: DecidedStep) -> str:
    # Arguments may come from an attacker. As JSON they cannot control the terminal.
    call, args = step.call, json.dumps(step.call.args)
    args = args if len(args) <= MAX_ARGS else args[:MAX_ARGS] + "…"
    who = "" if call.agent == "main" else f"{json.dumps(call.agent)} "
    mark = " (unwanted)" if call.unwanted else ""
    return f"{step.line:>4}  {_WORDS[step.outcome]:<7} {who}{json.dumps(call.tool)[1:-1]} {args}{mark}"
