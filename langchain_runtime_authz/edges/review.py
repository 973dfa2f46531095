"""A review beside our own gates: LangChain's `HumanInTheLoopMiddleware`, and nodes that ask like it.

Such a node asks a human about the calls of a message before a tool node is reached. What it asks is
noted as a question of source `hitl`, bound to the arguments as the message has them; the root entry
answers it like our own, and the policy says whether that suffices (`approvals` in data.json). So
nobody is asked twice, an edit is decided as what it became, and a rejected call stays rejected on
whatever road it reaches a tool node later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.edges._private import interrupt_id
from langchain_runtime_authz.edges.calls import unknown
from langchain_runtime_authz.edges.messages import ai_messages
from langchain_runtime_authz.enforce.approval import reviews
from langchain_runtime_authz.enforce.call import Call
from langchain_runtime_authz.enforce.engine import Commit, Flow, Load, Run
from langchain_runtime_authz.enforce.judge import review_key
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.ledger.base import Query, Snapshot

__all__ = ["note_review"]

_log = logging.getLogger(__name__)


def note_review(run: Run, given: object, paused: GraphInterrupt, config: Mapping[str, Any]) -> Flow[None]:
    """Note what a node that pauses asks about the calls of its newest message, if it does.

    A note that can not be written is none: then the tool node's gate asks by itself.
    """
    own = interrupt_id(config)
    asked = [i.value for i in (paused.args[0] if paused.args else ()) if i.id == own]
    message = max(ai_messages(given), key=lambda m: _place(given, m), default=None)
    if len(asked) != 1 or message is None or message.id is None or message.id == "":
        return
    calls = _asked_about(asked[0], message)
    takes = _allowed(asked[0])
    if not calls or len(takes) != len(calls):
        return
    try:
        snapshot: Snapshot = yield Load(run.scope, Query(plan=(run.agent, message.id)))
        record = snapshot.plan
        if record is None or record.epoch != run.epoch:
            return
        origin = record.origin or record.epoch
        noted = [(review_key(run, c, origin), raw_digest(c.raw), c, t) for c, t in zip(calls, takes, strict=True)]
        yield Commit(run.scope, run.guard, reviews(run, noted, own))
    except Exception as exc:  # noqa: BLE001  (it only spares a question)
        _log.error("a review was not noted: %s", type(exc).__name__)


def _allowed(value: Mapping[str, Any]) -> list[tuple[str, ...]]:
    configs = value.get("review_configs")
    if not isinstance(configs, list):
        return []
    return [tuple(c.get("allowed_decisions", ())) for c in configs if isinstance(c, Mapping)]


def _place(given: object, message: AIMessage) -> int:
    messages = given.get("messages") if isinstance(given, Mapping) else getattr(given, "messages", given)
    if not isinstance(messages, list):
        return 0
    return next((i for i, m in enumerate(messages) if m is message), -1)


def _asked_about(value: object, message: AIMessage) -> list[Call]:
    """The message's calls that a `HITLRequest` names, in its order; none unless it names nothing else."""
    requests = value.get("action_requests") if isinstance(value, Mapping) else None
    if not isinstance(requests, list) or not requests:
        return []
    found: list[Call] = []
    free = list(enumerate(message.tool_calls))
    for request in requests:
        if not isinstance(request, Mapping):
            return []
        name, args = request.get("name"), request.get("args")
        place = next((n for n, (_, c) in enumerate(free) if c["name"] == name and c["args"] == args), None)
        if place is None:
            return []
        position, call = free[place]
        del free[: place + 1]
        found.append(unknown(call["name"], call["id"], message.id, position, call["args"]))
    return found
