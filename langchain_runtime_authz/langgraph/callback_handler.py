"""Record what runs outside the enforcement points, by a handler among the caller's callbacks."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackHandler

from langchain_runtime_authz.audit.record import observation_record
from langchain_runtime_authz.langgraph._private import starting_graph, starting_tool
from langchain_runtime_authz.langgraph.protect import owner_of
from langchain_runtime_authz.langgraph.run_context import running
from langchain_runtime_authz.langgraph.tool_node import AuthzParts
from langchain_runtime_authz.langgraph.tool_profiles import is_guarded
from langchain_runtime_authz.telemetry.spans import record_observation

What = Literal["tool", "model", "graph", "chain"]


class AuthzCallbackHandler(BaseCallbackHandler):
    """Records what runs outside the enforcement points. It does not enforce, and nothing fails because of it.

    Give it to code that is not protected yet: `graph.invoke(value, {"callbacks": [handler]})`.
    It writes an audit record of the kind `observation`, and an event on the current span, for each of these:

    - a tool that starts outside every run and is not guarded;
    - a model that is called outside every protected node;
    - a graph that nobody protected;
    - a chain outside every graph and every protected node.

    It records names only: no arguments, inputs or outputs. It does not hear of code without the caller's
    callbacks: `callbacks=[]`, another thread, a function called as a function.

    Args:
        authz: the `RuntimeAuthz` into whose audit sink it writes. LangChain logs a record
            that cannot be written, and it is lost.
    """

    run_inline = True  # the caller's own thread and context say where it runs
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self, authz: AuthzParts) -> None:
        self._engine = authz.root_entry.engine

    def on_tool_start(self, serialized: dict[str, Any] | None, input_str: str, **kwargs: Any) -> None:
        """Record an unguarded tool that starts."""
        if running() is not None:
            return  # guarded, or decided by the callback backstop
        started = starting_tool()
        if started is None:
            self._observe("tool", _name(serialized, kwargs))
        elif not is_guarded(started.tool):
            self._observe("tool", started.tool.name)

    def on_chat_model_start(self, serialized: dict[str, Any] | None, messages: Any, **kwargs: Any) -> None:
        """Record the call of a chat model."""
        if running() is None:
            self._observe("model", _name(serialized, kwargs))

    def on_llm_start(self, serialized: dict[str, Any] | None, prompts: Any, **kwargs: Any) -> None:
        """Record the call of a text model."""
        if running() is None:
            self._observe("model", _name(serialized, kwargs))

    def on_chain_start(self, serialized: dict[str, Any] | None, inputs: Any, **kwargs: Any) -> None:
        """Record a graph or chain that starts."""
        graph = starting_graph()
        if graph is not None:
            if owner_of(graph) is None:
                self._observe("graph", graph.get_name())
        elif kwargs.get("run_type") == "llm":  # a decision model
            if running() is None:
                self._observe("model", _name(serialized, kwargs))
        elif running() is None and "langgraph_node" not in (kwargs.get("metadata") or {}):
            self._observe("chain", _name(serialized, kwargs))

    def _observe(self, what: What, name: str) -> None:
        record_observation(what, name)
        self._engine.write(partial(observation_record, now=time.time(), what=what, name=name))


def _name(serialized: dict[str, Any] | None, kwargs: dict[str, Any]) -> str:
    given = kwargs.get("name") or (serialized or {}).get("name")
    return str(given) if given else "unnamed"
