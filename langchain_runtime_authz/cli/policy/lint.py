"""Find in Rego what OPA accepts and its author does not mean.

A rule that reads a member that no request has is undefined: it never fires, and no engine says so. So each path below
`input` is held against the request's JSON Schema.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path as File
from typing import Any, Final

from langchain_runtime_authz.authzen import request_schema
from langchain_runtime_authz.cli.policy.project import run_opa

__all__ = ["lint_paths", "lint_rego"]

Json = Mapping[str, Any]
Path = tuple[str | None, ...]  # None: a name or an index that is not written out
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
    known, free = _paths(request_schema())
    imported: dict[str, Path] = {}
    for one in module.get("imports", ()):
        if (path := _path(one["path"], {})) is not None:
            imported[one.get("alias") or str(path[-1] if path else "input")] = path
    for rule in module.get("rules", ()):
        aliases, bound = dict(imported), Counter[str]()
        for terms in _calls(rule):  # `c := input.context`, `some e in input.context.delegation.edges`
            match [_name_of(term) for term in terms]:
                case ["assign" | "eq", str(local), *_]:
                    below: Path = ()
                case ["internal.member_2" | "internal.member_3", *_, str(local), _]:
                    below = (None,)
                case _:
                    continue
            bound[local] += 1
            if (path := _path(terms[-1], aliases)) is not None:
                aliases[local] = (*path, *below)
        once = {local: path for local, path in aliases.items() if bound[local] < 2}  # noqa: PLR2004  (one name, one meaning)
        for row, path in _read(rule, once):
            if path[0] != "requests" and (why := _unknown(known, free, path)):  # those are the input of a rule `batch`
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
        if _name_of(operator) == "object.get" and (path := _path(operands[0], aliases)) is not None:
            keys = operands[1]["value"] if operands[1].get("type") == "array" else [operands[1]]
            found = (key["value"] if key.get("type") == "string" else None for key in keys)
            yield operator["location"]["row"], (*path, *found)


def _unknown(known: list[Path], free: list[Path], path: Path) -> str:
    """Return why no request has such a path, with the nearest one that exists; an empty text if one has."""
    for depth in range(1, len(path) + 1):
        part = path[:depth]
        if any(_fits(part[: len(root)], root) for root in free):
            break
        if not any(_fits(part, one) for one in known):
            return f"`{_dotted(part)}` is not in a request, so the rule never holds; {_nearest(known, free, part)}"
    return ""


def _fits(path: Path, other: Path) -> bool:
    return len(path) == len(other) and all(a is None or b is None or a == b for a, b in zip(path, other, strict=True))


def _nearest(known: list[Path], free: list[Path], path: Path) -> str:
    siblings = [one[-1] for one in known if one[-1] is not None and _fits(one[:-1], path[:-1])]
    if meant := get_close_matches(str(path[-1]), siblings, 1, 0.7):
        return f"`{_dotted((*path[:-1], meant[0]))}` is"
    if moved := [one for one in known if one[-1] == path[-1]]:
        return f"`{_dotted(min(moved, key=len))}` is"
    own = ", ".join(f"`{_dotted(one)}`" for one in free if one[-1] != "grant")
    return f"names of your own are members of {own}"


def _paths(schema: Json) -> tuple[list[Path], list[Path]]:
    """Return the paths that a request may have, and those below which anything may stand."""
    known: list[Path] = []
    free: list[Path] = []

    def walk(node: Json, path: Path) -> None:
        if path:
            known.append(path)
        for shape in _shapes(schema, node):
            for name, child in shape.get("properties", {}).items():
                walk(child, (*path, name))
            for child in (shape.get("additionalProperties"), shape.get("items")):
                if isinstance(child, dict) and {} in _shapes(schema, child):
                    free.append(path)
                elif isinstance(child, dict):
                    walk(child, (*path, None))

    walk(schema, ())
    return known, free


def _shapes(schema: Json, node: Json) -> Iterator[Json]:
    """Yield a node's alternatives, with references followed."""
    if "$ref" in node:
        yield from _shapes(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    elif "anyOf" in node:
        for one in node["anyOf"]:
            yield from _shapes(schema, one)
    else:
        yield node


def _dotted(path: Path) -> str:
    return "input" + "".join("[_]" if key is None else f".{key}" for key in path)
