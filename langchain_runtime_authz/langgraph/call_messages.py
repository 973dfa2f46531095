"""Make a `Call` of a tool call in a message, and the tool message that answers it.

Arguments are parsed once. The same object is decided, digested, approved and executed. The answer to a denied call
holds a neutral sentence and the decision's id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command

from langchain_runtime_authz.digest import as_json, digest
from langchain_runtime_authz.errors import AuthzDenied, Code, MappingError
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.call_arguments import NOTHING_TRACED, project_arguments, traced_arguments
from langchain_runtime_authz.langgraph.private_api import takes_no_arguments
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_facts import ToolFacts
from langchain_runtime_authz.pep.call import Call, Denial, Replay, ToolInput
from langchain_runtime_authz.tool_profile import UNPROFILED

_EMPTY = digest({})
_SCALARS = frozenset((str, int, float, bool, type(None)))
_MAX_NAME = 128  # characters of a tool's name that a model made up
Describe = Callable[[ToolFacts, Any], Call]  # returns the call of these arguments


def parse_call(tool: BaseTool, tool_input: str | Mapping[str, Any], call_id: str | None, parser: Any) -> Any:
    """Return the arguments that the tool gets. `parser`: the tool's `_parse_input`."""
    schema = tool.args_schema
    if isinstance(schema, type) and not getattr(schema, "__pydantic_fields__", None) and takes_no_arguments(schema):
        return {}
    return parser(tool_input if isinstance(tool_input, str) else dict(tool_input), call_id)


def describe_call(
    tool: BaseTool, facts: ToolFacts, parse: Callable[[], Any], *, raw: Any, sent: Any, **about: Any
) -> Call:
    """Return the `Call` to decide, with the arguments that `parse` returns.

    `raw`: the model's arguments. `sent`: see `ToolInput`. `about`: other fields of the `Call`, at least ids, position.
    """
    error: Code | None = None
    args: dict[str, Any] = {}
    args_digest, supplied_too = _EMPTY, False
    (profile, profiled, _), injected, declared = facts
    try:
        parsed = parse()
    except Exception as exc:  # noqa: BLE001  (stored, and raised again when the tool parses)
        parsed, error = exc, Code.INVALID_ARGUMENTS
    else:
        # If another name was written, it may be the alias of an argument.
        if profile.injected and isinstance(raw, Mapping) and isinstance(parsed, dict) and raw.keys() <= parsed.keys():
            injected = injected.union(set(profile.injected) - raw.keys())
        try:
            args, supplied_too = _decided_arguments(tool, parsed, injected)
            args_digest = digest(args)
        except MappingError as exc:
            error = Code(exc.code)
    given = frozenset(args if isinstance(sent, str) else sent)
    return Call(
        tool.name, profile, profiled, raw=raw, args=args, args_digest=args_digest, traced=traced_arguments(profile, args),
        given=given if given <= args.keys() else frozenset(args), metadata=tool.metadata, error=error, declared=declared,
        input=ToolInput(tool, sent, parsed, injected, supplied_too, parse), **about,
    )  # fmt: skip


def _decided_arguments(tool: Any, parsed: Any, injected: frozenset[str]) -> tuple[dict[str, Any], bool]:
    if isinstance(parsed, str):
        schema = tool.args_schema
        fields = getattr(schema, "model_fields", None) or getattr(schema, "__fields__", None)
        return {next(iter(fields)) if fields else "input": as_json(parsed)}, False
    return project_arguments(parsed, injected, ToolRuntime)


def parses_alike(call: Call) -> bool:
    """Return True if a second parse gives arguments with the same digest."""
    try:
        return _has_digest(call, call.input.parse())
    except Exception:  # noqa: BLE001  (a failed parse is a change)
        return False


def arguments_unchanged(call: Call) -> bool:
    """Return True if no code changed the parsed arguments after the decision."""
    parsed = call.input.parsed
    if call.error is not None or not isinstance(parsed, dict):
        return True
    if _SCALARS.issuperset(map(type, parsed.values())):
        return True
    try:
        return _has_digest(call, parsed)
    except MappingError:
        return False


def _has_digest(call: Call, parsed: Any) -> bool:
    return digest(_decided_arguments(call.input.tool, parsed, call.input.injected)[0]) == call.args_digest


def not_injected(args: Mapping[str, Any], injected: frozenset[str]) -> dict[str, Any]:
    """Return the arguments that the framework does not supply."""
    own = {}
    for name, value in args.items():
        if name not in injected and type(value) is not ToolRuntime:
            own[name] = value
    return own


