"""What `runtime-authz profile suggest` proposes for three real graphs, beside what a careful author wrote for the same tools.

Run from the repository's root: `python -m tests.benchmarks.profile_suggest`; with `--write` the table goes into `docs/_generated`. Nothing
is called and no model is asked, so each run prints the same. The authors' files are those that the benchmark and the package use.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from langchain_core.tools import BaseTool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.cli._profile_proposal import Proposal, propose
from langchain_runtime_authz.cli.graph_target import tools_of
from langchain_runtime_authz.demo.agent import agent_graph
from langchain_runtime_authz.demo.agentdojo import PROFILES as BANKING
from langchain_runtime_authz.demo.agentdojo import World, load_suite
from langchain_runtime_authz.langgraph.tool_facts import Profiles
from langchain_runtime_authz.testing import ScriptedChatModel
from langchain_runtime_authz.tool_profile import EFFECTS, SHIPPED, SINKS, ToolProfile, load_profiles
from tests import generated

AUTHORS: Final = {
    "banking": BANKING, "workspace": Path(__file__).parent / "agentdojo" / "profiles" / "workspace.yaml",
    "deepagents": SHIPPED["deepagents"],
}
# What comes back no schema tells: it is counted apart, and left to the author.
ABOUT: Final = {
    "what a call does": ("effect", "sink", "class", "critical", "when", "text", "intent"),
    "what comes back": ("trust", "prose", "counterparty"),
}
HOW: Final = ("in force", "as doubt", "left")
SEVERITY: Final = ("permit", "approval_required", "deny", "halt")
Fact = tuple[str, Any]


@dataclass(slots=True)
class Comparison:
    """A graph's proposals beside its author's facts.

    Attributes:
        tools: how many were compared.
        facts: (about, how) → how many of the author's facts.
        left: kind of fact → how many of those nobody proposed.
        stricter: facts in force that are riskier than the author's.
        wrong: `tool: fact` for what the author says otherwise or not at all, in force or as a doubt.
        lowered: how many facts or answers are milder than without a profile, searches as a `fetch` to the outside apart.
        milder: how many effects in force are milder than the author's.
    """

    tools: int = 0
    facts: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    stricter: int = 0
    wrong: list[str] = field(default_factory=list)
    lowered: int = 0
    milder: int = 0

    def of(self, about: str) -> list[int]:
        """How many facts in force, as a doubt, and left."""
        return [self.facts[about, how] for how in HOW]


def graph_of(name: str) -> Any:
    """The graph whose tools are looked at."""
    model = ScriptedChatModel(script=[])
    if name == "deepagents":
        from deepagents import create_deep_agent

        return create_deep_agent(model=model)
    suite = load_suite(name)
    return agent_graph(model, World(suite, next(iter(suite.user_tasks.values())), {}).tools())


def facts(one: ToolProfile) -> Iterator[Fact]:
    """What an author says: what he leaves at its default he does not say, but for effect, sink and class."""
    yield from (("effect", one.effect), ("sink", one.sink), ("class", one.data_class))
    yield from (("critical", item) for item in one.critical.items())
    yield from ((name, item) for name in ("when", "text", "prose", "counterparty") for item in getattr(one, name))
    if one.intent:
        yield ("intent", one.intent)
    if one.trust != "external":
        yield ("trust", repr(one.trust))


def doubts(proposal: Proposal, author: ToolProfile) -> set[Fact]:
    """What stands in comments. Intent counts where it has one of the author's words."""
    found = {(d.fact, d.value) for d in proposal.doubts if d.fact != "intent"}
    words = {w for d in proposal.doubts if d.fact == "intent" for w in d.value}
    asked = {w for entry in author.intent for w in re.findall(r"\w+", re.sub(r"{.*?}", "", entry))}
    return found | ({("intent", author.intent)} if words & asked else {("intent", w) for w in words})


