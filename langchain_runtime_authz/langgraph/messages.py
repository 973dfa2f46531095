"""Read the messages in states, inputs and updates, and record the plans in them.

A plan is an AI message with tool calls. It is recorded when its node returns, before any code can act on it. AI
messages from a node's input, a client, a hand-back or a tool node are never plans.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.messages.chat import ChatMessage
from langchain_core.messages.utils import convert_to_messages
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Overwrite, Send

from langchain_runtime_authz.facts.plan import PlanRecord, calls_digest, plan_calls
from langchain_runtime_authz.facts.task import HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.base import Committed
from langchain_runtime_authz.ledger.changes import RecordPlan
from langchain_runtime_authz.pep.decision_log import run_event, tool_label
from langchain_runtime_authz.pep.run import Commit, Flow, Run

_OVERWRITE = "__overwrite__"
_PAIR = 2  # (name, value); ("user", "text")


def update_in(given: object) -> object:
    """Return the state update in a root input. A `Command`'s pairs become a mapping."""
    update = given.update if isinstance(given, Command) else given
    pairs = update if isinstance(update, list | tuple) and isinstance(given, Command) else ()
    if not pairs or not all(isinstance(p, tuple) and len(p) == _PAIR and isinstance(p[0], str) for p in pairs):
        return update
    found: dict[str, Any] = {}
    for name, value in pairs:  # one channel may be written twice
        if name in found:
            (replaces, before), (again, value) = unwrap_overwrite(found[name]), unwrap_overwrite(value)  # noqa: PLW2901
            value = [*_listed(before), *_listed(value)]  # noqa: PLW2901
            value = Overwrite(value) if replaces or again else value  # noqa: PLW2901
        found[name] = value
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def unwrap_overwrite(value: Any) -> tuple[bool, Any]:
    """Return True if a written value bypasses the reducer, and the unwrapped value."""
    if isinstance(value, Overwrite):
        return True, value.value
    if isinstance(value, dict) and len(value) == 1 and _OVERWRITE in value:
        return True, value[_OVERWRITE]
    if isinstance(value, dict) and value.get("type") == _OVERWRITE and "value" in value:
        return True, value["value"]
    return False, value


def channel_value(state: object, name: str) -> Any:
    """Return a channel's value in a state, which is a mapping or an object."""
    return state.get(name) if isinstance(state, (dict, Mapping)) else getattr(state, name, None)


def messages_in(value: Any) -> list[Any]:
    """Return the list of messages in a state or an input."""
    _, found = unwrap_overwrite(
        value.get("messages") if type(value) is dict else channel_value(update_in(value), "messages")
    )
    pair = isinstance(found, tuple) and len(found) == _PAIR and all(isinstance(part, str) for part in found)
    if isinstance(found, list | tuple) and not pair:
        return list(found)
    return [] if found is None else [found]


def removed_by(entry: object) -> str | None:
    """Return the id of the message that an entry removes, or None."""
    if isinstance(entry, Mapping):
        ident = entry.get("id") if "remove" in (entry.get("role"), entry.get("type")) else None
        return ident if isinstance(ident, str) else None
    return entry.id if isinstance(entry, RemoveMessage) else None


def with_messages(update: Mapping[str, Any] | None, first: Sequence[BaseMessage]) -> dict[str, Any]:
    """Put `first` before an update's messages, but after a message that removes all."""
    own = messages_in(update)
    at = max((i + 1 for i, m in enumerate(own) if removed_by(m) == REMOVE_ALL_MESSAGES), default=0)
    merged = [*own[:at], *first, *own[at:]]
    replaces, _ = unwrap_overwrite((update or {}).get("messages"))
    return {**(update or {}), "messages": Overwrite(merged) if replaces else merged}


USER = ("user", "human")
_NOTIFICATION = "deepagents_notification"  # deepagents' mark on messages of an async sub-agent to its parent's thread
_MAX_PLANNED = 32  # number of a plan's calls that its audit record names
_HAND_BACK = "__is_handoff_back"  # langgraph-supervisor's mark on synthetic return messages


def as_message(entry: object) -> BaseMessage | None:
    """Convert one entry as LangChain does; None if it is not a message."""
    if isinstance(entry, BaseMessage):
        return entry
    try:
        return convert_to_messages([entry])[0]  # type: ignore[list-item]
    except Exception:  # noqa: BLE001  (LangChain raises many kinds of errors, and will raise this one in the graph)
        return None


