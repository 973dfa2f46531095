"""Name the resource that a tool reads, and digest its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from langchain_runtime_authz.digest import json_text
from langchain_runtime_authz.facts.normal_forms import MAX_VALUE, fold, iso_dates, tidy
from langchain_runtime_authz.facts.output_reading import parse_json_text
from langchain_runtime_authz.facts.provenance import Provenance
from langchain_runtime_authz.tool_profile import ToolProfile

READ: Final = "read:"  # prefix of the ledger's marks for calls that read
UNCHANGED: Final = "0"  # the version of a resource without a reported change


def resource_of(profile: ToolProfile, args: Mapping[str, Any]) -> str | None:
    """Return the resource that a call reads, named by `profile.resource`, or None."""
    if profile.resource is None:
        return None
    name = fill_template(profile.resource, {k: _written(v) for k, v in args.items()})
    return None if name is None else one_spelling(name)


def one_spelling(resource: str) -> str:
    """Return a resource's name without differences in case, blanks and date formats."""
    name = tidy(resource)
    return fold((_dated(name) if len(name) <= MAX_VALUE else name).replace(" ", ""))


_dated: Final = lru_cache(maxsize=1024)(iso_dates)


def _written(value: Any) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def fill_template(template: str, args: Mapping[str, str]) -> str | None:
    """Return the template with the arguments filled in; None if one is missing."""
    try:
        return template.format_map(args)
    except KeyError:
        return None


def read_mark(tool: str, args_digest: str) -> str:
    """Return the name of the ledger's mark for a read with these arguments."""
    return READ + hashlib.sha256(f"{tool}\n{args_digest}".encode()).hexdigest()


def content_version(profile: ToolProfile, output: object) -> str:
    """Return the digest of the field `profile.version` of an output, or of all of it."""
    if profile.version is not None:
        record = parse_json_text(output)
        output = record.get(profile.version, output) if isinstance(record, Mapping) else output
    text = output if isinstance(output, str) else json_text(output)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_tools(traced: Mapping[str, Provenance]) -> set[str]:
    """Return the tools whose outputs supplied arguments that the user did not say."""
    items = [i for a in traced.values() if a.standing != "told" for i in (a, *a.items)]
    return {by.source.split("/", 1)[0] for i in items for by in (*i.asserted_by, *i.mentioned_by) if by.source}
