"""Find mistakes in Rego that OPA accepts.

A rule that reads a member that no request has is undefined. The rule never fires, and no engine reports the mistake. So
OPA's type checker compares each path below `input` with the request's JSON Schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from langchain_runtime_authz.cli.policy.open_policy import SHIPPED_REGO, Policy, policy_directory, run_opa
from langchain_runtime_authz.evaluation import request_schema
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, merge_shipped, wrong_data

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
_GET: Final = re.compile(r'(\bobject\.get\(\s*([\w.]+)\s*,\s*)("\w+"|\[(?:\s*"\w+"\s*,?)+\])')
_ABSENT: Final = object()
_HEAD: Final = re.compile(r"(?:default\s+)?(?!(?:package|import|else)\b)([a-zA-Z_]\w*)")
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')


def lint_rego(files: Mapping[str, str]) -> Iterator[str]:
    """Yield `file:line: error` for negated comparisons and built-ins not in Wasm."""
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


def lint_names(files: Mapping[str, str], entrypoint: str, data: Mapping[str, Any]) -> Iterator[str]:
    """Yield `file:line: error` for rules that nothing reads, and missing `data` paths."""
    packages = [f".{one}." for text in files.values() for one in re.findall(r"^package\s+([\w.]+)", text, re.MULTILINE)]
    heads: list[tuple[str, int, str]] = []
    read = {entrypoint.rpartition("/")[2], "batch"}
    for name, text in files.items():
        depth = 0
        for number, line in enumerate(text.splitlines(), 1):
            code = _STRING.sub('""', line).partition("#")[0]
            head = None if depth else _HEAD.match(code)
            heads += [(name, number, head[1])] if head else []
            read.update(re.findall(r"\w+", code[head.end() if head else 0 :]), re.findall(r'\["(\w+)"\]', line))
            for path in re.findall(r"(?<!not )(?<!with )(?<![.\w])data((?:\.\w+)+)", code):  # these may be absent
                node: Any = data
                known = any(f"{path}.".startswith(one) or one.startswith(f"{path}.") for one in packages)
                for part in () if known else path[1:].split("."):
                    node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
                if node is _ABSENT:
                    yield f"{name}:{number}: `data{path}` is not in data.json, so it is undefined"
            depth += sum(map(code.count, "{[(")) - sum(map(code.count, "}])"))
    for name, number, rule in heads:
        if rule not in read:
            meant = get_close_matches(rule, {"denied", "asked", "approval_terms", "obliged"}, 1)
            more = f"; `{meant[0]}` is meant, or another name" if meant else ""
            yield f"{name}:{number}: nothing reads the rule `{rule}`, so it changes no decision{more}"


def lint_paths(files: Mapping[str, str]) -> Iterator[str]:
    """Yield `file:line: error` for each path below `input` that no request has."""
    schema = request_schema()
    schema = _plain(schema, schema["$defs"])
    names = {f"{number}.rego": name for number, name in enumerate(files)}
    texts = {file: _GET.sub(_reading, text) for file, text in zip(names, files.values(), strict=True)}
    options = ("--schema", "schema.json", "--format", "json", "--max-errors", "0")
    with policy_directory({**texts, "schema.json": json.dumps(schema)}) as at:
        found = run_opa("check", *options, *names, cwd=at, findings=True)
    for error in json.loads(found or "{}").get("errors", ()):
        if what := _mistake(schema, error["message"], error.get("details") or {}):
            yield f"{names[error['location']['file']]}:{error['location']['row']}: {what}"


def _mistake(schema: Any, message: str, told: Mapping[str, Any]) -> str | None:
    """Explain OPA's type error; None unless it is about members of an object."""
    if message == "match error" and [told[one].get("type") for one in "ab"] == ["object"] * 2:
        return "two objects are equal only if all members are, so the rule never holds; read each member by its path"
    kind = (told.get("have") or {}).get("type")
    scalar = kind in ("string", "number", "boolean")
    if not message.startswith("undefined ref") or not (told.get("oneOf") or scalar):
        return None
    *way, last = told["ref"][: told["pos"] + 1 + scalar]
    before = "".join(f".{p['value']}" if p["type"] == "string" else "[_]" for p in way[1:])
    before = f"{way[0]['value']}{before}"
    if (before, last["value"]) == ("input", "requests"):  # only a rule `batch` has this input
        return None
    near = f"`{before}` is a {kind}" if scalar else _nearest(schema, before, str(last["value"]), told["oneOf"])
    return f"`{before}.{last['value']}` is not in a request, so the rule never holds; {near}"


def _reading(get: re.Match[str]) -> str:
    """Rewrite an `object.get` as a path, which OPA only type-checks, never evaluates."""
    path = ".".join([get[2], *re.findall(r"\w+", get[3])])
    return f"{get[1]}[{path}, {get[3]}][1]"


def _plain(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with references resolved and without `null`."""
    if isinstance(node, list):
        return [_plain(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rpartition("/")[2]], definitions)
    found = {name: _plain(value, definitions) for name, value in node.items() if name != "$defs"}
    rest = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    return rest[0] if len(rest) == 1 else found


def _nearest(schema: Any, before: str, name: str, siblings: list[str]) -> str:
    if meant := get_close_matches(name, siblings, 1, 0.7):
        return f"`{before}.{meant[0]}` is"
    if moved := list(_places(schema, name, "input")):
        return f"`{min(moved, key=len)}` is"
    own = ("input.subject.properties", "input.resource.properties", "input.context.call.args")
    return f"names of your own are members of {', '.join(f'`{one}`' for one in own)}"


def _places(node: Any, name: str, path: str) -> Iterator[str]:
    for key, child in node.get("properties", {}).items():
        yield from [f"{path}.{key}"] * (key == name)
        yield from _places(child, name, f"{path}.{key}")
    for child in (node.get("items"), node.get("additionalProperties")):
        if isinstance(child, dict):
            yield from _places(child, name, f"{path}[_]")


def lint_policy(policy: Policy, own: Mapping[str, str]) -> list[str]:
    """Return mistakes in a compiled policy. `own`: files that `lint_rego` has checked."""
    found = list(lint_rego({n: t for n, t in policy.rego.items() if n not in own}))
    whole = policy.data if policy.wasm is not None else merge_shipped(policy.data, own=True)
    if not all(name.endswith(SHIPPED_REGO) for name in policy.rego):
        found += [*lint_paths(policy.rego), *lint_names(policy.rego, policy.entrypoint, whole)]
    data = whole.get(DATA_ROOT, {})
    return found + [f"data.json: {line}" for line in wrong_data(data if isinstance(data, dict) else {})]
