"""What was read, and whether it is still so: the resource behind a read, and the version of its content."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from typing import Any, Final

from langchain_runtime_authz.facts.provenance.trace import Provenance
from langchain_runtime_authz.profile import ToolProfile

__all__ = ["UNREAD", "changed_since", "content_version", "read_mark", "resource_of", "sources"]

UNREAD: Final = "0"  # the version of a resource of which nobody said that it changed


def resource_of(profile: ToolProfile, args: Mapping[str, Any]) -> str | None:
    """The name of what a call reads: the profile's `resource` with the call's arguments in it."""
    if profile.resource is None:
        return None
    try:
        return string.Formatter().vformat(profile.resource, (), {k: str(v) for k, v in args.items()})
    except (KeyError, IndexError, ValueError):
        return None


def read_mark(tool: str, args_digest: str) -> str:
    """The name of the mark that holds the content version of one read."""
    return "read:" + hashlib.sha256(f"{tool}\n{args_digest}".encode()).hexdigest()


def content_version(profile: ToolProfile, output: object) -> str:
    """What tells one content from another: the profile's `version` field, else a digest of all of it."""
    if profile.version is not None:
        record = _record(output)
        if record is not None and profile.version in record:
            output = record[profile.version]
    text = output if isinstance(output, str) else _canonical(output)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def changed_since(changed: Mapping[str, int], at: int) -> list[str]:
    """The tools whose content changed after the plan that was recorded at step `at`."""
    return sorted(tool for tool, step in changed.items() if step > at)


def sources(traced: Mapping[str, Provenance]) -> set[str]:
    """The tools that critical arguments came from, but for what the human said as well."""
    said = [s for a in traced.values() if a.standing != "told" for i in (a, *a.items) for s in i.asserted_by]
    said += [s for a in traced.values() if a.standing != "told" for i in (a, *a.items) for s in i.mentioned_by]
    return {s.source.split("/", 1)[0] for s in said if s.source}


def _record(output: object) -> Mapping[str, Any] | None:
    if isinstance(output, str):
        try:
            output = json.loads(output)
        except (ValueError, RecursionError):
            return None
    return output if isinstance(output, Mapping) else None


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
