"""Check a tool's profile against the JSON schema of the tool's arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from langchain_runtime_authz._order_patterns import given_in
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.tool_profile import ToolProfile


def check_arguments(name: str, declared: ToolProfile, arguments: Mapping[str, object]) -> None:
    """Raise `ConfigError` if a profile does not fit the tool's schema.

    It does not fit if it names an argument that the tool does not take, or if an order or synonym gives a value that
    the schema refuses. `arguments`: argument → JSON schema, with references resolved. A dotted path fits a schema that
    does not list its members.
    """
    for fact, named in declared.named().items():
        for path in sorted(named):
            first, *inner = path.split(".")
            if first not in arguments:
                takes = ", ".join(sorted(arguments)) or "nothing"
                raise ConfigError(f"{name}: `{fact}` names `{path}`, but the tool takes {takes}", Code.PROFILE_INVALID)
            if not _leads(arguments[first], inner):
                raise ConfigError(f"{name}: `{fact}` names `{path}`, which is not in the schema", Code.PROFILE_INVALID)
    given = {("intent", *pair) for pair in given_in(declared.orders)}
    given |= {("synonyms", of, value) for of, words in declared.synonyms.items() for value in words.values()}
    for field, argument, value in sorted(given):
        if not _takes(arguments[argument], value):
            raise ConfigError(
                f"{name}: `{field}` has `{argument}={value}`, which the schema refuses", Code.PROFILE_INVALID
            )


_WRITTEN: Final = {"boolean": "true|false", "integer": r"-?\d+", "number": r"-?\d+(?:\.\d+)?", "null": "(?!)"}


def _takes(schema: object, value: str) -> bool:
    """Return True if the text `value` can be read as a value of this schema."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(choices := schema.get("enum"), list):
        return value in (c if isinstance(c, str) else json.dumps(c) for c in choices)
    if isinstance(options := schema.get("anyOf"), list):
        return any(_takes(option, value) for option in options)
    return re.fullmatch(_WRITTEN.get(f"{schema.get('type')}", ".*"), value) is not None


def _leads(schema: object, steps: Sequence[str]) -> bool:
    """Return True if a value of this schema may have members at the path `steps`."""
    if not steps or not isinstance(schema, Mapping):
        return True
    for several in ("anyOf", "oneOf", "allOf"):
        if isinstance(choices := schema.get(several), list):
            return any(_leads(choice, steps) for choice in choices)
    if isinstance(items := schema.get("items"), Mapping):
        return _leads(items, steps)
    if isinstance(members := schema.get("properties"), Mapping):
        step, *further = steps
        return _leads(members[step], further) if step in members else bool(schema.get("additionalProperties"))
    return schema.get("type") not in ("string", "number", "integer", "boolean", "null")
