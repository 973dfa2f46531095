"""Tools of an MCP server in a process of its own, through `langchain-mcp-adapters`."""

import shutil
import sys
import tempfile

from .._kit import *
from . import Bank, Kit, Play, Route
from .parts import ARGS, PAY, in_node

# It speaks the protocol without the SDK, whose import is most of what a play takes.
SERVER = """
import json, sys

arguments = {"recipient": {"type": "string"}, "amount": {"type": "number"}}
schema = {"type": "object", "properties": arguments, "required": [*arguments]}
for line in sys.stdin:
    asked = json.loads(line)
    given = asked.get("params") or {}
    if asked["method"] == "initialize":
        said = {"protocolVersion": given["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "bank", "version": "1"}}
    elif asked["method"] == "tools/list":
        said = {"tools": [{"name": "pay", "description": sys.argv[2], "inputSchema": schema}]}
    elif asked["method"] == "tools/call":
        with open(sys.argv[1], "a") as ran:
            ran.write(f"{float(given['arguments']['amount'])}\\n")
        said = {"content": [{"type": "text", "text": "paid"}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
"""


def connection(ran: Path, description: str = "Pay somebody.") -> dict[str, Any]:
    """How to start a server that writes what it paid into a file."""
    return {"transport": "stdio", "command": sys.executable, "args": ["-c", SERVER, str(ran), description]}


def paying(kit: Kit, bank: Bank, build: Any) -> Play:
    """A graph of a server's `pay`, as the kit hands it out."""
    from langchain_mcp_adapters.client import MultiServerMCPClient

    ran = Path(tempfile.mkdtemp()) / "ran"
    client = MultiServerMCPClient({"bank": connection(ran)})  # type: ignore[dict-item]
    (pay,) = asyncio.run(client.get_tools())
    graph = build(kit, kit.tool(pay))

    async def asynchronous() -> Any:
        try:
            return await graph.ainvoke({"messages": [("user", "Pay the bill")]})
        finally:
            bank.ran += [("pay", float(line)) for line in ran.read_text().split()] if ran.exists() else []
            shutil.rmtree(ran.parent)

    return Play(lambda: asyncio.run(asynchronous()), asynchronous, graph)


def _in_node(kit: Kit, pay: BaseTool) -> Any:
    return in_node(kit, lambda _: None, lambda _: pay.ainvoke(ARGS)).graph


MCP = ("langchain_mcp_adapters",)

ROUTES = [
    Route(
        "mcp", "a tool of an MCP server, in a ToolNode",
        lambda k, b: paying(k, b, lambda kit, pay: kit.graph(hand_written(replying([PAY]), kit.tool_node([pay])))),
        closed_by=("entry", "guard", "tool_node"), modes=("async",), needs=MCP,
    ),
    Route(
        "mcp_agent", "a tool of an MCP server, in create_agent",
        lambda k, b: paying(k, b, lambda kit, pay: kit.graph(agent_graph(replying([PAY]), [pay], middleware=kit.middleware()))),
        closed_by=("entry", "guard", "middleware"), modes=("async",), needs=MCP,
    ),
    Route("mcp_in_node", "a tool of an MCP server, called by a node function", lambda k, b: paying(k, b, _in_node), closed_by=("entry", "guard"), modes=("async",), needs=MCP),
]
