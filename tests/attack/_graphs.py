"""Graphs, tools and drivers that the attack tests share."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph._internal._runnable import RunnableCallable
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel, Field, create_model

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.evaluation import EvaluationRequest
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP

PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}),
    "read": ToolProfile(effect="read", sink="none", data_class="public"),
    "write": ToolProfile(effect="write", sink="internal"), "ask_agent": ToolProfile(effect="write", sink="internal"),
}

FORMS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch", "astream_events")


class PayArgs(BaseModel):
    """Coerced, aliased and defaulted: what the model writes is not what the tool receives."""

    recipient: str = Field(alias="to")
    amount: float
    currency: str = "USD"


def pay_tool(ran: list[Any]) -> BaseTool:
    """A tool with a side effect, seen in `ran`."""

    @tool(args_schema=PayArgs)
    def pay(recipient: str, amount: float, currency: str = "unset") -> str:
        """Pay somebody."""
        ran.append((recipient, amount, currency))
        return "paid"

    return pay


def payer(ran: list[Any], name: str = "pay", args_schema: Any = PayArgs) -> BaseTool:
    """A side effect with both functions, behind a schema that coerces, renames and fills in."""
    pay: Any = pay_tool(ran).func  # type: ignore[attr-defined]

    async def apay(recipient: str, amount: float, currency: str = "unset") -> str:
        return pay(recipient, amount, currency)

    return StructuredTool.from_function(pay, apay, name=name, args_schema=args_schema)


def read_tool(ran: list[Any]) -> BaseTool:
    """A tool without a side effect, seen in `ran` all the same."""

    @tool
    def read(path: str) -> str:
        """Read something."""
        ran.append(("read", path))
        return f"text of {path}"

    return read


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def a_tool(name: str, act: Callable[..., Any], /, **kinds: Any) -> BaseTool:
    """A tool that takes arguments of these kinds, and does this with them."""
    return StructuredTool.from_function(act, name=name, description=f"{name}.", args_schema=_arguments(name, *kinds.items()))


@cache
def _arguments(name: str, *kinds: tuple[str, Any]) -> Any:
    return create_model(name, **{argument: (kind, ...) for argument, kind in kinds})


def noting(ran: list[Any], name: str, says: Any = "done", /, **kinds: Any) -> BaseTool:
    """A tool that is seen in `ran` with its arguments, and says this."""
    return a_tool(name, lambda **args: [ran.append((name, *args.values())), says][1], **kinds)


def call(name: str, args: dict[str, Any], ident: str) -> dict[str, Any]:
    return {"name": name, "args": args, "id": ident, "type": "tool_call"}


def says(*calls: dict[str, Any], text: str = "") -> AIMessage:
    """What the model says: calls, or a text."""
    return AIMessage(text, tool_calls=list(calls))


PAY = call("pay", {"to": "bob", "amount": "5"}, "call-pay")
READ = call("read", {"path": "a"}, "call-read")
PAID = ("bob", 5.0, "USD")


def replying(*turns: Sequence[dict[str, Any]]) -> ScriptedChatModel:
    """A model that plays one turn of calls per tool round since the last human message, then ends.

    It goes by the messages that it is given, so several runs may share it.
    """

    def respond(messages: list[Any]) -> AIMessage:
        since = 0
        for message in reversed(messages):
            if isinstance(message, HumanMessage):
                break
            since += isinstance(message, AIMessage) and bool(message.tool_calls)
        return says(*turns[since]) if since < len(turns) else says(text="done")

    return ScriptedChatModel(script=[respond] * 200)


def hand_written(
    model: ScriptedChatModel, tools: Sequence[BaseTool] | ToolNode, *, checkpointer: Any = None, name: str = "hand",
    handle_tool_errors: Any = None, retry_policy: Any = None, **compiled: Any,
) -> Any:
    """Model → tools → model, with one ToolNode that runs all calls of a message in one task."""
    node = tools
    if not isinstance(tools, ToolNode):
        options = {} if handle_tool_errors is None else {"handle_tool_errors": handle_tool_errors}
        node = ToolNode(list(tools), **options)

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def aagent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    both = RunnableCallable(agent, aagent, name="agent")
    return loop(both, node, retry_policy=retry_policy, checkpointer=checkpointer, name=name, **compiled)


def agent_graph(model: ScriptedChatModel, tools: Sequence[BaseTool], **options: Any) -> Any:
    """LangChain's `create_agent`: one task per tool call."""
    from langchain.agents import create_agent

    return create_agent(model, list(tools), **{"name": "agent", **options})


def deny_only(name: str) -> StaticPDP:
    """Denies calls of one tool and nothing else, so that no test can pass by halting early."""
    return StaticPDP(lambda r: not (r.action.name == "tools/call" and r.resource.id == name))


