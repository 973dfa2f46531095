"""`AuthzCallbackHandler`: record what runs outside every enforcement point."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackHandler

from langchain_runtime_authz.audit.record import observation_record
from langchain_runtime_authz.langgraph.private_api import starting_graph, starting_tool
from langchain_runtime_authz.langgraph.protect import owner_of
from langchain_runtime_authz.langgraph.run_context import current_run
from langchain_runtime_authz.langgraph.tool_lookup import is_guarded
from langchain_runtime_authz.langgraph.tool_node import AuthzParts
from langchain_runtime_authz.telemetry.spans import record_observation

What = Literal["tool", "model", "graph", "chain"]


class AuthzCallbackHandler(BaseCallbackHandler):
    """Records tools, models and graphs that run outside enforcement points.

    It never enforces, and it never fails a graph. Pass it to code that is not protected yet: `graph.invoke(value,
    {"callbacks": [handler]})`. It writes an audit record `observation`, and an event on the current span, for each of
    these: an unprotected graph, an unguarded tool outside every run, a model outside every protected node, and a chain
    outside every graph and protected node.

    It records names only, no arguments, inputs or outputs. It does not see code that gets no callbacks of the caller:
    `callbacks=[]`, another thread, a plain function call.

    Args:
        authz: the `RuntimeAuthz` to whose audit sink it writes. If a record cannot be written, LangChain logs that.
    """

    run_inline = True  # so that the handler sees the caller's context, which holds the current run
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self, authz: AuthzParts) -> None:
        self._engine = authz.root_entry.engine

    def on_tool_start(self, serialized: dict[str, Any] | None, input_str: str, **kwargs: Any) -> None:
        if current_run() is not None:
            return  # guarded, or decided by the callback backstop
        if (started := starting_tool()) is None or not is_guarded(started[0]):
            self._observe("tool", _name(serialized, kwargs) if started is None else started[0].name)

    def on_chat_model_start(self, serialized: dict[str, Any] | None, messages: Any, **kwargs: Any) -> None:
        if current_run() is None:
            self._observe("model", _name(serialized, kwargs))

    on_llm_start = on_chat_model_start  # type: ignore[assignment]  # prompts in the place of messages

    def on_chain_start(self, serialized: dict[str, Any] | None, inputs: Any, **kwargs: Any) -> None:
        graph = starting_graph()
        if graph is not None:
            if owner_of(graph) is None:
                self._observe("graph", graph.get_name())
        elif kwargs.get("run_type") == "llm":  # a decision model
            if current_run() is None:
                self._observe("model", _name(serialized, kwargs))
        elif current_run() is None and "langgraph_node" not in (kwargs.get("metadata") or {}):
            self._observe("chain", _name(serialized, kwargs))

    def _observe(self, what: What, name: str) -> None:
        record_observation(what, name)
        self._engine.write(partial(observation_record, now=time.time(), what=what, name=name))


def _name(serialized: dict[str, Any] | None, kwargs: dict[str, Any]) -> str:
    given = kwargs.get("name") or (serialized or {}).get("name")
    return str(given) if given else "unnamed"
