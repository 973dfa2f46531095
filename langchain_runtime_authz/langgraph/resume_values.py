"""Distinguish this entry's answer from one that LangGraph stored before.

LangGraph stores a plain resume value with the thread, and offers it again at each later entry until the step ends. A
protected root entry keys answers by interrupt id instead. In an unprotected graph, a handler among the callbacks
remembers the value with which the graph was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config

from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.answer_numbers import OURS
from langchain_runtime_authz.langgraph.checkpoints import find_checkpoint
from langchain_runtime_authz.langgraph.graph_input import mark_answer
from langchain_runtime_authz.langgraph.review_questions import note_question
from langchain_runtime_authz.langgraph.tool_call_parsing import newest_plan
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.pep.approval_questions import TAKES_ANY, asks_shown
from langchain_runtime_authz.pep.corrections import commit_answers
from langchain_runtime_authz.pep.run import Flow, Load, Run

MAX_STEPS: Final = 10  # number of checkpoints in which the resumed one is searched


class ResumeHandler(BaseCallbackHandler):
    """Remembers the resume value, thread and checkpoint of a graph's call."""

    raise_error = True
    ignore_llm = ignore_agent = ignore_retriever = True
    ignore_chat_model = ignore_retry = ignore_custom_event = True

    def __init__(self, value: object, thread: str | None, checkpoint: str | None) -> None:
        self.value, self.thread, self.checkpoint = value, thread, checkpoint
        self.waits: dict[UUID, Callable[[object], None]] = {}  # callback run id → function that gets the run's output

    @property
    def ignore_chain(self) -> bool:
        return not self.waits

    run_inline = ignore_chain

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if (then := self.waits.pop(run_id, None)) is not None:
            then(outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.waits.pop(run_id, None)


def resume_handler() -> BaseCallbackHandler | None:
    """Return a handler if the starting graph is resumed or has our middleware."""
    found = private.started_graph()
    if found is None:
        return None
    graph, value, thread, checkpoint = found
    if value is None:
        # Leave out protected nodes, whose enforcement points see the outputs.
        bound = (node.bound for node in graph.nodes.values() if not hasattr(type(node.bound), "__runtime_authz_node__"))
        hooks = (vars(runnable).get("func") for runnable in bound)
        if not any(hasattr(getattr(hook, "__self__", None), "__runtime_authz_middleware__") for hook in hooks):
            return None
    return ResumeHandler(value, thread, checkpoint)


def resume_handlers(config: Mapping[str, Any]) -> Iterator[ResumeHandler]:
    """Yield the handlers that `resume_handler` added to the graphs around a task."""
    for each in (config, var_child_runnable_config.get() or {}):
        callbacks: Any = each.get("callbacks")
        yield from (h for h in getattr(callbacks, "handlers", callbacks) or () if type(h) is ResumeHandler)


def drop_old_answer(config: Mapping[str, Any]) -> None:
    """Drop a plain answer that LangGraph stored in an earlier entry of an outer graph."""
    pad = private.scratchpad_of(config)
    given = pad.get_null_resume(False) if pad is not None else None
    if given is not None and not any(h.value is given for h in resume_handlers(config)):
        private.drop_plain_answer(config)


def record_answer(run: Run, config: Mapping[str, Any], namespace: str) -> Flow[dict[str, object] | None]:
    """Record the graph's resume value, as a protected root entry does.

    Return interrupt id → answer for the questions that were shown; answers to approval questions are marked. Return
    None if the value is plain and is not for one shown question.
    """
    # A graph that a tool calls on its own thread inherits the handler, but was not resumed with this value.
    thread = private.thread_of(config)
    mine = [h for h in resume_handlers(config) if h.thread == thread] or [
        ResumeHandler(private.answer_given(config), thread, None)
    ]
    heard = next((h for h in mine if h.value is not None), mine[0])
    value: Any = heard.value
    if value is None:
        run.keyed_thread = thread
        return None
    questions = yield from _shown(run, config, namespace, heard.checkpoint)
    snapshot = yield Load(run.scope, Query(asks=True))
    asks = asks_shown(snapshot.asks, questions)
    ids = {a.interrupt_id for a in asks}
    by_id = private.is_resume_map(value)
    given: dict[str, object] = {i: v for i, v in value.items() if i in questions} if by_id else {}
    given = dict.fromkeys(ids, value) if not by_id and len(ids) == 1 else given
    if ids & given.keys():
        yield from commit_answers(run, [a for a in asks if a.interrupt_id in given], given, questions)
    if given or by_id or (not ids and any(a.allowed != TAKES_ANY for a in snapshot.asks)):
        run.keyed_thread = thread  # a plain answer does not count for a question that nobody was shown
    return {i: mark_answer(v, questions[i], i, snapshot.asks) for i, v in given.items()} if given or by_id else None


def keyed_answers(config: Mapping[str, Any], answers: Mapping[str, object]) -> None:
    """Give a running task only these answers, by the numbers of their questions."""
    pad = private.scratchpad_of(config)
    if private.unused_answer(config) is not None:
        mine = private.interrupt_id(config) in answers
        if mine or any(isinstance(a, Mapping) and OURS in a for a in answers.values()):
            private.drop_plain_answer(config)  # the ledger has an answer to an approval question
        pad.resume.extend([None] * mine)
    for number in range(len(pad.resume)):
        pad.resume[number] = answers.get(private.interrupt_id(config, number), pad.resume[number])
    if private.answered_by_first_id(config):  # LangGraph would use that answer for the last question
        pad.resume.pop()


def _shown(run: Run, config: Mapping[str, Any], namespace: str, checkpoint: str | None) -> Flow[dict[str, object]]:
    """Return interrupt id → value of a pause's questions; record those of reviews."""
    saver = private.checkpointer_of(config)
    thread = private.thread_of(config)
    if saver is None or thread is None:
        return {}
    place = {"thread_id": thread, "checkpoint_ns": namespace}
    if checkpoint is not None and not namespace:
        place["checkpoint_id"] = checkpoint
    # The checkpoint with the pause was stored before the resume. Later ones may not be stored yet.
    asks = lambda found: any(write[1] == private.keys.INTERRUPT for write in found.pending_writes or ())  # noqa: E731
    found = yield find_checkpoint(saver, {"configurable": place}, asks, limit=MAX_STEPS)
    if found is None:
        return {}
    messages = [newest_plan(found.checkpoint["channel_values"])]
    asked = [(q, w[0]) for w in found.pending_writes if w[1] == private.keys.INTERRUPT for q in w[2]]
    for question, task in asked:
        yield from note_question(run, messages, question, task)
    return {question.id: question.value for question, _ in asked}