def is_human(message: object) -> bool:
    """Return True for a user-role message that is not marked as machine-made."""
    if isinstance(message, BaseMessage) and _NOTIFICATION in message.additional_kwargs:
        return False
    return isinstance(message, HumanMessage) or (isinstance(message, ChatMessage) and message.role in USER)


def human_texts(value: object) -> list[HumanText]:
    """Return the user messages of a root input. It may have any form of LangChain's."""
    if isinstance(value, list | tuple) and any(isinstance(entry, Command) for entry in value):
        return [text for entry in value for text in human_texts(update_in(entry))]
    entries: Sequence[object] = value if isinstance(value, list) else messages_in(value)
    texts: list[HumanText] = []
    names: list[str | None] = []
    removed: list[HumanText] = []  # what the input takes out of the state, as acts without words
    answered = 0  # number of texts before the newest message of a model or a tool
    for entry in entries:
        message = as_message(entry)
        if (text := _human_text(entry, message)) is not None:
            texts.append(text)
            names.append(getattr(message, "name", None))
        elif isinstance(message, RemoveMessage):
            if message.id != REMOVE_ALL_MESSAGES:
                removed.append(HumanText(content_digest(message.id), "", f"removed:{message.id}", own=False))
        elif message is not None and not isinstance(message, HumanMessage | SystemMessage):
            answered = len(texts)
    several = len({*names[answered:]}) > 1  # several people wrote, and none may order for the others
    texts = [replace(text, mixed=True) for text in texts] if several else texts
    texts = [replace(text, past=True) for text in texts[:answered]] + texts[answered:] if answered else texts
    return [*removed, *texts] if removed else texts


def _human_text(entry: object, message: BaseMessage | None) -> HumanText | None:
    key: object = None
    if message is not None and is_human(message):
        content, key = message.content, message.id
    elif message is not None:
        return None
    elif isinstance(entry, Mapping) and (entry.get("role") or entry.get("type")) in USER:
        content, key = entry.get("content", ""), entry.get("id")
    else:
        return None
    blocks = content if isinstance(content, list) else ()
    texts = [b for b in blocks if isinstance(b, str) or (isinstance(b, Mapping) and "text" in b)] if blocks else ()
    key = key if isinstance(key, str) else None
    return HumanText(content_digest(content), content_text(content), key, mixed=len(texts) > 1)


def ai_messages(value: object, depth: int = 5) -> list[AIMessage]:
    """Return AI messages with tool calls, in any form of a node's input or output."""
    found: list[AIMessage] = []
    levels = [iter((value,))]
    while levels:
        for one in levels[-1]:
            within: Any = ()
            if isinstance(one, BaseMessage):
                if isinstance(one, AIMessage) and one.tool_calls:
                    found.append(one)
            elif one is None or isinstance(one, str | bytes):
                continue
            elif isinstance(one, list | tuple):
                within = one
            elif isinstance(one, Command):
                within = (one.update, one.goto)
            elif isinstance(one, (dict, Mapping)):
                within = one.values()
            elif isinstance(one, Overwrite | Send) or hasattr(one, "messages"):
                within = [getattr(one, n) for n in ("value", "arg", "messages") if hasattr(one, n)]
            if within and len(levels) <= depth:
                levels.append(iter(within))
                break
        else:
            levels.pop()
    return found


def _lists(value: object) -> Iterator[tuple[str, Sequence[Any]]]:
    fields = value if isinstance(value, (dict, Mapping)) else getattr(value, "__dict__", None) or {"": value}
    for name, held in fields.items():
        yield str(name), held if isinstance(held, list | tuple) else (held,)


def newest_messages(value: object) -> list[tuple[str, AIMessage]]:
    """Return each field of an input with its newest AI message that has calls."""
    found = ((n, [m for m in held if isinstance(m, AIMessage) and m.tool_calls][-1:]) for n, held in _lists(value))
    return [(name, message) for name, newest in found for message in newest]


def newest_plan(given: object) -> AIMessage | None:
    """Return the newest AI message with calls in a node's input, or None."""
    return next((message for _, message in newest_messages(given)), None)


