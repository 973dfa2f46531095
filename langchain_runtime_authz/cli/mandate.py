"""`runtime-authz mandate`: show what a text orders, and check mandate files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from langchain_runtime_authz.cli._app import App, Printout, echo
from langchain_runtime_authz.cli.graph_target import load_graph, load_object, tools_of
from langchain_runtime_authz.errors import Code

if TYPE_CHECKING:
    from datetime import date

    from langchain_runtime_authz.mandate.model import Compiled
    from langchain_runtime_authz.tool_profile import ToolProfile

app = App(
    help="""Show what a user's text orders, and check mandates in files.

    A mandate says which calls a task orders, with which arguments. The policy permits what it covers and asks about the
    rest.

    Exit codes: 0; 1 for a finding (something was dropped, something is careless); 2 if a command could not do its work."""
)
Profiles = Annotated[list[str], Option("--profiles", metavar="FILE", help="Profiles or a ready set; may be repeated.")]


@app.command("explain")
def explain(
    texts: Annotated[list[str], Argument(metavar="TEXT", help="What the user said, one text each; `-`: from stdin.")],
    profiles: Profiles,
    after: Annotated[list[str] | None, Option(metavar="TEXT", help="The messages before it, oldest first.")] = None,
    planner: Annotated[str | None, Option(metavar="MODULE:MODEL", help="Let this chat model read the text.")] = None,
    graph: Annotated[str | None, Option(metavar="MODULE:GRAPH", help="Read as this graph's tools would.")] = None,
    zone: Annotated[str | None, Option(metavar="ZONE", help="The zone of `tomorrow`, like `Europe/Berlin`.")] = None,
) -> Printout:
    """Show the steps that a text orders, and the parts that are dropped, with reasons.

    Without a planner no model is used. Modules are imported from the current directory, so their code runs. No tool is
    called. Text in fences, after `>` or in a forwarded mail is material, and orders nothing.

    runtime-authz mandate explain "Pay Bob 45 EUR" --profiles profiles.yaml
    runtime-authz mandate explain "and T-6 too" --after "Assign T-5 to Zoe" --profiles profiles.yaml
    runtime-authz mandate explain - --profiles profiles.yaml --graph my_agent:graph < request.txt
    runtime-authz mandate explain "Pay Bob 45 EUR" --profiles profiles.yaml --planner my_models:planner --json
    """
    from langchain_runtime_authz.facts.local_time import checked_zone, local_day
    from langchain_runtime_authz.mandate.description import described_mandate
    from langchain_runtime_authz.mandate.message_places import without_material
    from langchain_runtime_authz.mandate.word_follow_ups import compile_turn
    from langchain_runtime_authz.tool_profile import load_profiles

    said = [sys.stdin.read() if text == "-" else text for text in texts]
    declared = {name: p for name, p in load_profiles(profiles).items() if not p.draft}
    schemas = _schemas(declared, graph)
    today = local_day(checked_zone(zone), time.time()) if zone is not None else None
    before, given = after or [], (declared, schemas, today)
    compiled = _planned(planner, said, before, *given) if planner else compile_turn(said, before[::-1], *given)
    found = compiled.mandate
    sentences = described_mandate(found, declared) if found is not None else []
    parts = sum(len(without_material(text)[1]) for text in said)
    source, order = "planner" if planner else "words", found.to_json() if found is not None else None
    dropped = [d._asdict() for d in compiled.dropped]
    document = {"source": source, "mandate": order, "told": sentences, "dropped": dropped, "material": parts}
    text = ["understood:" if sentences else "understood: nothing is ordered", *(f"  {s}" for s in sentences)]
    text += ["dropped:", *(f"  {what}: {why}" for what, why in compiled.dropped)] if compiled.dropped else []
    if compiled.dropped and graph is None:
        text += ["note: the profiles do not tell all arguments and choices; with `--graph MODULE:GRAPH` the tools do"]
    text += [f"material: {parts} part{'s' if parts > 1 else ''} of the text, which order nothing"] if parts else []
    if not sentences and not planner and not any(p.intent for p in declared.values()):
        text += ["no profile declares orders (`intent`), so only tools' names are verbs: see docs/mandate/words.md"]
    return Printout(document, text, bool(compiled.dropped or (planner and found is None)))


@app.command("check")
def check(
    file: Annotated[Path, Argument(metavar="FILE", help="A mandate (YAML or JSON).")],
    profiles: Profiles,
    as_json: bool = False,
) -> Printout:
    """List the errors and risks in a mandate.

    Findings (exit code 1): a tool without a profile, a critical argument that is free, a value from a step that is not
    a read. A file that is not a mandate is an error (exit code 2).

    runtime-authz mandate check monthly-bills.yaml --profiles profiles.yaml
    """
    from langchain_runtime_authz.mandate.description import described_mandate
    from langchain_runtime_authz.mandate.mandate_file import check_mandate, load_mandate
    from langchain_runtime_authz.tool_profile import load_profiles

    declared = load_profiles(profiles)
    found = load_mandate(file)
    sentences, findings = list(described_mandate(found, declared)), list(check_mandate(found, declared))
    for finding in () if as_json else findings:
        echo(f"error: {Code.MANDATE_INVALID}: {finding}", err=True)
    text = [*sentences, f"steps: {len(found.steps)}, findings: {len(findings)}"]
    return Printout({"steps": len(found.steps), "told": sentences, "findings": findings}, text, bool(findings))


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a mandate, for an editor.

    runtime-authz mandate schema > mandate.schema.json
    """
    from langchain_runtime_authz.mandate.model import Mandate

    echo(json.dumps(Mandate.model_json_schema(), indent=2))


def _schemas(declared: Mapping[str, ToolProfile], graph: str | None) -> Mapping[str, Mapping[str, Any]]:
    if graph is None:
        named = {n: [*p.critical, *p.when, *p.text, *p.free] for n, p in declared.items()}
        return {n: {"type": "object", "properties": {a.partition(".")[0]: {} for a in of}} for n, of in named.items()}
    from langchain_runtime_authz.langgraph.tool_facts import schema_of

    return {tool.name: schema_of(tool) for tool in tools_of(load_graph(graph))}


def _planned(
    target: str,
    texts: list[str],
    after: list[str],
    declared: Mapping[str, ToolProfile],
    schemas: Mapping[str, Any],
    today: date | None,
) -> Compiled:
    from langchain_core.language_models import BaseChatModel

    from langchain_runtime_authz.langgraph.model_planner import ModelPlanner
    from langchain_runtime_authz.mandate.follow_ups import TurnBefore, TurnInContext
    from langchain_runtime_authz.mandate.model import Mandate
    from langchain_runtime_authz.pep.run import KnownTools

    model = load_object(target, "my_models:planner", BaseChatModel, "chat model")
    planner, before = ModelPlanner(model, KnownTools(declared, schemas)), list[TurnBefore]()
    for n, text in enumerate(after):
        found = planner.compile(TurnInContext([text], after[:n], today, before)).mandate
        before.append(TurnBefore(text, found or Mandate()))
    return planner.compile(TurnInContext(texts, after, today, before))
