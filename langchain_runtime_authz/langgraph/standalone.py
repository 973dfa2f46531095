"""A graph that is not protected: what it was resumed with, what had been asked in it, and what its model's node returned.

`AuthzMiddleware` without `protect` has no root entry, which would put a resume value into the ledger
before any task starts. Its own gates may come only after a node of somebody else's took the answer
(LangChain's review, in a node of its own), and a plain value is then gone: LangGraph gives it out once.
So the ambient hook, which LangChain looks at when a graph starts, puts the value among the graph's
callbacks, in a handler that hears nothing: there every gate below finds what its own invocation was resumed with, and
no other's. The questions stand in the checkpoint that the invocation goes on from.

The same handler hears how the model's node ends: what is planned is what that returns. Middleware in front may
rewrite what the model's call returned, and a review may pause before the next node of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from langchain_runtime_authz.langgraph._private import (
    INTERRUPTS,
    agent_ns,
    answer_given,
    checkpointer_of,
    started_graph,
)
from langchain_runtime_authz.langgraph.hitl import newest_plan, note_question
from langchain_runtime_authz.langgraph.messages import ai_messages, record_plans
from langchain_runtime_authz.langgraph.node_pep import is_gated
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.pep.corrections import answer
from langchain_runtime_authz.pep.engine import Effect, Engine, Flow, Load, Run, drive

__all__ = ["answered", "hear", "plan_later"]

MAX_STEPS: Final = 10  # checkpoints since the one that was gone on from, when the first gate looks for it


class _Heard(BaseCallbackHandler):
    """What an invocation of a thread was resumed with, if it was, and the checkpoint that it named, if it did.

    Chains are heard only while one is waited for, and then not inline: in an async run what waits asks a ledger.
    """

    raise_error = True
    ignore_llm = ignore_agent = ignore_retriever = True
    ignore_chat_model = ignore_retry = ignore_custom_event = True

    def __init__(self, value: object, thread: str | None, checkpoint: str | None) -> None:
        self.value, self.thread, self.checkpoint = value, thread, checkpoint
        self.waits: dict[UUID, Callable[[object], None]] = {}

    @property
    def ignore_chain(self) -> bool:
        return not self.waits

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        return not self.waits

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if (then := self.waits.pop(run_id, None)) is not None:
            then(outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.waits.pop(run_id, None)


def hear() -> BaseCallbackHandler | None:
    """Called as callbacks are set up: where that is for a graph that is resumed or holds our middleware, a handler for it."""
    found = started_graph()
    if found is None:
        return None
    graph, value, thread, checkpoint = found
    return _Heard(value, thread, checkpoint) if value is not None or _holds_ours(graph) else None


def _holds_ours(graph: Any) -> bool:
    # In a protected graph its own gates hear what a node returns.
    hooks = (getattr(node.bound, "func", None) for node in graph.nodes.values() if not is_gated(node.bound))
    return any(hasattr(getattr(hook, "__self__", None), "__runtime_authz_middleware__") for hook in hooks)


def plan_later(run: Run, config: Mapping[str, Any], given: object, messages: Sequence[Any]) -> bool:
    """Record the plan of the node around a model's call as the node ends, and say whether its end is heard.

    `config` is the node's, `given` its input, `messages` what the call returned: they stand where the end shows no plan.
    """
    callbacks = config.get("callbacks")
    node = getattr(callbacks, "parent_run_id", None)
    heard = next((h for h in getattr(callbacks, "handlers", ()) if type(h) is _Heard), None)
    if heard is None or node is None:
        return False

    def record(returned: object) -> None:
        drive(run.engine, record_plans(run, given, returned if any(ai_messages(returned)) else messages))

    heard.waits[node] = record
    return True


def answered(run: Run, config: Mapping[str, Any]) -> Flow[None]:
    """Put what the graph was resumed with into the ledger, as a protected root entry does before its tasks."""
    callbacks = config.get("callbacks")
    handlers: Iterable[Any] = getattr(callbacks, "handlers", callbacks) or ()
    # A graph that a tool calls on a thread of its own inherits the handler, and was not resumed with that.
    thread = (config.get("configurable") or {}).get("thread_id")
    resumed = (h for h in handlers if type(h) is _Heard and h.value is not None and h.thread == thread)
    heard = next(resumed, None)
    value = heard.value if heard is not None else answer_given(config)
    if value is None:
        return
    yield from _noted(run, config, heard.checkpoint if heard is not None else None)
    snapshot = yield Load(run.scope, Query(asks=True))
    ids = {a.interrupt_id for a in snapshot.asks}
    named = ids & value.keys() if isinstance(value, Mapping) else set()
    if named or len(ids) == 1:
        yield from answer(run, [a for a in snapshot.asks if not named or a.interrupt_id in named], value)


def _noted(run: Run, config: Mapping[str, Any], checkpoint: str | None) -> Flow[None]:
    """Note what reviews asked: they paused where no gate of ours is around them."""
    saver = checkpointer_of(config)
    thread = (config.get("configurable") or {}).get("thread_id")
    if saver is None or thread is None:
        return
    place = {"thread_id": thread, "checkpoint_ns": agent_ns(config)}
    if checkpoint is not None and not place["checkpoint_ns"]:
        place["checkpoint_id"] = checkpoint
    found = yield ReadPaused(saver, {"configurable": place})
    if found is None:
        return
    message = newest_plan(found.checkpoint["channel_values"])
    for task, channel, asked in found.pending_writes:
        if channel == INTERRUPTS:
            for question in asked:
                yield from note_question(run, message, question, task)


def _read_paused(_: Engine, saver: Any, place: Mapping[str, Any]) -> Any:
    return next((t for t in saver.list(place, limit=MAX_STEPS) if _paused(t)), None)


async def _aread_paused(_: Engine, saver: Any, place: Mapping[str, Any]) -> Any:
    async for found in saver.alist(place, limit=MAX_STEPS):
        if _paused(found):
            return found
    return None


# saver, place → the checkpoint at which a thread paused last, or `None`. Later steps are younger and perhaps not
# written yet; the pause was written before the thread was resumed.
ReadPaused: Final = Effect(_read_paused, _aread_paused)


def _paused(found: Any) -> bool:
    return any(channel == INTERRUPTS for _, channel, _ in found.pending_writes or ())
