"""Read which calls another review's question is about, and which answers it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage

from langchain_runtime_authz.langgraph.tool_call_parsing import unknown
from langchain_runtime_authz.pep.approval_hitl import DECISIONS, PLAIN
from langchain_runtime_authz.pep.call import Call

# Names in reviews: Agent Inbox's flags; tool and arguments in an app's question.
_FLAGS: Final = {"allow_accept": "approve", "allow_edit": "edit", "allow_ignore": "reject", "allow_respond": "respond"}
_TOOL: Final = ("tool", "tool_name", "name", "action", "function")
_ARGUMENTS: Final = ("args", "arguments", "tool_args", "tool_input", "parameters", "input")
_DEPTH: Final = 3


def asked_about(requests: Sequence[Any], message: AIMessage) -> list[Call]:
    """Return the calls that `requests` name, or none if a request matches no call."""
    found: list[Call] = []
    left = iter(enumerate(message.tool_calls))
    for request in requests:
        asked = request if isinstance(request, Mapping) else {}
        name, args, ident = asked.get("name"), asked.get("args"), asked.get("tool_call_id")
        for position, call in left:
            if call["name"] == name and call["args"] == args and ident in (None, call["id"]):
                found.append(unknown(call["name"], call["id"], message.id, position, call["args"]))
                break
        else:
            return []
    return found


def shown_calls(value: object, schema: object) -> tuple[Sequence[Any], Sequence[tuple[str, ...]]]:
    """Return a pair: (1) a question's calls, (2) the decisions possible for each."""
    # `schema` describes the answer.
    items = value if isinstance(value, list | tuple) else [value]
    inbox = [i for i in items if isinstance(i, Mapping) and isinstance(i.get("action_request"), Mapping)]
    if inbox:
        asked, flags = [i["action_request"] for i in inbox], [i.get("config") for i in inbox]
        calls = [{"name": a.get("action"), "args": a.get("args")} for a in asked]
        takes = [tuple(d for n, d in _FLAGS.items() if not isinstance(f, Mapping) or f.get(n)) for f in flags]
        return (calls, takes) if len(inbox) == len(items) else ((), ())
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


def _calls(value: object, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the parts of a question that name a tool and its arguments."""
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
    """Return the `type`s that an answer's schema permits: one decision or several."""
    if not isinstance(schema, Mapping):
        return DECISIONS
    named = schema.get("$defs", {})
    members = [named.get(str(m.get("$ref", "")).rpartition("/")[2], m) for m in schema.get("oneOf", [schema])]
    kinds = [m.get("properties", {}).get("type", {}).get("const") for m in members]
    return tuple(k for k in kinds if k in DECISIONS)
