"""Graphs that other libraries build: they make tool nodes and agents of their own."""

from .._kit import *
from ..corrections import _react
from . import Bank, Kit, Play, Route, graph_play
from .parts import PAY


def scripted(*turns: Any) -> ScriptedChatModel:
    """A model that says these in order, whoever asks, and then that it is done."""
    said = [t if isinstance(t, str) else [t] for t in turns]
    messages = [AIMessage(t) if isinstance(t, str) else AIMessage("", tool_calls=t) for t in said]
    return ScriptedChatModel(script=[*messages, *[AIMessage("done") for _ in range(20)]])


HANDOFF = call("transfer_to_payer", {}, "call-handoff")


def _supervisor(kit: Kit, bank: Bank) -> Play:
    from langgraph_supervisor import create_supervisor

    payer = _react(scripted(PAY), kit.tools(bank.tool()), "payer")
    return graph_play(kit.graph(create_supervisor([payer], model=scripted(HANDOFF)).compile()))


def _supervisor_tool_node(kit: Kit, bank: Bank) -> Play:
    """The supervisor is given a tool node, and makes a stock one of it."""
    from langgraph_supervisor import create_supervisor

    payer = _react(scripted(), kit.tools(bank.read()), "payer")
    tools = kit.tool_node(kit.tools(bank.tool()))
    return graph_play(kit.graph(create_supervisor([payer], model=scripted(PAY), tools=tools).compile()))


def _swarm(kit: Kit, bank: Bank) -> Play:
    from langgraph_swarm import create_handoff_tool, create_swarm

    front = _react(scripted(HANDOFF), [create_handoff_tool(agent_name="payer")], "front")
    payer = _react(scripted(PAY), kit.tools(bank.tool()), "payer")
    return graph_play(kit.graph(create_swarm([front, payer], default_active_agent="front").compile()))


def _deep(kit: Kit, model: Any, tools: list[BaseTool], **options: Any) -> Play:
    from deepagents import create_deep_agent

    with quiet():
        return graph_play(kit.graph(create_deep_agent(model=model, tools=tools, **options)))


def task(kind: str) -> Any:
    """A call of deepagents' `task` tool."""
    return call("task", {"description": "pay bob", "subagent_type": kind}, "call-task")


def _deepagents(kit: Kit, bank: Bank) -> Play:
    return _deep(kit, scripted(PAY), kit.tools(bank.tool()), middleware=kit.middleware())


def _deepagents_subagent(kit: Kit, bank: Bank) -> Play:
    payer = {"name": "payer", "description": "pays", "system_prompt": "x", "tools": kit.tools(bank.tool())}
    return _deep(kit, scripted(task("payer"), PAY), kit.tools(bank.read()), subagents=[payer])


def _deepagents_compiled(kit: Kit, bank: Bank) -> Play:
    """A sub-agent that was compiled before, by other hands."""
    made = {"name": "payer", "description": "pays", "runnable": _react(scripted(PAY), kit.tools(bank.tool()), "payer")}
    return _deep(kit, scripted(task("payer")), [], subagents=[made])


def _deepagents_general(kit: Kit, bank: Bank) -> Play:
    """The sub-agent that deepagents adds by itself, with the tools but without the middleware."""
    model = scripted(task("general-purpose"), PAY)
    return _deep(kit, model, kit.tools(bank.tool()), middleware=kit.middleware())


def _evaluated(code: str, *then: Any) -> Callable[[Kit, Bank], Play]:
    """Programmatic tool calling: the model writes code, and the code calls tools."""

    def build(kit: Kit, bank: Bank) -> Play:
        from langchain_quickjs import CodeInterpreterMiddleware

        interpreter = CodeInterpreterMiddleware(ptc=["pay", bank.tool("evil")], mode="call", timeout=60)
        model = scripted(call("eval", {"code": code}, "call-eval"), *then)
        return _deep(kit, model, kit.tools(bank.tool()), middleware=kit.middleware(interpreter))

    return build


def _js(name: str) -> str:
    return f"await tools.{name}({{recipient: 'bob', amount: 5}})"


DEEP = ("deepagents",)
JS = ("deepagents", "langchain_quickjs")
BOTH = ("entry", "guard")

ROUTES = [
    Route("supervisor", "a supervisor's agent", _supervisor, closed_by=BOTH, needs=("langgraph_supervisor",)),
    Route("supervisor_tool_node", "a supervisor that makes a stock tool node of ours", _supervisor_tool_node, closed_by=(*BOTH, "tool_node"), needs=("langgraph_supervisor",)),
    Route("swarm", "an agent of a swarm", _swarm, closed_by=BOTH, needs=("langgraph_swarm",)),
    Route("deepagents", "a deep agent's own tool", _deepagents, closed_by=(*BOTH, "middleware"), needs=DEEP),
    Route("deepagents_subagent", "a deep agent's sub-agent", _deepagents_subagent, closed_by=BOTH, needs=DEEP),
    Route("deepagents_compiled", "a compiled sub-agent of a deep agent", _deepagents_compiled, closed_by=BOTH, needs=DEEP),
    Route("deepagents_general", "the general-purpose sub-agent that deepagents adds by itself", _deepagents_general, closed_by=BOTH, needs=DEEP),
    Route("interpreter", "a tool called by code that the model wrote", _evaluated(_js("pay")), closed_by=BOTH, needs=JS),
    Route("interpreter_own_tool", "a tool that only the code interpreter has", _evaluated(_js("evil")), harm=(("evil", 5.0),), denied="evil", needs=JS),
    Route(
        "interpreter_subagent", "a sub-agent started by code that the model wrote",
        _evaluated("await task({description: 'pay bob', subagentType: 'general-purpose'})", PAY), closed_by=BOTH, needs=JS,
    ),
]
