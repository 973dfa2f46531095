"""`runtime-authz init`: make a profile file by at most four questions a tool."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer
from typer import Argument, Option

from langchain_runtime_authz._display import one_line
from langchain_runtime_authz._validate import as_list, as_mapping
from langchain_runtime_authz.cli._app import Printout, yaml_flow
from langchain_runtime_authz.cli.graph_target import graph_tools
from langchain_runtime_authz.errors import Code, ConfigError

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from langchain_runtime_authz.cli._profile_proposal import Proposal
    from langchain_runtime_authz.tool_profile import ToolProfile

WORDS: Final = {"permit": "permit", "approval_required": "ask", "deny": "deny", "halt": "deny"}
"""A decision's outcome in one word, as `tests` names it."""

_DOES: Final = {
    "ask": "I do not know, or it may do harm: ask about each call",
    "computes": "it works on its arguments alone, like a calculator",
    "reads": "it looks something up, and its arguments go nowhere",
    "fetch": "it looks something up outside, like a web search or a page",
    "write": "it changes or creates something",
    "send": "it writes to people, or publishes",
    "pay": "it moves money, or orders something",
    "delete": "it deletes or overwrites something",
    "admin": "it runs code or a command, or grants rights",
    "deny": "it must not run here",
}
_HEAD: Final = """\
# What each tool does. Written by `runtime-authz init`; edit it as you like, and run the command again after new tools.
# The fields are explained in docs/profiles.md.
tools:
"""
_MANDATES: Final = """
# What a task may order without a question: give one to `authz.run(mandate=...)`. See docs/mandate.md.
mandates:
  example:
    steps:
"""
_TESTS: Final = """
# What the policy answers to a call that nobody ordered. `runtime-authz profile check` runs these.
tests:
"""
_ASKS: Final = "each call asks, until the file says what it does"
_NEXT: Final = """\
{lines}{file}: {added} added, {kept} kept. Add to your code:

  from langchain_runtime_authz import RuntimeAuthz
  authz = RuntimeAuthz(profiles="{file}")
  graph = authz.protect(graph)  # compiled with a checkpointer, so that questions can wait

and call it inside `with authz.run(subject="alice"):`. See docs/start.md. A person answers a question by
`graph.invoke(Command(resume={{"decisions": [{{"type": "approve"}}]}}), config)`. This shows what a text orders:

  runtime-authz mandate explain "What the user says" --profiles {file} --graph {target}"""


def init(
    target: Annotated[
        str, Argument(metavar="GRAPH", help="`module:graph`, `file.py:graph` or `langgraph.json[:name]`.")
    ] = "langgraph.json",
    yes: Annotated[bool, Option("--yes", help="Ask nothing: take fitting ready profiles; other tools ask.")] = False,
    answers: Annotated[Path | None, Option(metavar="FILE", help="Take the answers from a profile file.")] = None,
    file: Annotated[Path, Option("--write", metavar="FILE", help="The file to make or complete.")] = Path("authz.yaml"),
    as_json: bool = False,
) -> Printout:
    """Write authz.yaml for a graph: profiles, a mandate as an example, and tests.

    The module is imported, so its code runs; the graph is not invoked. Tools of known packages get the ready profile
    that is made for them. For each other tool you are asked what it does, where its arguments go, which arguments decide
    whom or what a call affects, and by which words a user orders it. Enter takes the answer in brackets. The
    first question's default is `ask`: each call of the tool then asks an approver. `y` takes the whole guessed profile
    that is shown. Entries of FILE are kept.

    runtime-authz init
    runtime-authz init my_agent.py:graph
    runtime-authz init my_agent:graph --yes
    """
    from langchain_runtime_authz.langgraph.tool_facts import digest_of, made_by_langgraph
    from langchain_runtime_authz.tool_profile import load_profiles

    quiet = yes or answers is not None
    if not (quiet or (_interactive() and not as_json)):
        why = "`--json` asks nothing" if as_json else "there is no terminal to ask at"
        raise ConfigError(f"{why}; give `--yes`, or `--answers FILE`")
    kept = load_profiles(file) if file.exists() and file.stat().st_size else {}
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    given = load_profiles(answers)
    tools = graph_tools(target)
    wanted = [t for t in tools if t.name in given or ready(t) is not None or not made_by_langgraph(t)]
    if not wanted:
        raise ConfigError(f"`{target}` needs no profile: its tools only hand over, and each agent's tools are decided")
    new = [t for t in wanted if t.name not in kept]
    _check_answers(answers, given, tools)
    if new and not quiet:
        _explain()
    facts = {t.name: _profile(t, given, tools, ask=not quiet) for t in new}
    declared = load_profiles({**kept, **facts})
    told = outcomes(declared, [(t.name, example_args(t)) for t in new])
    stanzas = {n: f"  {yaml_flow(n)}: {yaml_flow(f)}\n" for n, f in facts.items()}
    expected = [{"tool": t.name, "args": example_args(t), "expect": said} for t, said in zip(new, told, strict=True)]
    tests = {t.name: f"  - {yaml_flow(each)}\n" for t, each in zip(new, expected, strict=True)}
    text = completed(text or _HEAD + _mandates(new, declared) + _TESTS, tools=stanzas, tests=tests)
    file.write_text(text, encoding="utf-8")
    load_profiles(file)
    added = [{"tool": t.name, "effect": declared[t.name].effect, "expect": e} for t, e in zip(new, told, strict=True)]
    asks = {n for n, p in declared.items() if p.verdict == "ask"}
    does = [f"{a['effect']}; without an order the answer is {a['expect']}" for a in added]
    does = [_ASKS if t.name in asks else one for t, one in zip(new, does, strict=True)]
    lines = [f"  {one_line(t.name)}: {one}\n" for t, one in zip(new, does, strict=True)]
    changed = [t.name for t in wanted if t.name in kept and kept[t.name].digest not in (None, digest_of(t))]
    lines += [
        f"  {one_line(n)}: it changed after its review and asks; see `runtime-authz profile check`\n" for n in changed
    ]
    count = f"{len(new)} tool{'s' * (len(new) != 1)}"
    text = _NEXT.format(lines="".join(lines), file=file, target=target, added=count, kept=len(kept))
    return Printout({"wrote": str(file), "added": added, "kept": [*kept]}, text)


