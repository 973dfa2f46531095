"""The command line: `runtime-authz`.

Each command imports its dependencies when it runs. Exit codes: 0; 1 for a finding (a broken chain, something not
governed); 2 if the command could not do its work.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from langchain_runtime_authz.cli import (
    approvals,
    audit,
    calls,
    codes,
    controls,
    demo,
    doctor,
    init,
    inspect,
    keys,
    learn,
    ledger,
    mandate,
    profile,
    replay_trace,
    revocation,
)
from langchain_runtime_authz.cli._app import App
from langchain_runtime_authz.cli.policy.commands import app as policies

app = App(
    name="runtime-authz",
    help="""Runtime authorization for LangChain and LangGraph.

    Start with the demonstration, then look at a graph of your own:

    \b
      runtime-authz demo
      runtime-authz doctor
      runtime-authz init my_agent:graph
      runtime-authz inspect my_agent:graph
      runtime-authz policy init my-policy
      runtime-authz mandate explain "Pay Bob 45 EUR" --profiles profiles.yaml
      runtime-authz audit verify audit.jsonl

    Exit codes: 0; 1 for a finding; 2 if a command could not do its work.""",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _run in (
    *(demo.demo, init.init, learn.learn, doctor.doctor, inspect.inspect, codes.codes, controls.controls),
    *(revocation.revoke, revocation.reinstate, audit.report, replay_trace.replay_trace),
):
    app.command()(_run)
for _group in (approvals, audit, calls, keys, ledger, mandate, profile):
    app.add_typer(_group.app, name=_group.__name__.rpartition(".")[2])
app.add_typer(revocation.kill, name="kill")
app.add_typer(policies, name="policy")


def _version(value: bool) -> None:
    if value:
        from langchain_runtime_authz import __version__

        typer.echo(f"runtime-authz {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass
