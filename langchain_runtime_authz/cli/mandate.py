"""`runtime-authz mandate`: show what is understood of a text, and check mandates in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_runtime_authz.cli._errors import FINDING, Json, reporting, show
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.profile import ToolProfile, load_profiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_runtime_authz.mandate.model import Compiled

app = typer.Typer(
    help="""Show what a user's text orders, and check mandates in files.

    A mandate says which calls a task orders, with which arguments. The policy permits what it covers and asks about the
    rest.

    \b
      explain  show what is understood of a text, and what is dropped and why
      check    find what is wrong or careless in a mandate
      schema   print the JSON Schema of a mandate, for an editor

    Exit codes: 0; 1 for a finding (something was dropped, something is careless); 2 if a command could not do its work.""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Profiles = Annotated[
    str, typer.Option("--profiles", metavar="FILE", help="Tool profiles (YAML), or `langchain` or `deepagents`.")
]


@app.command("explain")
def explain(
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="What the user said, one text each; `-` reads one from stdin."),
    ],
    profiles: Profiles,
    planner: Annotated[
        str | None,
        typer.Option("--planner", metavar="MODULE:MODEL", help="Ask this chat model; otherwise the words are read."),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph", metavar="MODULE:GRAPH", help="Take the tools' arguments from a graph; default: profiles."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is understood of a text: the steps, and what is dropped and why.

    Without a planner no model is used. Modules are imported from the current directory, so their code runs. No tool is
    called. Text in fences, after `>` or in a forwarded mail is material, and orders nothing.

    \b
    Examples:
      runtime-authz mandate explain "Pay Bob 45 EUR" --profiles profiles.yaml
      runtime-authz mandate explain - --profiles profiles.yaml < request.txt
      runtime-authz mandate explain "Pay Bob 45 EUR" --profiles profiles.yaml --planner my_models:planner --json
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz.mandate.own_words import material
    from langchain_runtime_authz.mandate.told import told
    from langchain_runtime_authz.mandate.words import compile_words

    with reporting():
        said = [sys.stdin.read() if text == "-" else text for text in texts]
        declared = {name: p for name, p in load_profiles(profiles).items() if not p.draft}
        signatures = _signatures(declared, graph)
        if planner:
            compiled = _planned(planner, said, declared, signatures)
        else:
            compiled = compile_words(said, declared, signatures)
    found = compiled.mandate
    sentences = told(found, declared) if found is not None else []
    parts = sum(len(material(text)[1]) for text in said)
    if as_json:
        document = {
            "source": "planner" if planner else "words",
            "mandate": found.to_json() if found is not None else None,
            "told": sentences,
            "dropped": [d._asdict() for d in compiled.dropped],
            "material": parts,
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo("understood:" if sentences else "understood: nothing is ordered")
        typer.echo("".join(f"  {sentence}\n" for sentence in sentences), nl=False)
        if compiled.dropped:
            typer.echo("dropped:")
        for what, why in compiled.dropped:
            typer.echo(f"  {what}: {why}")
        if parts:
            typer.echo(f"material: {parts} part{'s' if parts > 1 else ''} of the text, which order nothing")
    if compiled.dropped or (planner and found is None):
        raise typer.Exit(FINDING)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mandate (YAML or JSON).")],
    profiles: Profiles,
    as_json: Json = False,
) -> None:
    """Find what is wrong or careless in a mandate, and say it in plain words.

    Findings (exit code 1): a tool without a profile, an argument that decides what a call hits and is free, a value
    from a step that is not a read. A file that is not a mandate is an error (exit code 2).

    \b
    Example:
      runtime-authz mandate check monthly-bills.yaml --profiles profiles.yaml
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz.mandate.model import check_mandate, load_mandate
    from langchain_runtime_authz.mandate.told import told

    with reporting():
        declared = load_profiles(profiles)
        found = load_mandate(file)
    sentences, findings = list(told(found, declared)), list(check_mandate(found, declared))
    for finding in () if as_json else findings:
        typer.echo(f"error: {Code.MANDATE_INVALID}: {finding}", err=True)
    text = "\n".join([*sentences, f"{len(found.steps)} steps, {len(findings)} findings"])
    show({"steps": len(found.steps), "told": sentences, "findings": findings}, as_json, text)
    if findings:
        raise typer.Exit(FINDING)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a mandate.

    \b
    Example:
      runtime-authz mandate schema > mandate.schema.json
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz.mandate.model import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _signatures(declared: Mapping[str, ToolProfile], graph: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Return tool → JSON schema of its arguments: the graph's, or the arguments that the profiles name."""
    if graph is None:
        return {
            name: {
                "type": "object",
                "properties": {a.partition(".")[0]: {} for a in (*p.critical, *p.when, *p.text, *p.free)},
            }
            for name, p in declared.items()
        }
    from langchain_runtime_authz.cli.inspect import load_graph, tools_of
    from langchain_runtime_authz.langgraph.tool_profiles import signature_of

    return {tool.name: signature_of(tool) for tool in tools_of(load_graph(graph))}


def _planned(
    target: str, texts: list[str], declared: Mapping[str, ToolProfile], signatures: Mapping[str, Any]
) -> Compiled:
    from langchain_core.language_models import BaseChatModel

    from langchain_runtime_authz.cli.inspect import load_object
    from langchain_runtime_authz.langgraph.planner import ModelPlanner
    from langchain_runtime_authz.pep.engine import KnownTools

    model = load_object(target, "my_models:planner", BaseChatModel)
    if not isinstance(model, BaseChatModel):
        raise ConfigError(f"`{target}` is not a chat model but {type(model).__name__}; name one")
    return ModelPlanner(model, KnownTools(declared, signatures)).compile(texts)