def calls_of(pdp: StaticPDP, name: str | None = None) -> list[EvaluationRequest]:
    """The `tools/call` requests that the PDP was asked."""
    return [r for r in pdp.requests if r.action.name == "tools/call" and name in (None, r.resource.id)]


def authz_with(pdp: Any, **options: Any) -> RuntimeAuthz:
    return RuntimeAuthz(pdp=pdp, **{"profiles": PROFILES, **options})


def ledger_down() -> AbstractContextManager[Any]:
    """The time in which ledgers in memory keep nothing."""
    return patch("langchain_runtime_authz.ledger.memory.apply_changes", side_effect=OSError)


def rules_that_permit() -> WasmPDP:
    """The shipped rules, steered so that every effect is permitted: what they deny is not the effect."""
    effects = ("read", "fetch", "write", "send", "pay", "delete", "admin")
    classes = ("internal", "confidential", "secret", "*")
    permits = {"effects": effects, "unprofiled": ("*", "delete", "admin")}
    return WasmPDP(
        data={
            **{table: dict.fromkeys(names, "permit") for table, names in permits.items()},
            "data_flow": {name: {"external": "permit"} for name in classes},
        },
        pool_size=1,
    )


def human(text: str = "Pay the bill", **fields: Any) -> dict[str, Any]:
    """A root input."""
    return {"messages": [HumanMessage(text, **fields)]}


def drive_form(form: str, graph: Any, given: Any, config: dict[str, Any] | None = None) -> list[Any]:
    """Run a graph in one of `FORMS`; its final states (one, or one per batch element)."""
    if form == "invoke":
        return [graph.invoke(given, config)]
    if form == "stream":
        return [list(graph.stream(given, config, stream_mode="values"))[-1]]
    if form == "batch":
        return graph.batch([given, given], [config or {}, config or {}])
    return asyncio.run(_adrive(form, graph, given, config))


async def _adrive(form: str, graph: Any, given: Any, config: dict[str, Any] | None) -> list[Any]:
    if form == "ainvoke":
        return [await graph.ainvoke(given, config)]
    if form == "astream":
        return [[chunk async for chunk in graph.astream(given, config, stream_mode="values")][-1]]
    if form == "abatch":
        return await graph.abatch([given, given], [config or {}, config or {}])
    if form == "astream_events":
        events = [e async for e in graph.astream_events(given, config, version="v2")]
        return [events[-1]["data"]["output"]]
    raise ValueError(form)


def unanswered(messages: Sequence[Any]) -> list[str]:
    """Ids of the tool calls in a history that no ToolMessage after them answers."""
    left: list[str] = []
    for message in messages:
        if isinstance(message, AIMessage):
            left += [c["id"] for c in message.tool_calls]
        elif isinstance(message, ToolMessage) and message.tool_call_id in left:
            left.remove(message.tool_call_id)
    return left


def answer_to(messages: Sequence[Any], call_id: str) -> ToolMessage:
    found = [m for m in messages if isinstance(m, ToolMessage) and m.tool_call_id == call_id]
    assert len(found) == 1, f"{len(found)} answers to {call_id}"
    return found[0]


def assert_went_on(state: Any) -> None:
    """The run reached its end, and no call in its history is left without an answer."""
    messages = state["messages"]
    assert isinstance(messages[-1], AIMessage) and not messages[-1].tool_calls
    assert messages[-1].content == "done" and unanswered(messages) == []


def chain(nodes: dict[str, Any], state: Any = MessagesState, *, retry_policy: Any = None, **compiled: Any) -> Any:
    """Compile a graph whose nodes run one after the other."""
    builder = StateGraph(state)
    before = START
    for name, node in nodes.items():
        builder.add_node(name, node, retry_policy=retry_policy)
        builder.add_edge(before, name)
        before = name
    return builder.compile(**compiled)


def loop(agent: Any, tools: Any, route: Any = None, state: Any = MessagesState, *, retry_policy: Any = None, **compiled: Any) -> Any:
    """Compile a graph of an agent and its tools, by default for as long as the last message has calls."""
    builder = StateGraph(state)
    builder.add_node("agent", agent)
    builder.add_node("tools", tools, retry_policy=retry_policy)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", route or (lambda s: "tools" if getattr(s["messages"][-1], "tool_calls", None) else END), ["tools", END])
    builder.add_edge("tools", "agent")
    return builder.compile(**compiled)


def by_the_plan(state: Any) -> str:
    """Route to the tools while the newest plan has a call without an answer, as `create_agent` does."""
    plan = next((m for m in reversed(state["messages"]) if isinstance(m, AIMessage)), None)
    answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
    return "tools" if plan is not None and any(c["id"] not in answered for c in plan.tool_calls) else END


