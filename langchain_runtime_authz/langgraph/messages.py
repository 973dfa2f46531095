"""Read LangChain messages, record plans, and answer calls that do not run.

An answer holds a neutral sentence and the decision's id. A plan is recorded when its node returns, before any code can
act on it. AI messages from a node's input, a client, a hand-back or a tool node are never plans.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import orjson
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.messages.chat import ChatMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.tools import BaseTool
from langgraph.types import Command, Overwrite, Send

from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.plan import PlanRecord, calls_digest, plan_calls
from langchain_runtime_authz.facts.task import HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.state_updates import channel_value, messages_in, update_in
from langchain_runtime_authz.ledger.base import Committed
from langchain_runtime_authz.ledger.changes import RecordPlan
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.decision_log import run_event, tool_label
from langchain_runtime_authz.pep.run import Commit, Flow, Run

_LATER = "This action could not be checked, so it was not carried out. It may be possible later."
_SPOKEN: Mapping[str, str] = {
    **{code: _LATER for code in Code if code.retry == "later"},
    Code.STALE_EPOCH: "The task changed after this action was planned, so it was not carried out. Plan again.",
    Code.DATA_CHANGED: "What this action is based on changed after it was read. Read it again, then plan again.",
    Code.PLAN_CHANGED: "This action differs from the one that was planned, so it was not carried out. Plan again.",
    Code.OUTCOME_UNKNOWN: "This action was started before and its outcome is unknown. Do not repeat it.",
    Code.CALL_IN_PROGRESS: "This action is already under way. Do not repeat it.",
    Code.NOT_REACHED: "This action was not carried out, because one before it was not. Plan it again if it is needed.",
    Code.APPROVAL_EXPIRED: "The user's approval came too late, so this action was not carried out. Plan again.",
    Code.APPROVAL_REJECTED: "The user rejected this action. Do not repeat it unless the user asks for it.",
}
USER = ("user", "human")
_NOTIFICATION = "deepagents_notification"  # deepagents' mark on messages of an async sub-agent to its parent's thread
_TOLD = "__tool_message__"
_PAIR = 2  # (content, artifact)
MAX_KEPT = 64 * 1024  # characters of a stored result
_MAX_PLANNED = 32  # number of a plan's calls that its audit record names
_TEXT_BLOCK = frozenset({"type", "text", "id", "annotations", "index"})
_HAND_BACK = "__is_handoff_back"  # langgraph-supervisor's mark on synthetic return messages
_DENIED = "This action is not permitted. Do not repeat it."


def denial_message(denial: Denial, call_id: str | None) -> ToolMessage:
    """Return the tool message for a call that does not run."""
    said, status, reason = denial.message, "success", denial.decision.reason
    if reason != Code.APPROVAL_ANSWERED:
        told = f" The user said: {said}" if said else ""
        said, status = f"{_SPOKEN.get(reason, _DENIED)}{told} (decision {denial.decision.decision_id})", "error"
    return ToolMessage(said, name=denial.call.tool, tool_call_id=call_id or "", status=status)


def denial_of(call: Call, exc: AuthzDenied) -> Denial:
    """Return the denial of a call that `exc` stopped."""
    return Denial(call, replace(deny(exc.code), decision_id=exc.decision_id))


def edit_note(call: Call) -> str:
    """Return a note for the model, which says that the user replaced its call."""
    return (
        "Note: the user replaced this action before it was carried out, on purpose. Carried out instead: "
        f"{call.tool} with {json.dumps(call.raw, ensure_ascii=False)}. Do not repeat your own."
    )


def with_note(output: Any, note: str) -> Any:
    """Return a tool's output with a note before each tool message's text."""
    if isinstance(output, ToolMessage):
        content: Any = output.content
        if isinstance(content, str):
            content = f"{note}\n\n{content}" if content else note
        else:
            content = [{"type": "text", "text": note}, *content]
        return output.model_copy(update={"content": content})
    if isinstance(output, Command) and isinstance(output.update, dict):
        return replace(output, update={k: with_note(v, note) for k, v in output.update.items()})
    if isinstance(output, list):
        return [with_note(v, note) for v in output]
    return output


def result_for_replay(output: Any, asked: Sequence[int] = (), call_id: str | None = None) -> str | None:
    """Return a tool's result as JSON for a replay; None if it cannot be stored.

    `asked`: numbers of the answers (`answer_numbers`) that the tool used.
    """
    record: dict[str, Any] = {"content": output, "status": "success", **({"answers": asked} if asked else {})}
    if told := isinstance(output, ToolMessage):
        record |= {"content": output.content, "status": output.status}
        record |= {} if output.artifact is None else {"artifact": output.artifact}
    content = record["content"]
    plain = type(content) is str and content.isascii()  # otherwise it may contain a lone surrogate
    try:
        if not told and isinstance(output, Command):
            record |= {"command": _command_text(record.pop("content")), "call_id": call_id}
        text = orjson.dumps(record).decode() if plain and "artifact" not in record else json.dumps(record)
    except (TypeError, ValueError, LookupError, RecursionError):  # not JSON
        text = ""
    if 0 < len(text) <= MAX_KEPT:
        return text
    if "artifact" in record:
        return result_for_replay(output.model_copy(update={"artifact": None}), asked)
    return only_asked(asked)


def _command_text(output: Command[Any]) -> str:
    """Serialise a tool's `Command`. Raises `ValueError` if it is not plain JSON."""
    parts = [output.update, output.goto or None, output.graph]
    text = json.dumps(parts, default=lambda o: {_TOLD: o.model_dump()} if type(o) is ToolMessage else o)
    if json.loads(text, object_hook=_untold) != parts:
        raise ValueError
    return text