def _check_answers(file: Path | None, given: Mapping[str, ToolProfile], tools: list[BaseTool]) -> None:
    from langchain_runtime_authz._profile_schema import check_arguments
    from langchain_runtime_authz.langgraph.tool_facts import arguments_of

    known = {t.name: t for t in tools}
    if unknown := ", ".join(f"`{one_line(n)}`" for n in given if n not in known):
        named = ", ".join(f"`{one_line(n)}`" for n in known)
        raise ConfigError(f"{file}: {unknown} is not a tool that was found; these were: {named}", Code.PROFILE_INVALID)
    for name, answer in given.items():
        check_arguments(name, answer, arguments_of(known[name]))


def _interactive() -> bool:
    return sys.stdin.isatty()


def _profile(tool: BaseTool, given: Mapping[str, ToolProfile], tools: list[BaseTool], *, ask: bool) -> Any:
    from langchain_runtime_authz.langgraph.tool_facts import digest_of

    if tool.name not in given and (fitting := ready(tool)) is not None:
        name, fields = fitting
        typer.echo(f"{tool.name}: taken from the ready set `{name}`.", err=True)
        return fields
    facts = _fields(given[tool.name]) if tool.name in given else _ask_about(tool, tools) if ask else "ask"
    if isinstance(facts, str):
        return facts
    digest = digest_of(tool)
    return {**facts, "digest": digest} if digest is not None else facts


def _guessed(tool: BaseTool, proposal: Proposal) -> dict[str, Any]:
    """Return a whole profile, guessed by names, for a person to accept."""
    facts = {fact: value for fact, value in proposal.facts.items() if fact not in ("digest", "trust")}
    guessed = {d.fact: d.value for d in proposal.doubts}
    facts["effect"] = guessed.get("effect", facts["effect"])
    if facts["effect"] in ("read", "compute"):
        return {fact: facts[fact] for fact in ("effect", "class", "prose") if fact in facts} | {"sink": "none"}
    if facts["effect"] == "fetch":  # what a search outside returns is public
        return {**facts, "class": "public"}
    orders = _orders(tool, facts, guessed["intent"]) if "intent" in guessed else []
    return {**facts, "intent": orders} if orders else facts


def _fields(profile: ToolProfile) -> Any:
    """Return a profile as a file holds it: one word of `SWITCHES`, or its fields."""
    from langchain_runtime_authz.tool_profile import SWITCHES, ToolProfile

    fields = profile.model_dump(exclude_defaults=True, mode="json")
    word = next((w for w, f in SWITCHES.items() if ToolProfile.model_validate(f) == profile), None)
    return word if word is not None else fields


