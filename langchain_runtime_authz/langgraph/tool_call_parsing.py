"""Parse a call's arguments by the tool's schema, and find calls in node inputs.

Arguments are parsed once. The same object is decided, digested, approved and executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.digest import as_json, digest, project_arguments
from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.facts.call_arguments import NOTHING_TRACED, traced_arguments
from langchain_runtime_authz.facts.plan import PlannedCall, raw_digest
from langchain_runtime_authz.langgraph.private_api import takes_no_arguments
from langchain_runtime_authz.langgraph.tool_lookup import ToolFacts
from langchain_runtime_authz.pep.call import Call, ToolInput
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
    (profile, profiled, _), injected = facts
    try:
        parsed = parse()
    except Exception as exc:  # noqa: BLE001  (stored, and raised again when the tool parses)
        parsed, error = exc, Code.INVALID_ARGUMENTS
    else:
        try:
            args, supplied_too = _decided(tool, parsed, injected)
            args_digest = digest(args)
        except MappingError as exc:
            error = Code(exc.code)
    given = frozenset(args if isinstance(sent, str) else sent)
    return Call(
        tool.name, profile, profiled, raw=raw, args=args, args_digest=args_digest, traced=traced_arguments(profile, args),
        given=given if given <= args.keys() else frozenset(args), metadata=tool.metadata, error=error,
        input=ToolInput(tool, sent, parsed, injected, supplied_too, parse), **about,
    )  # fmt: skip


def _decided(tool: BaseTool, parsed: Any, injected: frozenset[str]) -> tuple[dict[str, Any], bool]:
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
    tool: Any = call.input.tool
    return digest(_decided(tool, parsed, call.input.injected)[0]) == call.args_digest


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


def unknown_call(name: str, call_id: str | None, plan_id: str | None, position: int | None, written: Any) -> Call:
    """Return a `Call` from what the model wrote, without a tool or a profile."""
    tool, about = name.encode("ascii", "backslashreplace").decode()[:_MAX_NAME], (call_id, plan_id, position, written)
    return Call(tool, UNPROFILED, False, *about, {}, _EMPTY, NOTHING_TRACED, error=Code.UNKNOWN_TOOL)


def may_be(call: Call, sent: Mapping[str, Any]) -> bool:
    """Return True if tool and id of a call fit a message's call."""
    return bool(sent["name"] == call.tool and call.call_id in (None, sent["id"]))


def as_planned(
    call: Call, planned: PlannedCall, written: Any, facts: ToolFacts, given: Any, describe: Describe
) -> Call | None:
    """Return the call with its planned id if it matches `planned`, else None.

    Arguments that code added count as critical, except those in `ToolProfile.injected`.
    """
    if raw_digest(call.raw) == planned.args_digest:
        return replace(call, call_id=planned.call_id)
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
        return replace(call, call_id=planned.call_id, raw=written)
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
    facts = facts._replace(profiled=facts.profiled._replace(profile=profile))
    return replace(describe(facts, given), call_id=planned.call_id, raw=written)


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
