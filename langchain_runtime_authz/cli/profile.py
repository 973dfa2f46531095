"""`runtime-authz profile`: propose and check profiles for a graph's tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from langchain_runtime_authz._order_patterns import Options, name_in
from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.cli._app import App, Printout, echo
from langchain_runtime_authz.cli.graph_target import Target, graph_tools
from langchain_runtime_authz.cli.init import outcomes, ready
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from langchain_runtime_authz._order_patterns import Pattern
    from langchain_runtime_authz.mandate.vocabulary import ToolWords
    from langchain_runtime_authz.tool_profile import ToolProfile

app = App(help="Write and check tool profiles.")


@app.command("suggest")
def suggest(
    target: Annotated[str, Target],
    profiles: Annotated[list[str] | None, Option(metavar="FILE", help="Existing profiles; may be repeated.")] = None,
    write: Annotated[Path | None, Option(metavar="FILE", help="Write the YAML to a new file, not to stdout.")] = None,
) -> Printout:
    """Propose a profile for each tool of a graph that has none.

    The module is imported from the current directory, so its code runs. The graph is not invoked. Each proposal is a
    draft: while it says `draft: true`, its tool stays unprofiled. Guesses that would lower a risk are comments.
    `--profiles langchain` and `--profiles deepagents` are the profiles of this package.

    runtime-authz profile suggest my_agent:graph
    runtime-authz profile suggest my_agent:graph --profiles langchain --write profiles.yaml
    """
    from langchain_runtime_authz.cli._profile_proposal import propose
    from langchain_runtime_authz.langgraph.tool_facts import Profiles
    from langchain_runtime_authz.tool_profile import EFFECTS, SINKS, load_profiles

    declared = load_profiles(profiles)
    held = Profiles(declared)
    tools = graph_tools(target)
    open_ = [t for t in tools if t.name not in declared and not held.of(t).declared]
    text = [
        "# Proposed by `runtime-authz profile suggest`; DOUBT marks a guess, not a fact about the tool. Review",
        "# each stanza: correct each guess, remove its mark, and remove the `draft` line. If a line in a comment is true,",
        "# uncomment it, and remove the line of the same field above it.",
        "# The kinds of `critical` are explained in docs/profiles.md.",
        f"# effect: {', '.join(EFFECTS)}",
        f"# sink: {', '.join(SINKS)}",
        "# trust: system, internal, external",
        *(("tools:", *(propose(t, tools).yaml() for t in open_)) if open_ else ("tools: {}",)),
    ]
    proposed = "\n".join([*text, ""])
    told = {"drafts": [t.name for t in open_], "proposed": proposed}
    if write is None:
        return Printout(told, text)
    with write.open("x", encoding="utf-8") as file:  # never overwrite a review
        file.write(proposed)
    echo(f"{write}: {len(open_)} drafts. Review them, and run `runtime-authz profile check {write} {target}`", err=True)
    return Printout(told, ())


@app.command("check")
def check(
    file: Annotated[str, Argument(metavar="FILE", help="Profiles (YAML), or `langchain` or `deepagents`.")],
    target: Annotated[str | None, Target] = None,
    as_json: bool = False,
) -> Printout:
    """Check a profile file, also against the tools of a graph.

    Findings (exit code 1): a tool without a profile; a draft, or one that was accepted unread; an argument that the tool
    does not take; a tool that changed after its review, or is of another package than the profile's; an effect milder
    than the tool's name or annotations say; a test with another outcome. An unusable file is an error (exit code 2).

    A note names tools whose orders fit the same text: calls that such a text orders need an approval.

    runtime-authz profile check profiles.yaml
    runtime-authz profile check profiles.yaml my_agent:graph
    """
    from langchain_runtime_authz.tool_profile import SHIPPED, load_profiles

    declared = load_profiles(file)
    tools = graph_tools(target) if target is not None else []
    loaded = read_yaml(file, Code.PROFILE_INVALID) if file not in SHIPPED else {}
    tests = _tested(declared, loaded)
    findings = [f"{n}: it is a draft; review it and remove `draft`" for n, p in declared.items() if p.draft]
    left = "marks DOUBT were left when it was accepted; confirm or correct each fact, then remove its mark"
    marked = _doubts(Path(file)) if file not in SHIPPED else {}
    findings += [f"{n}: {doubts} {left}" for n, doubts in marked.items() if not declared[n].draft]
    findings += tests
    for tool in tools:
        findings += _held_against(tool, declared.get(tool.name))
    for finding in () if as_json else findings:
        echo(f"error: {Code.PROFILE_INVALID}: {finding}", err=True)
    idle = sorted(declared.keys() - {t.name for t in tools}) if target is not None and file not in SHIPPED else []
    notes = [*(f"{name}: the graph has no such tool" for name in idle), *(alike := [*_alike(declared)])]
    notes += (mute := [*_mute(declared, tools)])
    for note in () if as_json else notes:
        echo(f"note: {note}", err=True)
    counts = {"profiles": len(declared), "tools": len(tools), "tests": len(loaded.get("tests", []))}
    text = ", ".join(f"{of}: {n}" for of, n in {**counts, "findings": len(findings)}.items())
    return Printout({**counts, "findings": findings, "idle": idle, "alike": alike, "mute": mute}, text, bool(findings))


def _held_against(tool: BaseTool, declared: ToolProfile | None) -> list[str]:
    from langchain_runtime_authz._profile_schema import check_arguments
    from langchain_runtime_authz.langgraph.tool_facts import Profiles, arguments_of, digest_of, why_foreign
    from langchain_runtime_authz.tool_profile import raise_by_hints

    if declared is None:
        own = Profiles({}).of(tool)  # declared in code, or made by a LangGraph library
        fitting = ready(tool)
        why = f"no profile here, but in the ready set `{fitting[0]}`" if fitting else "no profile"
        missing = f"{tool.name}: {why}; see `runtime-authz {'init' if fitting else 'profile suggest'}`"
        return [] if own.declared else [missing]
    if why := why_foreign(tool, declared):
        return [f"{tool.name}: {why}, so it keeps asking"]
    found = []
    try:
        check_arguments(tool.name, declared, arguments_of(tool))
    except ConfigError as exc:
        found.append(str(exc.detail))
    if declared.digest is not None and declared.digest != digest_of(tool):
        found.append(f"{tool.name}: the tool changed after its review; review it, then pin {digest_of(tool)}")
    hinted = raise_by_hints(declared, tool.metadata, tool.name).effect
    if declared.digest is None and hinted != declared.effect:  # a pin means that exactly this tool was reviewed
        otherwise = f"correct it; or, if you reviewed what the tool does, pin `digest: {digest_of(tool)}`"
        milder = f"`effect` is {declared.effect}, and the tool's name or annotations say {hinted}"
        found.append(f"{tool.name}: {milder}; {otherwise}")
    return found


def _alike(declared: Mapping[str, ToolProfile]) -> Iterator[str]:
    """Yield a note for tools that share an order, optional parts left out: `cancel …`."""
    from langchain_runtime_authz.mandate.languages import languages
    from langchain_runtime_authz.mandate.vocabulary import ToolWords

    said: dict[str, set[str]] = {}
    for tool in (ToolWords(n, p, {}, languages()[0]) for n, p in declared.items() if p.needs_mandate):
        for form in {form for order, _ in tool.orders for form in _forms(tool, order)}:
            said.setdefault(form, set()).add(tool.name)
    for form, names in sorted(said.items()):
        if len(names) > 1:
            yield f"{', '.join(sorted(names))}: `{form}` orders each, so it asks unless the user says more"


def _mute(declared: Mapping[str, ToolProfile], tools: Sequence[BaseTool]) -> Iterator[str]:
    """Yield a note for each verb in an `intent` that suggests no order."""
    from langchain_runtime_authz.langgraph.tool_facts import schema_of
    from langchain_runtime_authz.mandate.languages import languages
    from langchain_runtime_authz.mandate.vocabulary import ToolWords, suggested_orders

    schemas = {tool.name: schema_of(tool) for tool in tools}
    for name, profile in declared.items():
        words = [ToolWords(name, profile, schemas.get(name), language) for language in languages()]
        for verb in [said for said in words[0].entries if said in profile.intent]:
            if not any([*suggested_orders(each, verb)] for each in words):
                values = " ".join(f"{{{argument}}}" for argument in profile.critical)
                yield f"{name}: the verb `{verb}` alone orders nothing here; write a whole order, like `{verb} {values}`"


def _forms(tool: ToolWords, order: Pattern) -> list[str]:
    forms = [""]
    for item in (item for item in order if not isinstance(item, Options)):
        argument = tool.arguments.get(name_in(item)) if isinstance(item, str) else None
        plain = f"({argument.kind})" if argument and argument.kind in {"amount", "when"} else "…" if argument else item
        said = [plain] if isinstance(plain, str) else [form for way in plain.ways for form in _forms(tool, way)]
        forms = [f"{form} {more}".strip() for form in forms for more in said][:100]
    return forms


def _doubts(file: Path) -> dict[str, int]:
    """Return tool → number of lines in its entry that are still marked DOUBT."""
    import yaml

    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    root: Any = yaml.compose(text)
    stanzas: list[Any] = next((v.value for k, v in root.value if k.value == "tools"), [])
    starts = [(k.value, k.start_mark.line) for k, _ in stanzas]
    ends = [line for _, line in starts[1:]] + [len(lines)]
    counted = {n: sum("DOUBT" in line for line in lines[at:end]) for (n, at), end in zip(starts, ends, strict=True)}
    return {n: doubts for n, doubts in counted.items() if doubts}


def _tested(declared: Mapping[str, ToolProfile], loaded: Mapping[str, Any]) -> list[str]:
    from langchain_runtime_authz.mandate.mandate_file import load_mandate

    found, mandates = [], loaded.get("mandates") or {}
    if not isinstance(mandates, dict):
        raise ConfigError("mandates: each has a name", Code.PROFILE_INVALID)
    for name, mandate in mandates.items():
        try:
            load_mandate(mandate)
        except AuthzError as exc:
            found.append(f"mandates: {name}: {exc}")
    tests = loaded.get("tests") or []
    try:
        calls = [(str(t["tool"]), dict(t.get("args", {}))) for t in tests]
        expected = [t["expect"] for t in tests]
    except (TypeError, KeyError, ValueError, AttributeError) as exc:
        msg = "tests: each is `{tool: name, args: {…}, expect: permit, ask or deny}`"
        raise ConfigError(msg, Code.PROFILE_INVALID) from exc
    for (name, args), wanted, said in zip(calls, expected, outcomes(declared, calls), strict=True):
        if said != wanted:
            found.append(f"tests: {name} {args}: the answer is {said}, not {wanted}; correct the profile, or `expect`")
    return found
