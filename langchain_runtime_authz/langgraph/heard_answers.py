"""Tell an answer of this entry from one that LangGraph stored in an earlier entry.

LangGraph stores a plain resume value with the thread, and offers it again at each later entry until the step ends. A
protected root entry keys answers by interrupt id instead. Below an unprotected graph, a handler among the graph's
callbacks holds the value with which the graph was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config

from langchain_runtime_authz.langgraph import private_api as private


class Heard(BaseCallbackHandler):
    """Holds a call's resume value, thread and checkpoint, and records waiting plans."""

    raise_error = True
    ignore_llm = ignore_agent = ignore_retriever = True
    ignore_chat_model = ignore_retry = ignore_custom_event = True

    def __init__(self, value: object, thread: str | None, checkpoint: str | None) -> None:
        self.value, self.thread, self.checkpoint = value, thread, checkpoint
        self.waits: dict[UUID, Callable[[object], None]] = {}

    @property
    def ignore_chain(self) -> bool:
        return not self.waits

    run_inline = ignore_chain

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if (then := self.waits.pop(run_id, None)) is not None:
            then(outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.waits.pop(run_id, None)


def hear() -> BaseCallbackHandler | None:
    """Return a handler for a starting graph that is resumed or holds our middleware."""
    found = private.started_graph()
    if found is None:
        return None
    graph, value, thread, checkpoint = found
    if value is None:
        # In a protected graph, its enforcement points see what a node returns.
        bound = (node.bound for node in graph.nodes.values() if not hasattr(type(node.bound), "__runtime_authz_node__"))
        hooks = (vars(runnable).get("func") for runnable in bound)
        if not any(hasattr(getattr(hook, "__self__", None), "__runtime_authz_middleware__") for hook in hooks):
            return None
    return Heard(value, thread, checkpoint)


def heard_in(config: Mapping[str, Any]) -> Iterator[Heard]:
    """Yield the handlers that `hear` added to the graphs around a task."""
    for each in (config, var_child_runnable_config.get() or {}):
        callbacks: Any = each.get("callbacks")
        yield from (h for h in getattr(callbacks, "handlers", callbacks) or () if type(h) is Heard)


def drop_old_answer(config: Mapping[str, Any]) -> None:
    """Drop a plain answer that LangGraph stored in an earlier entry of a graph above."""
    pad = private.scratchpad_of(config)
    given = pad.get_null_resume(False) if pad is not None else None
    if given is not None and not any(h.value is given for h in heard_in(config)):
        private.drop_plain_answer(config)
