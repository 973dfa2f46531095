"""Read what a review asks that is not ours: which calls it shows, and which decisions it takes.

A review is LangChain's (`HITLRequest`, `ToolApprovalRequest`), in Agent Inbox's shape (`action_request` and `config`), or
a question of an app's own that names one tool and its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_runtime_authz.pep.approvals import DECISIONS, PLAIN

_FLAGS: Final = {"allow_accept": "approve", "allow_edit": "edit", "allow_ignore": "reject", "allow_respond": "respond"}
_TOOL: Final = ("tool", "tool_name", "name", "action", "function")
_ARGUMENTS: Final = ("args", "arguments", "tool_args", "tool_input", "parameters", "input")
_DEPTH: Final = 3

Shown = tuple[Sequence[Any], Sequence[tuple[str, ...]]]


def shown_calls(value: object, schema: object) -> Shown:
    """Return the calls that a question shows (`name`, `args`, `tool_call_id`), and for each the decisions it takes.

    `schema` is that of the answer, if the question has one.
    """
    items = value if isinstance(value, list | tuple) else [value]
    inbox = [i for i in items if isinstance(i, Mapping) and isinstance(i.get("action_request"), Mapping)]
    if inbox:
        calls = [{"name": i["action_request"].get("action"), "args": i["action_request"].get("args")} for i in inbox]
        return (calls, [_of_config(i.get("config")) for i in inbox]) if len(inbox) == len(items) else ((), ())
    if not isinstance(value, Mapping):
        return (), ()
    if "review_configs" in value:
        configs, requests = value["review_configs"], value.get("action_requests")
        if not isinstance(configs, list) or not isinstance(requests, list):
            return (), ()
        return requests, [tuple(c.get("allowed_decisions", ())) for c in configs if isinstance(c, Mapping)]
    if value.get("type") == "tool_approval":
        return [value], [_of_schema(schema)]
    named = list(_calls(value, _DEPTH))
    return (named, [PLAIN]) if len(named) == 1 else ((), ())


def _of_config(config: object) -> tuple[str, ...]:
    if not isinstance(config, Mapping):
        return DECISIONS
    return tuple(decision for flag, decision in _FLAGS.items() if config.get(flag))


def _calls(value: object, depth: int) -> Iterator[dict[str, Any]]:
    """Yield what names a tool and its arguments, at any place of a question."""
    if isinstance(value, Mapping):
        tool = next((value[k] for k in _TOOL if isinstance(value.get(k), str)), None)
        args = next((value[k] for k in _ARGUMENTS if isinstance(value.get(k), Mapping)), None)
        if tool is not None and args is not None:
            yield {"name": tool, "args": args, "tool_call_id": value.get("id", value.get("tool_call_id"))}
            return
    if depth and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _calls(item, depth - 1)


def _of_schema(schema: object) -> tuple[str, ...]:
    """Return the `type`s that the schema of an answer takes: a decision, or one of several."""
    if not isinstance(schema, Mapping):
        return DECISIONS
    named = schema.get("$defs", {})
    members = [named.get(str(m.get("$ref", "")).rpartition("/")[2], m) for m in schema.get("oneOf", [schema])]
    kinds = [m.get("properties", {}).get("type", {}).get("const") for m in members]
    return tuple(k for k in kinds if k in DECISIONS)