def _add(to: Comparison, proposal: Proposal, proposed: ToolProfile, author: ToolProfile) -> None:
    """One tool. Stricter is a higher class, a riskier effect, and a whole output as prose; a default is no statement."""
    wanted, said, maybe = set(facts(author)), set(facts(proposed)), doubts(proposal, author)
    defaults = {("effect", "write"), ("sink", "external"), ("class", "internal")}
    stricter = {("class", "confidential"), ("prose", "")}
    if EFFECTS.index(proposed.effect) > EFFECTS.index(author.effect):
        stricter.add(("effect", proposed.effect))
    astray = said - wanted - defaults
    to.stricter += len(astray & stricter)
    to.wrong += [f"{proposal.name}: {_told(f)}" for f in sorted((astray - stricter) | (maybe - wanted), key=repr)]
    for fact in wanted:
        about = next(a for a, kinds in ABOUT.items() if fact[0] in kinds)
        how = "in force" if fact in said else "as doubt" if fact in maybe else "left"
        to.facts[about, how] += 1
        if how == "left":
            to.left[fact[0]] += 1


def _told(fact: Fact) -> str:
    name, value = fact
    return f"{name} {': '.join(value)}" if isinstance(value, tuple) else f"{name} {value}"


def _severity(authz: RuntimeAuthz, tool: BaseTool) -> int:
    """Of the policy's answer to a call that the human asked for in the tool's own words."""
    with authz.session(subject="alice", task=f"Please {tool.name.replace('_', ' ')}") as session:
        return SEVERITY.index(session.decide(tool.name, {}).outcome)


def compare(name: str) -> Comparison:
    """One graph."""
    author = load_profiles(AUTHORS[name])
    tools = {t.name: t for t in tools_of(graph_of(name)) if t.name in author}
    proposals = {t.name: propose(t) for t in tools.values()}
    drafts = load_profiles(yaml.safe_load("tools:\n" + "\n".join(p.yaml() for p in proposals.values()))["tools"])
    with_drafts, without = RuntimeAuthz(profiles=drafts), RuntimeAuthz()
    found = Comparison(tools=len(tools))
    for tool in tools.values():
        proposed = drafts[tool.name]
        _add(found, proposals[tool.name], proposed, author[tool.name])
        bare = Profiles.unprofiled(tool, "").profile
        search = (proposed.effect, proposed.sink) == ("fetch", "external")  # its answer asks unless the query is backed
        found.lowered += EFFECTS.index(proposed.effect) < EFFECTS.index(bare.effect) and not search
        found.lowered += SINKS.index(proposed.sink) < SINKS.index(bare.sink)
        found.lowered += proposed.trust != "external" or proposed.data_class not in (bare.data_class, "confidential")
        found.milder += EFFECTS.index(proposed.effect) < EFFECTS.index(author[tool.name].effect)
        # As it stands, the policy's answer is what it is without the proposal, or a stricter one.
        found.lowered += _severity(with_drafts, tool) < _severity(without, tool)
    return found


def table() -> list[str]:
    """Return the table, and below it the losses by name."""
    head = ["graph", "facts of its author about", *HOW[:2], "left to him", "stricter", "wrong", "risks lowered"]
    lines, losses = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)], []
    for name in AUTHORS:
        one = compare(name)
        for about in ABOUT:
            counts = one.of(about)
            cells = [f"{n} ({n / max(sum(counts), 1):.0%})" for n in counts]
            first = about == next(iter(ABOUT))
            graph = f"{name}, {one.tools} tools" if first else ""
            rest = [one.stricter, len(one.wrong), one.lowered] if first else [""] * 3
            lines.append("| " + " | ".join(map(str, [graph, f"{about}: {sum(counts)}", *cells, *rest])) + " |")
        left = ", ".join(f"{kind} {times}" for kind, times in sorted(one.left.items(), key=lambda k: (-k[1], k[0])))
        losses.append(f"- {name}: left: {left}; wrong: {'; '.join(one.wrong) or 'none'}; effects milder than the author's: {one.milder}")
    return [*lines, "", *losses]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        generated.write("suggest", "\n".join(table()))
    else:
        print("\n".join(table()))
