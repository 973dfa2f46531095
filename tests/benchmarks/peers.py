"""Measure one permitted call of a graph with and without one package: `PYTHON -m tests.benchmarks.peers NAME`.

`.ci/peers` makes an environment for each package, whose Python runs this file. It answers each line of the standard input
with a round. A round is whole invokes of START → agent → tools → END, whose agent is a function that returns one call.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langchain_core.tools import StructuredTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode

from tests.benchmarks.per_call import ACCOUNT, MANDATE, TASK, FixedPDP, Round, answer, between, message, shipped_pdp

DOES = {
    "ours": "a run and its lease, the user's mandate, the model's plan, where each argument came from, history, engine, audit record on demand",
    "ours-shipped": "the same, decided by the shipped policy in WebAssembly",
    "agentlock": "role, rate, session; an execution token for each call, bound to its arguments; audit in memory",
    "apparitor": "maps the call to an AuthZEN request and asks Cedar in a thread; no state",
    "attenu-guard": "the scope of a delegated authority, then a line of a hash-chained log in memory",
    "intentplane": "a signed mandate with a budget, trusted sources of critical arguments, Cedar, a hash-chained receipt",
    "langgraph-secure-agents": "role, action and resource against a list of rules; no state",
    "tenuo": "a signed warrant with constraints on arguments, and a signature for each call (Rust)",
}


class State(TypedDict):
    """Messages, and the warrant that one of the peers reads there."""

    messages: Annotated[list[AnyMessage], add_messages]
    warrant: Any


def book(account: str, amount: float, note: str = "") -> str:
    """Book an amount on an account."""
    return "booked"


def tools(function: Callable[..., Any] = book, **options: Any) -> ToolNode:
    """Return a tool node of one tool, which this function carries out."""
    model = StructuredTool.from_function(book)
    return ToolNode([StructuredTool(name="book", description=model.description, args_schema=model.args_schema, func=function)], **options)


def graph(node: Any) -> Any:
    """Build the graph around a tool node."""
    builder = StateGraph(State).add_node("agent", lambda _: {"messages": [message(1)]}).add_node("tools", node)
    return builder.add_edge(START, "agent").add_edge("agent", "tools").add_edge("tools", END).compile()


def agentlock() -> Any:
    """Authorize and execute by its gate, in the tool."""
    from agentlock import AgentLockPermissions, AuthorizationGate

    gate = AuthorizationGate()
    gate.register_tool("book", AgentLockPermissions(risk_level="high", allowed_roles=["user"], rate_limit=None))
    gate.create_session(user_id="alice", role="user")
    return tools(lambda **args: gate.call("book", book, user_id="alice", role="user", parameters=args))


def apparitor() -> Any:
    """Ask its engine, with Cedar in the process, before the tool."""
    from apparitor.config import ScannerConfig
    from apparitor.engine import AuthorizationEngine

    folder = Path(tempfile.mkdtemp())
    policy, entities = folder / "policy.cedar", folder / "entities.json"
    policy.write_text('permit (principal == Agent::"alice", action == Action::"tool_call.execute", resource == Tool::"book");')
    entities.write_text("[]")
    config = ScannerConfig(backend="cedar", cedar_policies_path=str(policy), cedar_entities_path=str(entities), agent_id="alice")
    engine, loop = AuthorizationEngine(config), asyncio.new_event_loop()

    def wrap(request: Any, handler: Any) -> Any:
        verdict = loop.run_until_complete(engine.evaluate_tool_calls([request.tool_call]))
        assert verdict.verdict.name == "ALLOW", verdict
        return handler(request)

    return tools(wrap_tool_call=wrap)


def attenu_guard() -> Any:
    """Check by its adapter for LangGraph, before the tool."""
    from attenu_guard import Authority, Guard
    from attenu_guard.adapters.langchain import GuardedDelegation, ToolPolicy

    root = Guard.issue("orchestrator", Authority(scopes={"books.*"}, ceilings=[], ttl=36_000))
    return tools(wrap_tool_call=GuardedDelegation(root, tools={"book": ToolPolicy("books.write")}).wrap_tool_call)


def intentplane() -> Any:
    """Submit to its gateway, which carries the call out, with its pack for a bank."""
    from intentplane import Authority, Gateway, Proposal
    from intentplane.packs import bank

    pack, _ = bank.build({})
    authority = Authority()
    claims = {"source_account": "DE02120300000000202051", "payee": ACCOUNT, "currency": "EUR"}
    token, gateway = authority.issue("alice", {"payment.transfer"}, claims, ttl=36_000), Gateway([pack], authority)

    def pay(account: str, amount: float, note: str = "") -> str:
        args = {"source_account": claims["source_account"], "payee_iban": account, "amount_cents": round(amount * 100), "currency": "EUR"}
        outcome = gateway.submit(token, Proposal("payment.transfer", {**args, "reference": note}))
        assert outcome.status.name == "EXECUTED", outcome
        return "booked"

    return tools(pay)


def langgraph_secure_agents() -> Any:
    """Wrap the tool's function."""
    from langgraph_secure_agents import Effect, PolicyEngine, PolicyRule, Principal, protect_callable

    rule = PolicyRule(rule_id="users-book", effect=Effect.ALLOW, roles=frozenset({"user"}), actions=frozenset({"execute"}), resources=frozenset({"book"}))
    who = Principal("alice", roles=frozenset({"user"}))
    return tools(protect_callable(book, policy=PolicyEngine([rule]), principal_resolver=lambda: who))