def ready(tool: BaseTool) -> tuple[str, dict[str, Any]] | None:
    """Return the set and the fields of the shipped profile for a tool, or `None`."""
    from langchain_runtime_authz.langgraph.tool_facts import why_foreign

    for name, profiles in _ready_sets().items():
        # Nothing proves to which MCP server a tool belongs, so only the user can choose a set for MCP tools.
        if not name.startswith("mcp-") and (own := profiles.get(tool.name)) and not why_foreign(tool, own):
            return name, own.model_dump(exclude_defaults=True, mode="json")
    return None


@cache
def _ready_sets() -> Mapping[str, Mapping[str, ToolProfile]]:
    from langchain_runtime_authz.tool_profile import SHIPPED, load_profiles

    return {name: load_profiles(path) for name, path in SHIPPED.items()}


def _explain() -> None:
    from langchain_runtime_authz.tool_profile import Kind

    typer.echo("What a call does:")
    for i, (word, says) in enumerate(_DOES.items(), 1):
        typer.echo(f"  {i:>2} {word:<9} {says}")
    typer.echo(f"Kinds of arguments: {', '.join(get_args(Kind))}. They are explained in docs/profiles.md.")
    typer.echo("Arguments that other organisations or people outside can see go `external`.")


def _ask_about(tool: BaseTool, tools: list[BaseTool]) -> Any:
    from langchain_runtime_authz.cli._profile_proposal import propose
    from langchain_runtime_authz.langgraph.tool_facts import arguments_of
    from langchain_runtime_authz.tool_profile import EFFECTS, HARMLESS

    proposal = propose(tool, tools)
    guessed = {d.fact: (d.value, d.why) for d in proposal.doubts}
    effect, why = guessed.get("effect", (proposal.facts["effect"], proposal.why["effect"]))
    guess = {"read": "reads", "compute": "computes"}.get(effect, effect)
    typer.echo("\n" + one_line(f"{tool.name}({', '.join(arguments_of(tool))}): {tool.description.strip()[:90]}"))
    whole = _guessed(tool, proposal)
    typer.echo(f"  Guess: {yaml_flow(whole)}")
    does = _choice(f"  What does a call do? Perhaps {guess}, {why}. `y` takes the guess.", [*_DOES, "y"])
    if does == "y":
        return whole
    if does not in EFFECTS:
        return does
    facts: dict[str, Any] = {"effect": does, "sink": "external"}
    if does != "fetch":
        facts["sink"] = _choice("  Where do its arguments go?", ["external", "internal"])
    critical = proposal.facts.get("critical", {})
    if does == "fetch":  # the words of a search are not critical
        critical = {name: kind for name, kind in critical.items() if kind == "url"}
    shown = ",".join(f"{name}={kind}" for name, kind in critical.items()) or "none"
    while True:
        said = typer.prompt("  Which arguments decide whom or what it hits, and how much (name=kind)?", default=shown)
        pairs = [] if said.strip() == "none" else [p.strip().partition("=") for p in said.split(",")]
        facts["critical"] = {name.strip(): kind.strip() for name, _, kind in pairs}
        if _fits(tool, facts):
            break
    for fact in ("text", "when"):
        if left := [n for n in proposal.facts.get(fact, []) if n not in facts["critical"]]:
            facts[fact] = left
    shown = (", ".join(_orders(tool, facts, guessed["intent"][0])) or "none") if "intent" in guessed else ""
    while shown and does not in HARMLESS:
        words = "  Which orders (words, and {arguments}) let it run without a question?"
        said = typer.prompt(words, default=shown)
        facts["intent"] = [w.strip() for w in said.split(",") if w.strip() not in ("", "none")]
        if _fits(tool, facts):
            break
    return {**facts, "class": "public" if does == "fetch" else proposal.facts["class"]}  # a search outside is public


