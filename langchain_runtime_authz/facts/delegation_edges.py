"""Delegation edges: the passing of authority between agents, by our own record.

A caller can forge the names that the framework reports (`lc_agent_name`, namespaces). So the agent path here grows
only when one of our enforcement points opens a child agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_runtime_authz.evaluation import Edge, EdgeKind

HANDOFF_KEY = "__handoff_destination"  # set by langgraph-supervisor and langgraph-swarm on handoff tools


def edge(parent: Sequence[str], child: str, kind: EdgeKind) -> Edge:
    return Edge.model_validate({"from": parent[-1] if parent else "", "to": child, "kind": kind})


def handoff_edge(agent: Sequence[str], metadata: Mapping[str, Any] | None) -> Edge | None:
    """Return the edge that a handoff tool's metadata names; `None` for other tools."""
    destination = (metadata or {}).get(HANDOFF_KEY)
    return edge(agent, destination, "handoff") if isinstance(destination, str) else None


def kind_of_child(tool: str | None, args: Mapping[str, Any] | None, *, sent: bool = False) -> EdgeKind:
    """Return the kind of the edge to a child graph. `tool`: the tool that calls it."""
    if tool is None:
        return "send" if sent else "subgraph"
    return "task" if tool == "task" and "subagent_type" in (args or {}) else "agent_as_tool"


def to_context(depth: int, edges: Sequence[Edge]) -> dict[str, Any]:
    told = [{"from": e.from_, "to": e.to, "kind": e.kind} for e in edges]
    return {"depth": depth, "edges": told}