def _untold(found: dict[str, Any], before: str | None = None, now: str = "") -> Any:
    if [*found] != [_TOLD]:
        return found
    message = ToolMessage(**found[_TOLD])
    message.tool_call_id = now if message.tool_call_id == before else message.tool_call_id
    return message


def read_by_model(tool: BaseTool, returned: Any) -> Any:
    """Return the part of a tool's return value that a model reads."""
    if tool.response_format == "content_and_artifact" and isinstance(returned, tuple) and len(returned) == _PAIR:
        return _plain(returned[0])
    return _plain(returned)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return _plain(value.content)
    if isinstance(value, Command):
        update = value.update if isinstance(value.update, dict) else {}
        messages = update.get("messages", [])
        return [_plain(m) for m in messages if isinstance(m, BaseMessage)] if isinstance(messages, list) else None
    if isinstance(value, list) and value:
        if all(isinstance(v, dict) and v.get("type") == "text" and set(v) <= _TEXT_BLOCK for v in value):
            texts = [v.get("text", "") for v in value]
            return texts[0] if len(texts) == 1 else texts
        if any(isinstance(v, BaseMessage | Command) for v in value):
            return [_plain(v) for v in value]
    return value


def only_asked(asked: Sequence[int]) -> str | None:
    """Return a stored result with only the numbers of answers; None without numbers."""
    return json.dumps({"answers": asked}) if asked else None


def stored_result(result: str | None) -> dict[str, Any]:
    """Parse the JSON of `result_for_replay` to a mapping. Any key may be missing."""
    return json.loads(result) if result else {}


def replayed_result(replay: Replay, call_id: str) -> ToolMessage | Command[Any]:
    """Return the recorded result of a call that ran before, for the call `call_id`."""
    if not replay.message and (text := (result := stored_result(replay.result)).get("command")) is not None:
        # If the model was called again, the same call has a new id.
        renamed = partial(_untold, before=result.get("call_id"), now=call_id)
        update, goto, graph = json.loads(text, object_hook=renamed)
        return Command(update=update, goto=goto or (), graph=graph)
    return replay_message(replay, call_id)


def replay_message(replay: Replay, call_id: str | None) -> ToolMessage:
    """Return a tool message with the recorded result of a call that ran before."""
    result = stored_result(replay.result)
    content = result.get("content", "This action was carried out before; its result was not kept.")
    content = content if isinstance(content, str | list) else json.dumps(content)
    status = result.get("status", "success")
    told = {"name": replay.call.tool, "status": status, "artifact": result.get("artifact")}
    message = ToolMessage(content=content, tool_call_id=call_id or "", **told)
    if not replay.message:
        return message
    note = f"Note: the task changed after this action was carried out. The user said: {replay.message}"
    return cast("ToolMessage", with_note(message, note))


def answer_message(verdict: Any, call_id: str | None, *, text: bool = False) -> Any:
    """Return the message for a denied or replayed call, which does not run.

    Without a call id, return a replay's content, and raise a denial as an exception. With `text`, return its text.
    """
    if isinstance(verdict, Denial):
        # A call whose run has ended is decided again when the thread continues.
        if verdict.decision.reason == Code.LEASE_ENDED:
            raise AuthzHalt(Code.LEASE_ENDED, verdict.decision.decision_id)
        if call_id is not None:
            return denial_message(verdict, call_id)
        if text:
            return denial_message(verdict, "").content
        raise AuthzDenied(verdict.decision.reason, verdict.decision.decision_id)
    if call_id is None and not verdict.message and "content" in (result := stored_result(verdict.result)):
        return result["content"]
    return replayed_result(verdict, call_id) if call_id is not None else replay_message(verdict, None).content


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
    answered = 0  # number of texts before the newest message of a model or a tool
    for entry in entries:
        message = as_message(entry)
        if (text := _human_text(entry, message)) is not None:
            texts.append(text)
            names.append(getattr(message, "name", None))
        elif message is not None and not isinstance(message, HumanMessage | SystemMessage | RemoveMessage):
            answered = len(texts)
    several = len({*names[answered:]}) > 1  # several people wrote, and none may order for the others
    texts = [replace(text, mixed=True) for text in texts] if several else texts
    return [replace(text, past=True) for text in texts[:answered]] + texts[answered:] if answered else texts


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


def has_unanswered_calls(messages: Sequence[Any]) -> bool:
    """Return True if the newest AI message has calls that no tool message answers."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return any(c["id"] not in answered for c in message.tool_calls)
    return False


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
    for place, one in planned.items():
        if one is call:
            return place
    alike = [p for p, c in planned.items() if c == call]
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
        decision = run.engine.deny_for_failure(exc, run)
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
