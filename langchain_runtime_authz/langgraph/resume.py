"""What a root entry's input becomes: answers go into the ledger, waiting corrections into the input."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.types import Command

from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.facts.task import ANSWER, HumanText
from langchain_runtime_authz.langgraph._private import is_resume_map
from langchain_runtime_authz.langgraph.messages import human_texts, messages_in, unanswered, with_messages
from langchain_runtime_authz.pep.approvals import is_ours, remaining
from langchain_runtime_authz.pep.corrections import answer, reply
from langchain_runtime_authz.pep.engine import Flow, new_id
from langchain_runtime_authz.pep.entry import Entry

__all__ = ["delivered", "resumed", "settled_beside", "unheard"]


def resumed(entry: Entry, given: Command[Any], state: Any, *, below: bool, human: bool) -> Flow[Command[Any]]:
    """Put the answers of a resume value into the ledger, before any task starts.

    Only those to questions that are open in the graph. A plain value is given its question's id:
    LangGraph would hand it to whichever task asks first. Not where the graph is resumed at a checkpoint
    `below` it, a child's: the child goes on from a copy, in which the question has another id. `human`: not a protected
    graph's own code gives the answers, beside every run.

    Raises:
        AuthzDenied: `approval_partial`, `approval_settled`, `approval_approver`: nothing of the value was taken, and
            what was open stays open; or as `correction.answer`.
    """
    value = given.resume
    questions = {i.id: i.value for i in state.interrupts}
    if is_resume_map(value):
        answered = {i: v for i, v in value.items() if i in questions}
    elif len(questions) == 1:
        answered = dict.fromkeys(questions, value)
    else:
        return given  # which LangGraph refuses, or which resumes nothing
    asks = [a for a in entry.asks if a.interrupt_id in answered]
    open_ids = {a.id for a in asks}
    try:
        left = {i: remaining(v, questions[i], open_ids) for i, v in answered.items()}
    except ValueError:
        raise AuthzDenied(Code.APPROVAL_SETTLED, new_id()) from None
    if asks and not human:
        raise AuthzDenied(Code.APPROVAL_APPROVER, new_id())
    if asks:
        yield from answer(entry.run, asks, left)
    reviewed = {a.interrupt_id for a in asks}
    own = {i: v for i, v in answered.items() if i not in reviewed}
    corrected = yield from reply(entry.run, questions, own, human=human)
    return replace(given, resume=answered) if (asks or corrected) and not below else given


def settled_beside(entry: Entry, state: Any) -> Any:
    """The input of a re-invocation that goes on where every question of ours was answered beside the graph.

    LangGraph would raise the same interrupts again; what is answered, void or too late is not asked
    again. The value says nothing: the gate reads the ledger.
    """
    waiting = {a.interrupt_id for a in entry.asks if not 0 < a.expires_at <= entry.now}
    ours = [i.id for i in state.interrupts if is_ours(i.value) and i.id not in waiting]
    return Command(resume={i: {"decisions": []} for i in ours}) if ours else None


def delivered(entry: Entry, input: Any, state: Any, asked: Collection[str] = ()) -> Any:
    """The input with the corrections that the graph has not seen yet. `asked`: ids of its open interrupts.

    Before what a new input says itself; as an update of a resumed state. Where calls of that state
    are still unanswered a human message may not come between: then the answers to those calls,
    which the correction made stale, carry the text.
    """
    before = messages_in(state)
    heard = {t.digest for t in human_texts([*before, *messages_in(input)])}
    # The reason of a rejection beside the graph is told with the answer to the rejected call.
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    texts = [t for t in entry.pending if t.text and t.digest not in heard and not (t.key or "").startswith(told)]
    if not texts:
        return input
    # An id of its own from the first: a pending write gets another one each time that a state is read.
    messages = [HumanMessage(content=t.text, id=t.key or f"said:{t.digest}") for t in texts]
    if isinstance(input, dict):
        return with_messages(input, messages)
    update = input.update if isinstance(input, Command) else None
    if not before or unanswered(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = with_messages(update, messages)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def unheard(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Without what a client sends back as it stands in the state: a machine may have written it there."""
    standing = {(t.key, t.digest) for t in human_texts(messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]
