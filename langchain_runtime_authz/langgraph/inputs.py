"""Read what comes in: the arguments of a tool's call, the calls that a node is given, and what the user says at a root.

Arguments are parsed by the tool's own schema, once: what is decided, digested, approved and executed is one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command

from langchain_runtime_authz.digest import digest, project, project_arguments
from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.facts.provenance.atoms import NO_ATOMS, atoms_of
from langchain_runtime_authz.facts.task import HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph._private import takes_no_arguments
from langchain_runtime_authz.langgraph.messages import USER, as_message, is_human, messages_in, written
from langchain_runtime_authz.langgraph.tool_profiles import ToolFacts
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.profile import UNPROFILED

_EMPTY = digest({})
_SCALARS = frozenset((str, int, float, bool, type(None)))
_MAX_NAME = 128  # characters kept of a tool's name that a model made up


@dataclass(slots=True, eq=False, repr=False)
class Malformed:
    """The tool's own schema refused the arguments: `error` is raised again where the tool parses."""

    error: Exception


def parse(tool: BaseTool, tool_input: str | Mapping[str, Any], call_id: str | None, parser: Any) -> Any:
    """Return the arguments as the tool will receive them, by `parser`: the tool's own, unguarded `_parse_input`."""
    schema = tool.args_schema
    if isinstance(schema, type) and not getattr(schema, "__pydantic_fields__", None) and takes_no_arguments(schema):
        return {}
    return parser(tool_input if isinstance(tool_input, str) else dict(tool_input), call_id)


def describe(
    tool: BaseTool,
    facts: ToolFacts,
    read: Callable[[], Any],
    *,
    call_id: str | None,
    written: Mapping[str, Any] | str,
    sent: Mapping[str, Any] | str | None = None,
    plan_id: str | None = None,
    position: int | None = None,
    amend: Callable[[str, dict[str, Any]], Call] | None = None,
    reviewed: bool = False,
) -> Call:
    """Return the `Call` to decide.

    `read` gives the arguments as the tool will receive them; it is called again to check that they come out alike.
    `written` are those that the model wrote, for the plan; `sent` those without injected ones, for the guard.
    """
    error: Code | None = None
    parsed: Any
    args: dict[str, Any] = {}
    args_digest, supplied_too = _EMPTY, False
    try:
        parsed = read()
    except Exception as exc:  # noqa: BLE001  (stored, and raised again by the tool's own road)
        parsed, error = Malformed(exc), Code.INVALID_ARGUMENTS
    else:
        try:
            args, supplied_too = _decided(tool, parsed, facts.injected)
            args_digest = digest(args)
        except MappingError as exc:
            error = Code(exc.code)
    return Call(
        tool=tool.name,
        profile=facts.profiled.profile,
        profiled=facts.profiled.declared,
        call_id=call_id,
        plan_id=plan_id,
        position=position,
        raw=written,
        args=args,
        args_digest=args_digest,
        atoms=atoms_of(facts.profiled.profile, args),
        parsed=parsed,
        sent=written if sent is None else sent,
        injected=facts.injected,
        supplied=supplied_too,
        reread=lambda: digest(_decided(tool, read(), facts.injected)[0]),
        tool_ref=tool,
        metadata=tool.metadata,
        error=error,
        amend=amend,
        reviewed=reviewed,
    )


def _decided(tool: BaseTool, parsed: Any, injected: frozenset[str]) -> tuple[dict[str, Any], bool]:
    if isinstance(parsed, str):
        schema = tool.args_schema
        fields = getattr(schema, "model_fields", None) or getattr(schema, "__fields__", None)
        return {next(iter(fields)) if fields else "input": project(parsed)}, False
    return project_arguments(parsed, injected, ToolRuntime)


def parses_alike(call: Call) -> bool:
    if call.reread is None:
        return True
    try:
        return call.reread() == call.args_digest
    except Exception:  # noqa: BLE001  (a failed parse is a change)
        return False


