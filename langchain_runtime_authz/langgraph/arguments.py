"""From a tool and what it was sent to a `Call`: arguments parsed by the tool's own schema, once.

What is decided, digested, approved and executed is one and the same parsed object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.digest import digest, project, project_arguments
from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.facts.provenance.atoms import NO_ATOMS, atoms_of
from langchain_runtime_authz.langgraph._private import takes_no_arguments
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
    """Return the arguments as the tool will receive them (a dictionary, or a string), by `parser`.

    `parser` is the tool's own, unguarded `_parse_input`.
    """
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
    plan_id: str | None,
    position: int | None,
    written: Mapping[str, Any] | str,
    sent: Mapping[str, Any] | str,
    amend: Callable[[str, dict[str, Any]], Call] | None = None,
    reviewed: bool = False,
) -> Call:
    """Return the `Call` to decide.

    Args:
        tool: the tool that will run.
        facts: its profile, and the names of its injected arguments.
        read: gives the arguments as the tool will receive them (`parse`); called again to check
            that they come out alike.
        call_id: the tool call's id.
        plan_id: id of the message that planned it, if known.
        position: its place in that message.
        written: the arguments as the model wrote them, for comparison with the plan.
        sent: the arguments without injected ones, for comparison at the guard.
        amend: gives the call of another tool or other arguments instead of this one.
        reviewed: a review on the way to the tool asks about it.
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
        sent=sent,
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
    """Return what of the parsed arguments is decided, and whether the framework supplies others."""
    if isinstance(parsed, str):
        schema = tool.args_schema
        fields = getattr(schema, "model_fields", None) or getattr(schema, "__fields__", None)
        return {next(iter(fields)) if fields else "input": project(parsed)}, False
    return project_arguments(parsed, injected, ToolRuntime)


def parses_alike(call: Call) -> bool:
    """Return True if the arguments, parsed once more, are those that were decided."""
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
    """Return arguments that the model or a caller sent, without those that the framework supplies."""
    own = {}
    for name, value in args.items():
        if name not in injected and type(value) is not ToolRuntime:
            own[name] = value
    return own


def supplied(name: str, value: object, injected: frozenset[str]) -> bool:
    """Return True if the framework supplies an argument: by its type, or a runtime named `runtime`.

    In the second case the value decides: somebody chose any other value of that name.
    """
    return name in injected or type(value) is ToolRuntime


def unknown(name: str, call_id: str | None, plan_id: str | None, position: int | None, written: Any) -> Call:
    """Return a call of a tool that the node does not have. The model wrote its name."""
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
