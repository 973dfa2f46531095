"""Recording plans: when a node returns, and what a model was seen to return inside it.

A plan is recorded before anything can act on it, never at the gate. Messages that were in the
node's input, that the client sent, hand-backs, and what tool nodes return are never plans: a *tool*
that returns an AI message with calls announces nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.facts.plan import PlanRecord, calls_digest, plan_calls, plan_todos
from langchain_runtime_authz.langgraph.halt import AuthzHalt
from langchain_runtime_authz.langgraph.messages import ai_messages, as_message, messages_in
from langchain_runtime_authz.ledger.base import Conflict
from langchain_runtime_authz.ledger.changes import RecordPlan
from langchain_runtime_authz.pep.engine import Commit, Flow, Run

__all__ = ["foreign_plans", "note_model_call", "note_model_output", "record_plans"]

_HAND_BACK = "__is_handoff_back"  # langgraph-supervisor's mark on synthetic return messages
_KEEP = 256  # model outputs remembered per root entry


def note_model_call(run: Run, ident: object, model: str, prompt: str | None) -> None:
    """Remember which model was asked, and under which instructions, until it answers."""
    with run.lock:
        run.asked_model[ident] = (model, prompt)
        while len(run.asked_model) > _KEEP:
            run.asked_model.pop(next(iter(run.asked_model)))


def note_model_output(run: Run, message: AIMessage, ident: object) -> None:
    """Remember that a model returned these calls, so that their plan's source is `model`."""
    with run.lock:
        asked = run.asked_model.get(ident, (None, None))
        if message.tool_calls:
            run.seen_from_model[calls_digest(plan_calls(message.tool_calls))] = asked
        while len(run.seen_from_model) > _KEEP:
            run.seen_from_model.pop(next(iter(run.seen_from_model)))


def foreign_plans(run: Run, value: object) -> None:
    """Remember the calls in AI messages that a client sent: they are never a plan."""
    sent = [m for entry in messages_in(value) if isinstance(m := as_message(entry), AIMessage) and m.tool_calls]
    for message in (*ai_messages(value), *sent):
        run.foreign.add(calls_digest(plan_calls(message.tool_calls)))


def record_plans(run: Run, given: object, returned: object) -> Flow[None]:
    """Record the plans that a node's output announces.

    Raises:
        AuthzHalt: a plan could not be recorded; nothing of the output may then take effect.
    """
    try:
        changes = [RecordPlan(plan) for m in ai_messages(returned) if (plan := _plan(run, given, m)) is not None]
        done = (yield Commit(run.scope, None, changes)) if changes else None
    except Exception as exc:
        code = run.engine.failed(exc)
        raise AuthzHalt(code, deny(code).decision_id) from exc
    if isinstance(done, Conflict):
        raise AuthzHalt(done.code, deny(done.code).decision_id)


def _plan(run: Run, given: object, message: AIMessage) -> PlanRecord | None:
    if message.response_metadata.get(_HAND_BACK) or message.additional_kwargs.get(_HAND_BACK):
        return None
    calls = plan_calls(message.tool_calls)
    seen = calls_digest(calls)
    by = run.seen_from_model.get(seen)
    if by is None and (seen in run.foreign or _was_given(given, message)):
        return None
    if message.id is None:
        message.id = str(uuid.uuid4())
    return PlanRecord(
        id=message.id,
        agent=run.agent,
        epoch=run.epoch,
        source="code" if by is None else "model",
        calls=calls,
        model=by[0] if by is not None else None,
        prompt=by[1] if by is not None else None,
        todos=plan_todos(given),
    )


def _was_given(given: object, message: AIMessage) -> bool:
    same: Sequence[Any] = [m for m in ai_messages(given) if m is message or (m.id is not None and m.id == message.id)]
    return bool(same)
