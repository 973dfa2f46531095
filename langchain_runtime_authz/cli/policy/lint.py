"""Find in Rego what OPA accepts and its author does not mean.

A rule that reads a member that no request has is undefined: it never fires, and no engine says so. So each path below
`input` is held against the request's JSON Schema.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path as File
from typing import Any, Final

from langchain_runtime_authz.authzen import request_schema
from langchain_runtime_authz.cli.policy.project import run_opa

__all__ = ["lint_paths", "lint_rego"]

Json = Mapping[str, Any]
Path = tuple[str | None, ...]  # None: a name or an index that is not written out
_MAX_DEPTH: Final = 8
_NEGATED: Final = re.compile(r"\bnot\s+[^\n{]*?(?:[^=:<>!]|\b)(==|!=|<=|>=|<|>)(?!=)")
_CALL: Final = re.compile(r"\b([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)\(")
# Not native to Wasm (openpolicyagent.org/docs/policy-reference, "Wasm Support"): they would need a host function.
_HOSTED: Final = re.compile(
    r"^(http|io\.jwt|crypto|time|opa|rego|rand|uuid|net\.lookup_ip_addr|graphql|semver|units|yaml|providers|"
    r"json\.(match_schema|verify_schema|patch)|strings\.(any_prefix_match|any_suffix_match|render_template)|"
    r"glob\.quote_meta|regex\.(globs_match|split|template_match|replace)|urlquery|hex|print|trace|sprintf)(\.|$)"
)
_INSTEAD: Final = {
    "sprintf": 'join texts by `concat("", [a, b])` and write numbers by `format_int(n, 10)`',
    "time": "`input.context.now` has the seconds, and `input.context.local` the time in your zone",
    "print": "look at a request with `runtime-authz policy try`",
}
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')


def lint_rego(files: Mapping[str, str]) -> Iterator[str]:
    """Yield `file:line: what is wrong` for what OPA accepts and the policy's author does not mean."""
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            code = _STRING.sub('""', line).partition("#")[0]
            if _NEGATED.search(code):
                yield (
                    f"{name}:{number}: a negated comparison is undefined, not true, if an operand is missing; "
                    "write the condition as a rule and negate that"
                )
            for called in _CALL.findall(code):
                if _HOSTED.match(called):
                    instead = _INSTEAD.get(called.partition(".")[0], "compute it before the request is made")
                    yield f"{name}:{number}: `{called}` is not native to Wasm; {instead}"


def lint_paths(files: Mapping[str, str], opa: str | None) -> Iterator[str]:
    """Yield `file:line: what is wrong` for each path below `input` that no request has."""
    with tempfile.TemporaryDirectory() as work:
        for name, text in files.items():
            (File(work) / "own.rego").write_text(text, encoding="utf-8")
            parsed = run_opa(
                opa, "parse", "--format", "json", "--json-include", "locations", "own.rego", cwd=File(work)
            )
            yield from _unknown_paths(name, json.loads(parsed))


def _unknown_paths(name: str, module: Json) -> Iterator[str]:
    schema = request_schema()
    imported: dict[str, Path] = {}
    for one in module.get("imports", ()):
        if (path := _path(one["path"], {})) is not None:
            imported[one.get("alias") or str(path[-1] if path else "input")] = path
    for rule in module.get("rules", ()):
        aliases = dict(imported)
        for terms in _calls(rule):  # `c := input.context`, `some e in input.context.delegation.edges`
            match [_name_of(term) for term in terms]:
                case ["assign" | "eq", str(local), *_] if (path := _path(terms[-1], aliases)) is not None:
                    aliases[local] = path
                case ["internal.member_2" | "internal.member_3", *_, str(local), _] if (
                    path := _path(terms[-1], aliases)
                ) is not None:
                    aliases[local] = (*path, None)
        for row, path in _read(rule, aliases):
            if why := _unknown(schema, path):
                yield f"{name}:{row}: {why}"


