"""Find the tools that run at the model provider, in what a model is bound to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final

from langchain_core.tools import BaseTool

from langchain_runtime_authz.langgraph.coverage.report import Row

# Descriptions of tools that run here, in the forms that LangChain's model integrations accept.
_RUN_HERE: Final = frozenset(("function", "custom"))
_DESCRIBES_A_FUNCTION: Final = frozenset(
    ("input_schema", "inputSchema", "function_declarations", "toolSpec", "parameters", "properties")
)
# Types of content blocks, messages and JSON schemas, which stand in lists of their own.
_BLOCKS = (
    "ai any array assistant audio auto boolean ephemeral file human image image_url integer json_object json_schema null "
    "number object reasoning string system text thinking tool_call tool_result tool_use user"
)
_NO_TOOL: Final = frozenset(_BLOCKS.split())
_GOOGLE: Final = frozenset(("google_search", "google_search_retrieval", "code_execution", "url_context", "google_maps"))


def tools_in(bound: Any) -> list[Any]:
    """Return the tools among the arguments that a model is bound to, with the servers that its provider calls."""
    if not isinstance(bound, dict):  # other mappings may refuse a string
        return []
    tools, servers = bound.get("tools"), bound.get("mcp_servers")
    listed = list(tools) if isinstance(tools, list | tuple) else []
    addressed = isinstance(servers, list) and any(isinstance(s, Mapping) and "url" in s for s in servers)
    return [*listed, {"type": "mcp_servers"}] if addressed else listed


def provider_rows(tools: Iterable[Any], label: str, route: str, *, strict: bool) -> Iterator[Row]:
    """Yield the tools that run at the model provider. `strict` for a list that may be anything."""
    tools = list(tools)
    if strict and not all(isinstance(t, BaseTool | FunctionType) or _is_tool(t) for t in tools):
        return
    for tool in tools:
        if (name := _provider_tool(tool)) is not None:
            yield Row("provider tool", name, label, (), "runs at the model provider, unseen", route)


def _is_tool(tool: Any) -> bool:
    if _provider_tool(tool) is not None:
        return True
    if not isinstance(tool, dict):  # other mappings may refuse a string
        return False
    kind = tool.get("type")  # of some other mapping it may be anything
    return (isinstance(kind, str) and kind in _RUN_HERE) or not _DESCRIBES_A_FUNCTION.isdisjoint(tool)


def _provider_tool(tool: Any) -> str | None:
    """Return the name of a tool that the provider runs; `None` for anything else."""
    if not isinstance(tool, Mapping) or not tool or not all(isinstance(k, str) for k in tool):
        return None
    kind = tool.get("type")
    if isinstance(kind, str):
        return None if kind in _RUN_HERE | _NO_TOOL or not _DESCRIBES_A_FUNCTION.isdisjoint(tool) else kind
    # Google names the tool by its only key.
    (key, *more) = tool
    return key if not more and key in _GOOGLE else None