def injected_in(args: Mapping[str, Any], injected: frozenset[str]) -> dict[str, Any]:
    """Return the arguments that the framework supplies."""
    return {k: v for k, v in args.items() if k in injected or type(v) is ToolRuntime}


def as_planned(call: Call, given: Any, written: Any, facts: ToolFacts, describe: Describe) -> Call | None:
    """Return the call as the model wrote it, with arguments that code added.

    None if code changed more. `given`: what reached the tool. `written`: the model's arguments. Added arguments count as
    critical, except those in `ToolProfile.injected`.
    """
    if not isinstance(written, Mapping):
        return None
    sent = given if isinstance(given, Mapping) else {}
    added = not_injected(sent, facts.injected).keys() - written.keys()
    own = added & set(facts.profiled.profile.injected)
    # An argument equal to the model's is not added: the model used an alias.
    own = {k for k in own if describe(facts, {n: v for n, v in sent.items() if n != k}).args_digest != call.args_digest}
    facts = facts._replace(injected=facts.injected | own)
    call = describe(facts, given)
    handed = injected_in(sent, facts.injected)
    as_written = describe(facts, {**written, **handed})
    if call.error is None and as_written.error is None and as_written.args_digest == call.args_digest:
        return replace(call, raw=written)
    extra = added - own
    merged = describe(facts, {**written, **handed, **{k: sent[k] for k in extra}})
    if not extra or call.error is not None or merged.error is not None or merged.args_digest != call.args_digest:
        return None
    before = as_written.args if as_written.error is None else written
    changed = {k for k, v in call.args.items() if k not in before or before[k] != v}
    profile = facts.profiled.profile
    rest = {name: tuple(k for k in getattr(profile, name) if k not in changed) for name in ("when", "text", "free")}
    critical = {**dict.fromkeys(changed, "value"), **profile.critical}
    profile = profile.model_copy(update={**rest, "critical": critical})
    return replace(describe(facts._replace(profiled=facts.profiled._replace(profile=profile)), given), raw=written)


def unknown_call(name: str, call_id: str | None, plan_id: str | None, position: int | None, written: Any) -> Call:
    """Return a `Call` from what the model wrote, without a tool or a profile."""
    tool, about = name.encode("ascii", "backslashreplace").decode()[:_MAX_NAME], (call_id, plan_id, position, written)
    return Call(tool, UNPROFILED, False, *about, {}, _EMPTY, NOTHING_TRACED, error=Code.UNKNOWN_TOOL)


_LATER = "This action could not be checked, so it was not carried out. It may be possible later."
_SPOKEN: Mapping[str, str] = {
    **{code: _LATER for code in Code if code.retry == "later"},
    Code.STALE_EPOCH: "The task changed after this action was planned, so it was not carried out. Plan again.",
    Code.DATA_CHANGED: "What this action is based on changed after it was read. Read it again, then plan again.",
    Code.OUTCOME_UNKNOWN: "This action was started before and its outcome is unknown. Do not repeat it.",
    Code.CALL_IN_PROGRESS: "This action is already under way. Do not repeat it.",
    Code.NOT_REACHED: "This action was not carried out, because one before it was not. Plan it again if it is needed.",
    Code.APPROVAL_EXPIRED: "The user's approval came too late, so this action was not carried out. Plan again.",
    Code.APPROVAL_REJECTED: "The user rejected this action. Do not repeat it unless the user asks for it.",
}
_TOLD = "__tool_message__"
_PAIR = 2  # (content, artifact)
MAX_KEPT = 64 * 1024  # characters of a stored result
_TEXT_BLOCK = frozenset({"type", "text", "id", "annotations", "index"})
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
        before: Any = output.content
        text = f"{note}\n\n{before}" if before else note
        content = text if isinstance(before, str) else [{"type": "text", "text": note}, *before]
        return output.model_copy(update={"content": content})
    if isinstance(output, Command) and isinstance(output.update, dict):
        return replace(output, update={k: with_note(v, note) for k, v in output.update.items()})
    if isinstance(output, list):
        return [with_note(v, note) for v in output]
    return output


def result_for_replay(output: Any, asked: Sequence[int] = (), call_id: str | None = None) -> str | None:
    """Return a tool's result as JSON for a replay; None if it cannot be stored.

    `asked`: numbers of the answers (`interrupts`) that the tool used.
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
    told = {"name": replay.call.tool, "status": result.get("status", "success"), "artifact": result.get("artifact")}
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
