"""A graph that is not protected: what it was resumed with, and what had been asked in it.

`AuthzMiddleware` without `protect` has no root entry, which would put a resume value into the ledger
before any task starts. Its own gates may come only after a node of somebody else's took the answer
(LangChain's review, in a node of its own), and a plain value is then gone: LangGraph gives it out once.
So the ambient hook, which LangChain looks at when a graph starts, puts the value among the graph's
callbacks, in a handler that hears nothing: there every gate below finds what its own invocation was resumed with, and
no other's. The questions stand in the checkpoint that the invocation goes on from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler

from langchain_runtime_authz.edges._private import (
    INTERRUPTS,
    agent_ns,
    answer_given,
    checkpointer_of,
    resumed_graph,
)
from langchain_runtime_authz.edges.review import newest_plan, note_question
from langchain_runtime_authz.enforce.correction import answer
from langchain_runtime_authz.enforce.engine import Engine, Flow, Load, Run
from langchain_runtime_authz.ledger.base import Query

__all__ = ["answered", "hear"]

MAX_STEPS: Final = 10  # checkpoints since the one that was gone on from, when the first gate looks for it


class _Heard(BaseCallbackHandler):
    """What an invocation of a thread was resumed with, and the checkpoint that it named, if it did."""

    ignore_llm = ignore_chain = ignore_agent = ignore_retriever = True
    ignore_chat_model = ignore_retry = ignore_custom_event = True

    def __init__(self, value: object, thread: str | None, checkpoint: str | None) -> None:
        self.value, self.thread, self.checkpoint = value, thread, checkpoint


def hear() -> BaseCallbackHandler | None:
    """Called as callbacks are set up: where that is for a graph that is resumed, the handler that knows with what."""
    found = resumed_graph()
    return _Heard(*found) if found is not None else None


def answered(run: Run, config: Mapping[str, Any]) -> Flow[None]:
    """Put what the graph was resumed with into the ledger, as a protected root entry does before its tasks."""
    callbacks = config.get("callbacks")
    handlers: Iterable[Any] = getattr(callbacks, "handlers", callbacks) or ()
    # A graph that a tool calls on a thread of its own inherits the handler, and was not resumed with that.
    thread = (config.get("configurable") or {}).get("thread_id")
    heard = next((h for h in handlers if type(h) is _Heard and h.thread == thread), None)
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
    found = yield _ReadPaused(saver, {"configurable": place})
    if found is None:
        return
    message = newest_plan(found.checkpoint["channel_values"])
    for task, channel, asked in found.pending_writes:
        if channel == INTERRUPTS:
            for question in asked:
                yield from note_question(run, message, question, task)


@dataclass(frozen=True, slots=True)
class _ReadPaused:
    """An effect: the checkpoint at which a thread paused last, as `CheckpointTuple`, or `None`.

    The steps since are younger, and perhaps not written yet; the pause was written before the thread was resumed.
    """

    saver: Any
    place: Mapping[str, Any]

    def run(self, engine: Engine) -> Any:
        """Read it, blocking."""
        return next((t for t in self.saver.list(self.place, limit=MAX_STEPS) if _paused(t)), None)

    async def arun(self, engine: Engine) -> Any:
        """Read it."""
        async for found in self.saver.alist(self.place, limit=MAX_STEPS):
            if _paused(found):
                return found
        return None


def _paused(found: Any) -> bool:
    return any(channel == INTERRUPTS for _, channel, _ in found.pending_writes or ())
