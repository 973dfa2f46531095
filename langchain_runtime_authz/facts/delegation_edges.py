"""Delegation edges: which agent passed authority to which, by our own record.

A caller can forge the names that the framework reports (`lc_agent_name`, checkpoint namespaces). So only our
enforcement points lengthen an agent path, each time that they open a child agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_runtime_authz.evaluation import Edge, EdgeKind

HANDOFF_KEY = "__handoff_destination"  # set by langgraph-supervisor and langgraph-swarm on handoff tools


def make_edge(parent: Sequence[str], child: str, kind: EdgeKind) -> Edge:
    """Return the edge from the last agent of a path to `child`."""
    return Edge.model_validate({"from": parent[-1] if parent else "", "to": child, "kind": kind})


def handoff_edge(agent: Sequence[str], metadata: Mapping[str, Any] | None) -> Edge | None:
    """Return the edge that a handoff tool's metadata names; `None` for other tools."""
    destination = (metadata or {}).get(HANDOFF_KEY)
    return make_edge(agent, destination, "handoff") if isinstance(destination, str) else None


def kind_of_child(tool: str | None, args: Mapping[str, Any] | None, *, sent: bool = False) -> EdgeKind:
    """Return the kind of the edge to a child graph.

    `tool`, `args`: the tool call that starts the child, if any. `sent`: LangGraph's `Send` started the child's node.
    """
    if tool is None:
        return "send" if sent else "subgraph"
    return "task" if tool == "task" and "subagent_type" in (args or {}) else "agent_as_tool"


def edge_context(depth: int, edges: Sequence[Edge]) -> dict[str, Any]:
    """Return the member `delegation` of a request's context."""
    told = [{"from": e.from_, "to": e.to, "kind": e.kind} for e in edges]
    return {"depth": depth, "edges": told}