def unchanged(call: Call) -> bool:
    """Return True if the parsed arguments are still what was decided: nested values may be shared with a message."""
    parsed, injected = call.parsed, call.injected
    if call.error is not None or not isinstance(parsed, dict) or not isinstance(call.tool_ref, BaseTool):
        return True
    for name, value in parsed.items():
        if type(value) not in _SCALARS and name not in injected:
            break
    else:
        return True
    try:
        return digest(_decided(call.tool_ref, parsed, injected)[0]) == call.args_digest
    except MappingError:
        return False


def without(args: Mapping[str, Any], injected: frozenset[str]) -> dict[str, Any]:
    own = {}
    for name, value in args.items():
        if name not in injected and type(value) is not ToolRuntime:
            own[name] = value
    return own


def supplied(name: str, value: object, injected: frozenset[str]) -> bool:
    """Return True if the framework supplies an argument. Of a name that anybody may use, the value's type decides."""
    return name in injected or type(value) is ToolRuntime


def unknown(name: str, call_id: str | None, plan_id: str | None, position: int | None, written: Any) -> Call:
    return Call(
        tool=name.encode("ascii", "backslashreplace").decode()[:_MAX_NAME],
        profile=UNPROFILED,
        profiled=False,
        call_id=call_id,
        plan_id=plan_id,
        position=position,
        raw=written,
        args={},
        args_digest=_EMPTY,
        atoms=NO_ATOMS,
        error=Code.UNKNOWN_TOOL,
    )


# --- the input of a node, and of a root -----------------------------------------------------------------------


def _lists(value: object) -> Iterator[tuple[str, Sequence[Any]]]:
    fields = value if isinstance(value, (dict, Mapping)) else getattr(value, "__dict__", None) or {"": value}
    for name, held in fields.items():
        yield str(name), held if isinstance(held, list | tuple) else (held,)


def newest_messages(value: object) -> list[tuple[str, AIMessage]]:
    found = ((n, [m for m in held if isinstance(m, AIMessage) and m.tool_calls][-1:]) for n, held in _lists(value))
    return [(name, message) for name, newest in found for message in newest]


def newest_plan(given: object) -> AIMessage | None:
    return next((message for _, message in newest_messages(given)), None)


def sent_calls(value: object, depth: int = 2) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, (dict, Mapping)):
        if (
            isinstance(value.get("id"), str)
            and isinstance(value.get("name"), str)
            and isinstance(value.get("args"), dict)
        ):
            yield value
        elif depth:
            for held in value.values():
                yield from sent_calls(held, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for held in value:
            yield from sent_calls(held, depth - 1)


def answered_calls(value: object) -> set[str]:
    return {m.tool_call_id for _, held in _lists(value) for m in held if isinstance(m, ToolMessage)}


def human_texts(value: object) -> list[HumanText]:
    """Return the `user`-role entries of a root input, in order, from any form that LangChain accepts."""
    if isinstance(value, list | tuple) and any(isinstance(entry, Command) for entry in value):
        return [text for entry in value for text in human_texts(written(entry))]
    entries: Sequence[object] = value if isinstance(value, list) else messages_in(value)
    answered = max((at for at, entry in enumerate(entries) if _answer(entry)), default=0)
    texts = [(at, text) for at, entry in enumerate(entries) if (text := _human_text(entry)) is not None]
    return [replace(text, past=True) if at < answered else text for at, text in texts]


def _answer(entry: object) -> bool:
    message = as_message(entry)
    return (
        message is not None
        and not isinstance(message, HumanMessage | SystemMessage | RemoveMessage)
        and not is_human(message)
    )


def _human_text(entry: object) -> HumanText | None:
    message, key = as_message(entry), None
    if message is not None and is_human(message):
        content, key = message.content, message.id
    elif message is not None:
        return None
    elif isinstance(entry, Mapping) and (entry.get("role") or entry.get("type")) in USER:
        content, key = entry.get("content", ""), entry.get("id")
    else:
        return None
    blocks = content if isinstance(content, list) else ()
    mixed = sum(isinstance(b, str) or (isinstance(b, Mapping) and "text" in b) for b in blocks) > 1
    key = key if isinstance(key, str) else None
    return HumanText(content_digest(content), content_text(content), key, mixed=mixed)