def _nodes(tree: Any) -> Iterator[Json]:
    if isinstance(tree, dict):
        yield tree
        for child in tree.values():
            yield from _nodes(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _calls(rule: Json) -> Iterator[list[Json]]:
    """Yield the terms of each expression or call: the operator, then its operands."""
    for node in _nodes(rule):
        terms = node.get("terms") if "terms" in node else node.get("value") if node.get("type") == "call" else None
        if isinstance(terms, list):
            yield terms


def _name_of(term: Json) -> str | None:
    """Return the name of a variable or of an operator."""
    match term:
        case {"type": "var", "value": str(name)}:
            return name
        case {"type": "ref", "value": [*parts]} if all(isinstance(p.get("value"), str) for p in parts):
            return ".".join(p["value"] for p in parts)
    return None


def _path(term: Json, aliases: Mapping[str, Path]) -> Path | None:
    """Return where below the input a term leads, or `None` if it does not lead there."""
    parts = term["value"] if term.get("type") == "ref" else [term]
    head = parts[0].get("value") if parts[0].get("type") == "var" else None
    start: Path | None = () if head == "input" else aliases.get(head) if isinstance(head, str) else None
    if start is None:
        return None
    return (*start, *(p["value"] if p.get("type") == "string" else None for p in parts[1:]))


def _read(rule: Json, aliases: Mapping[str, Path]) -> Iterator[tuple[int, Path]]:
    for node in _nodes(rule):
        if node.get("type") == "ref" and (path := _path(node, aliases)):
            yield node["location"]["row"], path
    for operator, *operands in _calls(rule):
        if _name_of(operator) != "object.get" or (path := _path(operands[0], aliases)) is None:
            continue
        match operands[1]:
            case {"type": "string", "value": str(key)}:
                yield operator["location"]["row"], (*path, key)
            case {"type": "array", "value": [*keys]}:
                found = (k["value"] if k.get("type") == "string" else None for k in keys)
                yield operator["location"]["row"], (*path, *found)


def _unknown(schema: Json, path: Path) -> str:
    """Return why no request has such a path, with the nearest one that exists; an empty text if one has."""
    at: list[Json] = [schema]
    if path[0] == "requests":  # the input of a rule `batch`
        return ""
    for depth, key in enumerate(path):
        found = [child for node in at for child in _members(schema, node, key)]
        if not found:
            told = _dotted(path[: depth + 1])
            near = _nearest(schema, path[:depth], str(key), at)
            return f"`{told}` is not in a request, so the rule never holds; {near}"
        at = found
    return ""


def _members(schema: Json, node: Json, key: str | None) -> Iterator[Json]:
    for shape in _shapes(schema, node):
        if not shape.keys() & {"type", "properties", "items", "additionalProperties", "enum", "const"}:
            yield {}  # any JSON
        properties, free = shape.get("properties", {}), shape.get("additionalProperties", "properties" not in shape)
        if key is not None and key in properties:
            yield properties[key]
        elif key is None:
            yield from properties.values()
        if shape.get("type") == "object" and free and key not in properties:
            yield free if isinstance(free, dict) else {}
        if shape.get("type") == "array" and key is None:
            yield shape.get("items", {})


def _shapes(schema: Json, node: Json) -> Iterator[Json]:
    """Yield a node's alternatives, with references followed."""
    if "$ref" in node:
        yield from _shapes(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    elif "anyOf" in node:
        for one in node["anyOf"]:
            yield from _shapes(schema, one)
    else:
        yield node


def _nearest(schema: Json, parent: Path, key: str, at: Iterable[Json]) -> str:
    siblings = {name for node in at for shape in _shapes(schema, node) for name in shape.get("properties", {})}
    if meant := get_close_matches(key, siblings, 1, 0.7):
        return f"`{_dotted((*parent, meant[0]))}` is"
    known, free = _all_paths(schema)
    if moved := [path for path in known if path[-1] == key]:
        return f"`{_dotted(min(moved, key=len))}` is"
    own = ", ".join(f"`{_dotted(path)}`" for path in free if path[-1] != "grant")
    return f"names of your own are members of {own}"


def _all_paths(schema: Json) -> tuple[list[Path], list[Path]]:
    """Return the named paths of a request, and those below which any name may stand."""
    known: list[Path] = []
    free: list[Path] = []

    def walk(node: Json, path: Path) -> None:
        for shape in _shapes(schema, node):
            for name, child in shape.get("properties", {}).items():
                if len(path) < _MAX_DEPTH:
                    known.append((*path, name))
                    walk(child, (*path, name))
            if isinstance(own := shape.get("additionalProperties"), dict) and {} in _shapes(schema, own):
                free.append(path)
            if shape.get("type") == "array":
                walk(shape.get("items", {}), (*path, None))

    walk(schema, ())
    return known, free


def _dotted(path: Path) -> str:
    return "input" + "".join("[_]" if key is None else f".{key}" for key in path)
