"""Take over the questions of other reviews: `HumanInTheLoopMiddleware`, and nodes that ask like it.

Such a review asks about all calls of a message in a node of its own, before the tool node (`batched`), or about
one call as it is made (`per_call`). Its question is noted with the source `hitl`, bound to the arguments in
the message. The root entry answers it like our own, and the policy says if that suffices (`approvals` in
data.json). So nobody is asked twice, an edit is decided as edited, and a rejected call stays rejected.

If a review stands between the tool node and the tool, the node asks nothing and leaves the call to the guard.
LangGraph gives a task's answers in the order of its questions, and the review's question comes first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Final

from langchain_core.messages import AIMessage
from langgraph.errors import GraphInterrupt, is_invalid_resume

from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.langgraph._private import interrupt_id, task_id
from langchain_runtime_authz.langgraph.arguments import unknown
from langchain_runtime_authz.langgraph.messages import ai_messages
from langchain_runtime_authz.ledger.base import Query, Snapshot
from langchain_runtime_authz.ledger.calls import AskApproval
from langchain_runtime_authz.pep.approvals import DECISIONS, is_ours, reviews
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.decide import review_key
from langchain_runtime_authz.pep.engine import Commit, Flow, Load, Run

__all__ = ["newest_plan", "note_failed", "note_question", "note_review", "reviewed_tools"]

_log = logging.getLogger(__name__)
_MAX_WRAPPERS: Final = 1000  # functions looked at in one chain of wrappers


def note_review(run: Run, given: object, paused: GraphInterrupt, config: Mapping[str, Any]) -> Flow[None]:
    """Note what a node that pauses asks about the calls of its newest message, if it does."""
    own = interrupt_id(config)
    asked = [i for i in (paused.args[0] if paused.args else ()) if i.id == own]
    if len(asked) == 1:
        yield from note_question(run, newest_plan(given), asked[0])


def note_question(run: Run, message: AIMessage | None, asked: Any, task: str = "") -> Flow[None]:
    """Note what an `Interrupt` asks about the calls of a message, if it does.

    If the note cannot be written, the tool node asks by itself.
    """
    if message is None or not message.id or is_ours(asked.value):
        return
    calls = _asked_about(asked.value, message)
    takes = _allowed(asked)
    if not calls or len(takes) != len(calls):
        return
    try:
        snapshot: Snapshot = yield Load(run.scope, Query(plan=(run.agent, message.id)))
        record = snapshot.plan
        if record is None or record.epoch != run.epoch:
            return
        origin = record.origin or record.epoch
        noted = [(review_key(run, c, origin), raw_digest(c.raw), c, t) for c, t in zip(calls, takes, strict=True)]
        yield Commit(run.scope, run.guard, reviews(run, noted, asked.id, task))
    except Exception as exc:  # noqa: BLE001  (it only spares a question)
        _log.error("a review was not noted: %s", type(exc).__name__)


def note_failed(run: Run, call: Call, exc: Exception, config: Mapping[str, Any], *, heard: bool) -> Flow[None]:
    """Note what a review asks as it pauses, around a call that is left to the review and the guard.

    An answer that the review does not take (arguments that the tool's schema refuses) was none: it may be given anew.
    `heard` is whether the question reaches an approver: not if another call of the task has asked before it.
    """
    if is_invalid_resume(exc):
        yield from _reopened(run, call)
    asked = list(exc.args[0]) if isinstance(exc, GraphInterrupt) and exc.args else []
    if not heard or call.plan_id is None or call.position is None or len(asked) != 1:
        return
    # The message as this call stands in it: the others are not asked about.
    calls: list[Any] = [{"name": "", "args": {}, "id": None} for _ in range(call.position)]
    calls.append({"name": call.tool, "args": call.raw, "id": call.call_id})
    message = AIMessage("", id=call.plan_id, tool_calls=calls)
    yield from note_question(run, message, asked[0], task_id(config))


def _reopened(run: Run, call: Call) -> Flow[None]:
    """Return the review's question about a call as if it had not been answered."""
    if call.plan_id is None:
        return
    try:
        snapshot: Snapshot = yield Load(run.scope, Query(plan=(run.agent, call.plan_id)))
        record = snapshot.plan
        if record is None:
            return
        key = review_key(run, call, record.origin or record.epoch)
        snapshot = yield Load(run.scope, Query(calls=(key,)))
        asked = snapshot.approvals.get(key)
        if asked is not None and asked.state != "spent":  # else the review took it, and it is the tool that did not
            fresh = replace(asked, epoch=run.epoch, state="asked", approver="", approvers=(), message="", edited="")
            yield Commit(run.scope, run.guard, [AskApproval(fresh)])
    except Exception as exc:  # noqa: BLE001  (as in `note_question`)
        _log.error("a review was not noted: %s", type(exc).__name__)


def newest_plan(given: object) -> AIMessage | None:
    """Return the newest message with calls in a node's input."""
    return max(ai_messages(given), key=lambda m: _place(given, m), default=None)


def reviewed_tools(*wrappers: object) -> frozenset[str]:
    """Return the tools whose calls a review among a tool node's wrappers asks about, one by one."""
    found: frozenset[str] = frozenset()
    for wrapper in wrappers:
        for method in _methods(wrapper):
            review = method.__self__
            asks = getattr(review, "interrupt_on", None)
            if getattr(review, "interrupt_mode", None) == "per_call" and isinstance(asks, Mapping):
                found |= frozenset(map(str, asks))
    return found


def _methods(wrapper: object) -> Iterator[MethodType]:
    """Yield the methods that LangChain composed into a wrapper: closures of closures, traced or not."""
    todo, seen = [wrapper], set[int]()
    while todo and len(seen) < _MAX_WRAPPERS:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, MethodType):
            yield value
        elif isinstance(value, FunctionType):
            todo.append(getattr(value, "__wrapped__", None))
            for cell in value.__closure__ or ():
                try:
                    todo.append(cell.cell_contents)
                except ValueError:  # not assigned yet
                    continue