def node_graph(step: Callable[[Any], Any], *, name: str = "outer", checkpointer: Any = None, **options: Any) -> Any:
    return chain({"step": step}, checkpointer=checkpointer, name=name, **options)


ASK = {
    "decision": False,
    "context": {"reasons": [{"code": "effect"}], "obligations": [{"id": "approval", "type": "require_approval", "properties": {}}]},
}


def asking(*names: str) -> StaticPDP:
    """Asks about calls of these tools until they carry an approval; permits the rest."""

    def answer(request: EvaluationRequest) -> object:
        if request.action.name == "tools/call" and request.resource.id in names:
            return True if request.context.approval is not None else ASK
        return True

    return StaticPDP(answer)


def reasons(authz: RuntimeAuthz, tool_name: str, which: int = 0) -> list[str]:
    """First reasons of the recorded denials of a tool, in order. `which`: -1 for the last ones, that the policy gave."""
    return [
        r["reasons"][which]
        for r in authz.audit.records  # type: ignore[attr-defined]
        if r["kind"] == "decision" and r["resource"] == tool_name and r["outcome"] != "permit"
    ]


def writing_tool(ran: list[Any], name: str = "write") -> BaseTool:
    @tool(name)
    def write(text: str) -> str:
        """Write something."""
        ran.append((name, text))
        return f"wrote {text}"

    return write


def write_call(text: str, ident: str | None = None) -> dict[str, Any]:
    return call("write", {"text": text}, ident or f"call-{text}")


def in_run(act: Callable[[], Any], aact: Callable[[], Any] | None = None) -> Any:
    """A node function that does something and says that it is done."""

    def step(state: Any) -> dict[str, Any]:
        act()
        return {"messages": [AIMessage("done")]}

    async def astep(state: Any) -> dict[str, Any]:
        await aact() if aact is not None else act()
        return {"messages": [AIMessage("done")]}

    return RunnableCallable(step, astep, name="step")


BUILDERS: dict[str, Callable[..., Any]] = {"hand": hand_written, "agent": agent_graph}


def obedient() -> ScriptedChatModel:
    """Pays unless the last thing that it reads, from a human or in a tool's answer, is STOP."""

    def respond(messages: list[Any]) -> AIMessage:
        said = [m.text for m in messages if isinstance(m, HumanMessage)]
        if said and "STOP" in said[-1]:
            return says(text="done")
        last = messages[-1]
        if isinstance(last, ToolMessage) and (last.status == "success" or "STOP" in last.text):
            return says(text="done")
        number = sum(isinstance(m, AIMessage) for m in messages)
        return says(call("pay", {"to": "bob", "amount": 5}, f"call-{number}"))

    return ScriptedChatModel(script=[respond] * 100)


APPROVE = {"type": "approve"}
REJECT = {"type": "reject"}


def resume(*decisions: Any) -> Command[Any]:
    """Return the answer with one decision per question, in order."""
    return Command(resume={"decisions": list(decisions)})


def asking_about(texts: Sequence[str]) -> StaticPDP:
    """Ask about calls with one of these texts until they carry an approval; permit the rest."""

    def answer(request: EvaluationRequest) -> object:
        if request.action.name != "tools/call" or request.context.call.args["text"] not in texts:
            return True
        return True if request.context.approval is not None else ASK

    return StaticPDP(answer)


def calling(agent: Any, *config: Any, first: Callable[[], Any] = lambda: None) -> Any:
    """Return a node that does something first, and then calls an agent with its messages."""

    def step(state: Any) -> Any:
        first()
        return agent.invoke({"messages": state["messages"]}, *config)

    async def astep(state: Any) -> Any:
        first()
        return await agent.ainvoke({"messages": state["messages"]}, *config)

    return RunnableCallable(step, astep, name="step")


def around_models(name: str, change: Callable[[Any], Any] = lambda r: r, then: Callable[[Any], Any] = lambda _: None) -> Any:
    """Return middleware that changes each model request on its way, and its response on the way back."""
    from langchain.agents.middleware import AgentMiddleware

    def wrap_model_call(self: Any, request: Any, handler: Any) -> Any:
        then(response := handler(change(request)))
        return response

    async def awrap_model_call(self: Any, request: Any, handler: Any) -> Any:
        then(response := await handler(change(request)))
        return response

    return type(name, (AgentMiddleware,), {"wrap_model_call": wrap_model_call, "awrap_model_call": awrap_model_call})()


def wrapping(change: Callable[[Any], Any]) -> Any:
    """Return middleware that changes each tool call on its way."""
    from langchain.agents.middleware import AgentMiddleware

    class Changing(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(change(request))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(change(request))

    return Changing()