def sent_calls(value: object, depth: int = 2) -> Iterator[Mapping[str, Any]]:
    """Yield tool calls in an input, such as a `Send` passes to a node."""
    if isinstance(value, (dict, Mapping)):
        ident, name, args = value.get("id"), value.get("name"), value.get("args")
        if isinstance(ident, str) and isinstance(name, str) and isinstance(args, dict):
            yield value
        elif depth:
            for held in value.values():
                yield from sent_calls(held, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for held in value:
            yield from sent_calls(held, depth - 1)


def answered_calls(value: object) -> set[str]:
    """Return the ids of answered calls. If a later message reuses an id, it is open."""
    found = set[str]()
    for _, held in _lists(value):
        answered = set[str]()
        for message in held:
            if isinstance(message, ToolMessage):
                answered.add(message.tool_call_id)
            elif isinstance(message, AIMessage):
                answered.difference_update([c["id"] or "" for c in message.tool_calls])
        found |= answered
    return found


def has_unanswered_calls(messages: Sequence[Any]) -> bool:
    """Return True if the newest AI message has calls that no tool message answers."""
    newest, answered = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None), answered_calls(messages)
    return newest is not None and any(c["id"] not in answered for c in newest.tool_calls)


def planned_message(state: Any, key: str, call: Mapping[str, Any] | None) -> tuple[str | None, Sequence[Any], int]:
    """Return the id and calls of the message that plans `call`, and `call`'s index.

    The message is the newest AI message in `state` that contains `call`. Without one, return None, () and 0. `key`: the
    messages' channel.
    """
    messages = (
        state if isinstance(state, list) else state.get(key) if type(state) is dict else channel_value(state, key)
    )
    for message in reversed(messages) if call and isinstance(messages, list | tuple) else ():
        ident, calls = (message.id, message.tool_calls) if isinstance(message, AIMessage) else (None, ())
        position = 0 if calls and calls[0] is call else place_of(call, dict(enumerate(calls)))
        if position is not None:
            return ident, calls, position
    return None, (), 0


def place_of(call: Any, planned: Mapping[int, Any]) -> int | None:
    """Return a call's index among planned calls: by identity, else content, else id."""
    alike = [p for p, c in planned.items() if c is call] or [p for p, c in planned.items() if c == call]
    alike = alike or [p for p, c in planned.items() if c.get("id") == call.get("id")]
    return alike[0] if alike else None


def foreign_plans(run: Run, value: object) -> None:
    """Note the calls in a client's AI messages, so that they never count as plans."""
    found = ai_messages(value)
    for entry in messages_in(value):
        if isinstance(entry, (dict, Mapping)) and isinstance(message := as_message(entry), AIMessage):
            found.append(message)
    for message in found:
        if message.tool_calls:
            run.models.foreign.add(calls_digest(plan_calls(message.tool_calls)))


def record_plans(run: Run, given: object, returned: object) -> Flow[None]:
    """Record the plans in a node's output. `given`: the node's input."""
    if plans := plans_of(run, given, returned):
        yield from record_or_halt(run, plans)


def plans_of(run: Run, given: object, returned: object) -> list[RecordPlan]:
    """Return the changes that record the plans in a node's output."""
    plans: list[RecordPlan] = []
    for message in ai_messages(returned):
        if (plan := _plan(run, given, message)) is not None:
            plans.append(RecordPlan(plan))
    return plans


def record_or_halt(run: Run, plans: Sequence[RecordPlan]) -> Flow[None]:
    """Record plans. Raises `AuthzHalt` on failure, so that the output has no effect."""
    try:
        done = yield (Commit, run.scope, None, plans)
        for record in plans:
            plan = record.plan
            if isinstance(done, Committed) and plan.id not in run.local.plans:
                run.local.plans[plan.id] = plan.calls
                tools = []
                for call in plan.calls[:_MAX_PLANNED]:
                    tools.append(tool_label(call.tool))
                detail = {"plan": plan.id, "source": plan.source, "model": plan.model, "tools": tools}
                yield run_event(run, "planned", done.now, detail=detail)
    except Exception as exc:
        decision = run.pep.deny_for_failure(exc, run)
        raise AuthzHalt(decision.reason, decision.decision_id) from exc


def _plan(run: Run, given: object, message: AIMessage) -> PlanRecord | None:
    if message.response_metadata.get(_HAND_BACK) or message.additional_kwargs.get(_HAND_BACK):
        return None
    calls = plan_calls(message.tool_calls)
    seen = calls_digest(calls)
    by = run.models.returned.get(seen)
    ident = message.id
    if by is None and (
        seen in run.models.foreign or any(m is message or (ident and m.id == ident) for m in ai_messages(given))
    ):
        return None
    if ident is None:
        ident = message.id = str(uuid.uuid4())
    if by is not None and run.local.plans.get(ident, calls) != calls:  # the model rewrote its message
        ident = f"{ident} {seen}"
    model, prompt = by if by is not None else (None, None)
    source: Literal["code", "model"] = "code" if by is None else "model"
    return PlanRecord(ident, run.agent, run.epoch, source, calls, model=model, prompt=prompt)