def _allowed(asked: Any) -> list[tuple[str, ...]]:
    """Return the decisions that the review takes, for each call that it asks about."""
    value = asked.value
    if not isinstance(value, Mapping):
        return []
    if "review_configs" not in value:
        return [_decisions(getattr(asked, "response_schema", None))]
    configs = value["review_configs"]
    if not isinstance(configs, list):
        return []
    return [tuple(c.get("allowed_decisions", ())) for c in configs if isinstance(c, Mapping)]


def _decisions(schema: object) -> tuple[str, ...]:
    """Return the `type`s that the schema of an answer takes: a decision, or one of several."""
    if not isinstance(schema, Mapping):
        return DECISIONS
    named = schema.get("$defs", {})
    members = [named.get(str(m.get("$ref", "")).rpartition("/")[2], m) for m in schema.get("oneOf", [schema])]
    kinds = [m.get("properties", {}).get("type", {}).get("const") for m in members]
    return tuple(k for k in kinds if k in DECISIONS)


def _place(given: object, message: AIMessage) -> int:
    messages = given.get("messages") if isinstance(given, Mapping) else getattr(given, "messages", given)
    if not isinstance(messages, list):
        return 0
    return next((i for i, m in enumerate(messages) if m is message), -1)


def _asked_about(value: object, message: AIMessage) -> list[Call]:
    """Return the message's calls that a review names, in its order; none if it names anything else.

    `value` is a `HITLRequest` or a `ToolApprovalRequest`.
    """
    if not isinstance(value, Mapping):
        return []
    one = value.get("type") == "tool_approval" and "action_requests" not in value
    requests = [value] if one else value.get("action_requests")
    if not isinstance(requests, list) or not requests:
        return []
    found: list[Call] = []
    free: list[tuple[int, Any]] = list(enumerate(message.tool_calls))
    for request in requests:
        if not isinstance(request, Mapping):
            return []
        place = _named(request, free, by_id=one)
        if place is None:
            return []
        position, call = free[place]
        del free[: place + 1]
        found.append(unknown(call["name"], call["id"], message.id, position, call["args"]))
    return found


def _named(request: Mapping[str, Any], calls: Sequence[tuple[int, Any]], *, by_id: bool) -> int | None:
    name, args, ident = request.get("name"), request.get("args"), request.get("tool_call_id")
    same = (n for n, (_, c) in enumerate(calls) if c["name"] == name and c["args"] == args)
    return next((n for n in same if not by_id or calls[n][1]["id"] == ident), None)