def tenuo() -> Any:
    """Take its tool node, and a warrant in the state."""
    from tenuo import KeyRegistry, SigningKey, Warrant, Wildcard, configure
    from tenuo.langgraph import TenuoToolNode

    key = SigningKey.generate()
    KeyRegistry.get_instance().register("default", key)
    configure(issuer_key=key, trusted_roots=[key.public_key])
    any_ = Wildcard()
    warrant = Warrant.mint_builder().capability("book", account=any_, amount=any_, note=any_).holder(key.public_key).ttl(36_000).mint(key)
    return TenuoToolNode([StructuredTool.from_function(book)]), {"warrant": warrant}


def ours(pdp: Any) -> Callable[[str], Any]:
    """Protect the graph, and open a run for each invoke."""
    from langchain_runtime_authz import RuntimeAuthz, ToolProfile

    profiles = {"book": ToolProfile(effect="write", sink="internal", critical={"account": "principal", "amount": "amount"})}
    authz = RuntimeAuthz(pdp=pdp, profiles=profiles)
    protected = authz.protect(graph(tools()))
    return lambda text: protected.invoke({"messages": [("user", text)]}, authz.run(subject="alice", task=TASK, mandate=MANDATE).config({}))


def sides(name: str) -> tuple[str, Callable[[str], Any]]:
    """Return what is measured, with its version, and one invoke of it."""
    if name.startswith("ours"):
        return name, ours(FixedPDP() if name == "ours" else shipped_pdp())
    made = globals()[name.replace("-", "_")]()
    node, state = made if isinstance(made, tuple) else (made, {})
    guarded = graph(node)
    return f"{name} {version(name)}", lambda text: guarded.invoke({"messages": [("user", text)], **state})


def main(name: str) -> None:
    """Answer with rounds."""
    label, invoke = sides(name)
    plain = graph(tools())
    out = invoke(TASK)["messages"][-1]
    assert (out.content, out.status) == ("booked", "success"), out

    def sample(rounds: int) -> Round:
        return {label: between([lambda: plain.invoke({"messages": [("user", TASK)]}), lambda: invoke(TASK)], rounds * 8)}

    answer(sample, 5)


if __name__ == "__main__":
    main(sys.argv[1])
