"""`profile suggest` on three real graphs, beside what a careful author wrote for the same tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from langchain_core.tools import BaseTool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.cli._proposal import Proposal, propose
from langchain_runtime_authz.cli.inspect import tools_of
from langchain_runtime_authz.demo.agentdojo import PROFILES as BANKING
from langchain_runtime_authz.demo.agentdojo import World, load_suite
from langchain_runtime_authz.demo.graph import agent_graph
from langchain_runtime_authz.edges.profiles import Profiles
from langchain_runtime_authz.profile import EFFECTS, SHIPPED, SINKS, ToolProfile, load_profiles
from langchain_runtime_authz.testing import ScriptedChatModel

WORKSPACE = Path(__file__).parents[1] / "benchmarks" / "agentdojo" / "profiles" / "workspace.yaml"
AUTHORS = {"banking": BANKING, "workspace": WORKSPACE, "deepagents": SHIPPED["deepagents"]}
# Of what an author says about calls, the least share that is proposed, in force or in a comment. What comes back
# no schema tells: it is counted and left to him.
LEAST = 0.65
CALLS = ("effect", "sink", "class", "critical", "when", "text", "intent")
SEVERITY = ("permit", "approval_required", "deny", "halt")


def graph_of(name: str) -> Any:
    model = ScriptedChatModel(script=[])
    if name == "deepagents":
        from deepagents import create_deep_agent

        return create_deep_agent(model=model)
    suite = load_suite(name)
    return agent_graph(model, World(suite, next(iter(suite.user_tasks.values())), {}).tools())


def facts(one: ToolProfile) -> Iterator[tuple[str, Any]]:
    """What an author says: what he leaves at its default he does not say, but for effect, sink and class."""
    yield from (("effect", one.effect), ("sink", one.sink), ("class", one.data_class))
    yield from (("critical", item) for item in one.critical.items())
    yield from ((fact, item) for fact in ("when", "text", "prose", "counterparty") for item in getattr(one, fact))
    if one.intent:
        yield ("intent", one.intent)
    if one.trust != "external":
        yield ("trust", repr(one.trust))


def doubts(proposal: Proposal, author: ToolProfile) -> set[tuple[str, Any]]:
    """Intent counts where it has one of the author's words."""
    found = {(d.fact, d.value) for d in proposal.doubts if d.fact != "intent"}
    words = {w for d in proposal.doubts if d.fact == "intent" for w in d.value}
    asked = {w for entry in author.intent for w in entry.split()}
    return found | ({("intent", author.intent)} if words & asked else {("intent", w) for w in words})


def count(proposal: Proposal, proposed: ToolProfile, author: ToolProfile) -> Counter[str]:
    """Of the author's facts: proposed in force, proposed as a doubt, left to him; and what is stricter or wrong.

    Stricter is a higher class, a riskier effect, and a whole output as prose. Wrong is a class, an argument or a field that he states otherwise or not at all; a doubt that is not his;
    and an effect or a sink that is neither his nor the default of a tool without a profile.
    """
    wanted, said, maybe = set(facts(author)), set(facts(proposed)), doubts(proposal, author)
    defaults = {("effect", "write"), ("sink", "external"), ("class", "internal")}
    stricter = {("class", "confidential"), ("prose", "")}
    if EFFECTS.index(proposed.effect) > EFFECTS.index(author.effect):
        stricter.add(("effect", proposed.effect))
    astray = said - wanted - defaults
    total: Counter[str] = Counter(stricter=len(astray & stricter), wrong=len(astray - stricter) + len(maybe - wanted))
    for fact, value in wanted:
        about = "calls" if fact in CALLS else "returns"
        how = "in force" if (fact, value) in said else "as doubt" if (fact, value) in maybe else "left"
        total[f"{about} {how}"] += 1
    return total


def severity(authz: RuntimeAuthz, tool: BaseTool) -> int:
    """Of the policy's answer to a call that the human asked for in the tool's own words."""
    with authz.session(subject="alice", task=f"Please {tool.name.replace('_', ' ')}") as session:
        return SEVERITY.index(session.decide(tool.name, {}).outcome)


@pytest.mark.parametrize("name", AUTHORS)
def test_proposed_beside_an_authors_facts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Most facts are proposed, in force or as a doubt; none lowers a risk, as it stands or once accepted unread."""
    author = load_profiles(AUTHORS[name])
    tools = {t.name: t for t in tools_of(graph_of(name)) if t.name in author}
    total: Counter[str] = Counter()
    lowered = milder = 0
    proposals = {t.name: propose(t) for t in tools.values()}
    drafts = load_profiles(yaml.safe_load("tools:\n" + "\n".join(p.yaml() for p in proposals.values()))["tools"])
    with_drafts, without = RuntimeAuthz(profiles=drafts), RuntimeAuthz()
    for tool in tools.values():
        proposal, proposed = proposals[tool.name], drafts[tool.name]
        total += count(proposal, proposed, author[tool.name])
        bare = Profiles.unprofiled(tool, "").profile
        lowered += EFFECTS.index(proposed.effect) < EFFECTS.index(bare.effect)
        lowered += SINKS.index(proposed.sink) < SINKS.index(bare.sink)
        lowered += proposed.trust != "external" or proposed.data_class not in (bare.data_class, "confidential")
        milder += EFFECTS.index(proposed.effect) < EFFECTS.index(author[tool.name].effect)
        # As it stands, the policy's answer is what it is without the proposal, or a stricter one.
        lowered += severity(with_drafts, tool) < severity(without, tool)
    calls, returns = ({how: total[f"{about} {how}"] for how in ("in force", "as doubt", "left")} for about in ("calls", "returns"))
    share = 1 - calls["left"] / sum(calls.values())
    with capsys.disabled():
        print(
            f"\n{name}, {len(tools)} tools. What a call does, {sum(calls.values())} facts of the author: {calls} ({share:.0%} proposed). "
            f"What comes back, {sum(returns.values())}: {returns}. Proposed and stricter: {total['stricter']}; and wrong: {total['wrong']}. "
            f"Lowered a risk: {lowered}. Effects milder than the author's: {milder}.",
        )
    assert len(tools) >= 9
    assert lowered == 0
    assert share >= LEAST
    assert total["wrong"] <= sum(calls.values()) / 6