def _orders(tool: BaseTool, facts: dict[str, Any], verbs: Sequence[str]) -> list[str]:
    """Return orders for `intent` that begin with one of `verbs`; [] if none is known."""
    from langchain_runtime_authz.langgraph.tool_facts import schema_of
    from langchain_runtime_authz.mandate.languages import languages
    from langchain_runtime_authz.mandate.vocabulary import TARGETS, ToolWords, suggested_orders
    from langchain_runtime_authz.tool_profile import ToolProfile

    known = ToolWords(tool.name, ToolProfile.model_validate(facts), schema_of(tool), languages()[0])
    verb = f"({'|'.join(verbs)})" if verbs[1:] else verbs[0]
    if found := [*suggested_orders(known, verb)]:
        return found
    # The tool's name does not say what it acts on: `refund(order, amount)`. So name all that a call must have.
    needed = [a for a in known.arguments.values() if a.required and a.name.isidentifier()]
    acted_on = [a.name for a in needed if a.kind in (*TARGETS, "value")]
    amounts = [a.name for a in needed if a.kind == "amount"]
    if len(acted_on) != 1 or len(needed) > 1 + len(amounts[:1]):
        return []
    ways = [f"{{{acted_on[0]}}}", *(f"with {{{name}}}" for name in amounts)]
    return [f"{verb} {' '.join(ways)}", *(f"{verb} {{{name}}} for {{{acted_on[0]}}}" for name in amounts)]


def _fits(tool: BaseTool, facts: dict[str, Any]) -> bool:
    """Return True if the tool can have this profile; otherwise print why not."""
    from langchain_runtime_authz._profile_schema import check_arguments
    from langchain_runtime_authz.langgraph.tool_facts import arguments_of
    from langchain_runtime_authz.tool_profile import load_profiles

    try:
        (declared,) = load_profiles({tool.name: facts}).values()
        check_arguments(tool.name, declared, arguments_of(tool))
    except ConfigError as exc:
        typer.echo(f"  {exc}", err=True)
        return False
    return True


def _choice(question: str, choices: list[str]) -> str:
    while True:
        said = typer.prompt(f"{question} Name or number", default=choices[0]).strip()
        if said.isdigit() and 0 < int(said) <= len(choices):
            return choices[int(said) - 1]
        if said in choices:
            return str(said)
        typer.echo(f"  Say one of {', '.join(choices)}.", err=True)


def _mandates(tools: list[BaseTool], declared: Mapping[str, ToolProfile]) -> str:
    for tool in tools:
        if declared[tool.name].side_effect:
            return f"{_MANDATES}      - {yaml_flow({'id': 'first', 'tool': tool.name, 'args': example_args(tool)})}\n"
    return ""


def completed(text: str, **sections: Mapping[str, str]) -> str:
    """Add entries (section → name → lines) to a file's text, or replace them by name."""
    import yaml

    for section, entries in sections.items():
        root: Any = yaml.compose(text)
        found = {k.value: (k.start_mark.line, v) for k, v in root.value} if root is not None else {}
        lines = text.splitlines(keepends=True)
        if section not in found:
            lines += [f"\n{section}:\n", *entries.values()] if entries else []
        else:
            at, node = found[section]
            if entries and not node.tag.endswith("null") and node.start_mark.line == at:
                raise ConfigError(f"`{section}` of the file is on one line; put each entry below it, on its own line")
            for name, content in reversed(node.value) if node.tag.endswith("map") else ():
                start = name.start_mark.line
                if name.value in entries:
                    del lines[start : max(content.end_mark.line, start + 1)]
            lines[at + 1 : at + 1] = entries.values()
        text = "".join(lines)
    return text


def example_args(tool: BaseTool) -> dict[str, Any]:
    """Return arguments that fit the tool's schema, for a test."""
    from langchain_runtime_authz.langgraph.tool_facts import arguments_of, schema_of

    needed = schema_of(tool).get("required", [])
    schemas = {name: as_mapping(schema) for name, schema in arguments_of(tool).items() if name in needed}
    examples: dict[str, Any] = {"integer": 1, "number": 1, "boolean": False, "array": [], "object": {}}
    return {n: [*as_list(s.get("enum")), examples.get(str(s.get("type")), "example")][0] for n, s in schemas.items()}


def outcomes(declared: Mapping[str, ToolProfile], calls: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return the shipped policy's outcome for each call in a task that orders nothing."""
    from langchain_runtime_authz import RuntimeAuthz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        authz = RuntimeAuthz(profiles=declared)
    found = []
    log = logging.getLogger("langchain_runtime_authz.decisions")
    before, log.disabled = log.disabled, True  # these calls are only a test
    try:
        for name, args in calls:
            with authz.session(subject="tester", task="Look around") as session:
                found.append(WORDS[session.decide(name, args).outcome])
    finally:
        log.disabled = before
    return found
