"""Guess a tool's profile from its name, description and schema.

A *fact* keeps or raises the tool's risk and is part of the proposal. A *doubt* would lower the risk (a read, an inner
sink, words of intent) and is a comment for a reviewer. Names and descriptions may come from a server, so they never
lower a risk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_runtime_authz.cli._app import flow, scalar
from langchain_runtime_authz.langgraph.private_api import injected_names
from langchain_runtime_authz.langgraph.tool_lookup import digest_of
from langchain_runtime_authz.tool_profile import EFFECTS, UNPROFILED, Effect, raise_by_hints

MAX_DEPTH: Final = 4


class Doubt(NamedTuple):
    """A fact that only a reviewer can confirm, and the reason for the guess."""

    fact: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Proposal:
    name: str
    facts: dict[str, Any]  # fields of a `ToolProfile`, under their names in a file
    why: dict[str, str]  # field → the reason for the guess
    doubts: tuple[Doubt, ...]  # facts that would lower the risk
    silent: tuple[str, ...]  # arguments of unknown meaning

    def yaml(self) -> str:
        """Return a profile file's stanza: a draft, which lowers no risk until reviewed."""
        lines = [f"  {scalar(self.name)}:", "    draft: true  # reviewed? remove this line"]
        for fact, value in self.facts.items():
            why = self.why.get(fact)
            lines.append(f"    {fact}: {flow(value)}" + (f"  # DOUBT: {why}" if why else ""))
        lines += [f"    # {d.fact}: {flow(d.value)}  # DOUBT: {d.why}" for d in self.doubts]
        if self.silent:
            lines.append(f"    # DOUBT: nothing is known of {', '.join(json.dumps(s) for s in self.silent)}")
        return "\n".join(lines)


def propose(tool: BaseTool) -> Proposal:
    """Guess the profile of `tool`, from its declaration alone."""
    schema = _schema(tool)
    paths = dict(_paths(schema.get("properties", {}), set(injected_names(tool))))
    words = _words(tool.name)
    critical = {p: _new(kind, p, words) for p, s in paths.items() if (kind := _kind(p, s)) is not None}
    timed = (p for p, s in paths.items() if _formats(s) & {"date", "date-time", "time"} or _is_text(p, s, _TIMES))
    when = [p for p in timed if p not in critical]
    text = _top([p for p, s in paths.items() if p not in critical and p not in when and _is_text(p, s, _TEXTS)])
    text = [t for t in text if t not in {p.split(".")[0] for p in (*critical, *when)}]
    named = {p.split(".")[0] for p in (*critical, *when, *text)}

    hinted = raise_by_hints(UNPROFILED, tool.metadata, tool.name)
    said = raise_by_hints(hinted, None, _verb(tool.description))
    by_words = "its description begins so" if said.effect != UNPROFILED.effect else "nothing says more"
    if hinted.effect != UNPROFILED.effect:
        annotated = (tool.metadata or {}).get("destructiveHint") is True
        by_words = "its annotations say so" if annotated else "its name says so"
    # The riskiest of its words and its arguments.
    by_arguments = _by_arguments(words, critical)
    effect, why_effect = max(((said.effect, by_words), *by_arguments), key=lambda e: EFFECTS.index(e[0]))
    searches = set(words) & _SEARCHES and not set(words) & (_WRITES | _CODE)
    if effect == UNPROFILED.effect and searches:  # as risky as a search can be
        effect, why_effect = "fetch", "it searches, by its name; `write` if it changes anything"
    if effect == "fetch":  # the free words of a search decide nothing, but its address does
        text = list(dict.fromkeys([*text, *_top(p for p, kind in critical.items() if kind == "value")]))
        critical = {p: kind for p, kind in critical.items() if kind != "value"}
    confidential = set(words) & _CONFIDENTIAL
    facts = {
        "effect": effect,
        "sink": UNPROFILED.sink,
        "critical": critical,
        "when": when,
        "text": text,
        "class": "confidential" if confidential else UNPROFILED.data_class,
        "trust": UNPROFILED.trust,
        "prose": [""] if set(words) & _PROSE else None,
        "digest": digest_of(tool),
    }
    facts = {fact: value for fact, value in facts.items() if value}
    why = {
        "effect": why_effect,
        "sink": "where do its arguments end up?",
        "critical": "by the names and types of its arguments",
        "class": "its name speaks of it" if confidential else "what does it return?",
        "trust": "who writes its output? By field, if that differs",
        "prose": "free text by its name; name the fields, if it has any",
    }
    doubts = tuple(_milder(tool, words, critical, effect))
    asks = words[0] and words[0] not in _READS and effect not in ("read", "fetch")
    if asks and not (doubts and doubts[0].fact == "effect"):
        doubts += (Doubt("intent", [words[0]], "the words by which a user asks for it"),)
    return Proposal(tool.name, facts, why, doubts, tuple(n for n in _top(paths) if n not in named))


def _by_arguments(words: list[str], critical: Mapping[str, str]) -> Iterator[tuple[Effect, str]]:
    kinds = set(critical.values())
    if words[0] not in _READS and "principal" in kinds:
        yield ("pay", "it takes an amount and whom it is for") if "amount" in kinds else ("send", "it takes people")
    if words[0] in _CODE | {"run"} and critical.keys() & _CODE:
        yield "admin", "it runs what an argument says"


def _milder(tool: BaseTool, words: list[str], critical: Mapping[str, str], effect: Effect) -> Iterator[Doubt]:
    if effect not in (UNPROFILED.effect, "fetch"):
        if effect in ("delete", "admin"):
            yield Doubt("sink", "internal", "if its arguments stay in the organisation")
        return
    hint = (tool.metadata or {}).get("readOnlyHint") is True
    if hint or words[0] in _READS:
        why = "an annotation says that it only reads" if hint else f"its name begins with {json.dumps(words[0])}"
        out = "url" in critical.values() or (tool.metadata or {}).get("openWorldHint") is True or set(words) & _WEB
        if out:
            if effect != "fetch":
                yield Doubt("effect", "fetch", f"{why}; the address is seen outside")
            return
        yield Doubt("effect", "read", f"{why}, if it looks into nothing outside")
        yield Doubt("sink", "none", "a read that sends nothing outside")
    elif words[0] in _COMPUTES:
        yield Doubt("effect", "compute", "if it works on its arguments alone; then without `sink`")
    elif words[0] in _WRITES:
        yield Doubt("sink", "internal", "if its data stays in the organisation")


def _schema(tool: BaseTool) -> Mapping[str, Any]:
    try:
        found: Any = convert_to_openai_tool(tool)["function"].get("parameters")
    except (ValueError, TypeError, KeyError):  # it has no schema, or its schema has no JSON form
        found = None
    return found if isinstance(found, Mapping) else {}


def _paths(properties: object, left_out: set[str], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if not isinstance(properties, Mapping) or depth > MAX_DEPTH:
        return
    for name, schema in properties.items():
        if name in left_out or not isinstance(schema, Mapping):
            continue
        inner = next((s for s in _alternatives(schema) if isinstance(s.get("properties"), Mapping)), None)
        if inner is None:
            yield before + name, schema
        else:
            yield from _paths(inner["properties"], set(), f"{before}{name}.", depth + 1)


def _alternatives(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield schema
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ()), schema.get("items")):
        if isinstance(part, Mapping):
            yield part
            if isinstance(part.get("items"), Mapping):
                yield part["items"]


def _top(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(p.split(".")[0] for p in paths))


def _types(schema: Mapping[str, Any]) -> set[str]:
    named = (part.get("type") for part in _alternatives(schema))
    return {kind for one in named for kind in (one if isinstance(one, list) else [one]) if isinstance(kind, str)}


def _formats(schema: Mapping[str, Any]) -> set[str]:
    return {f for part in _alternatives(schema) if isinstance(f := part.get("format"), str)}


def _kind(path: str, schema: Mapping[str, Any]) -> str | None:
    """Return a critical argument's kind, by format or the last known word of its name."""
    if by_format := _formats(schema) & _FORMAT_KINDS.keys():
        return _FORMAT_KINDS[min(by_format)]
    types = _types(schema)
    if types and types <= {"boolean", "null"}:
        return None
    words = _last(path)
    numeric = bool(types & {"number", "integer"}) and "string" not in types
    for word in reversed(words):
        for kind, names in _KINDS:
            if word in names and (not numeric or kind in ("amount", "object")):
                return kind
    return None


def _new(kind: str, path: str, words: list[str]) -> str:
    """Return `name` instead of `object` for an object that the tool has yet to make."""
    if kind != "object" or words[0] not in _MAKES:
        return kind
    return "name" if set(_last(path)) & {"filename", "path", *words[1:]} else kind


def _is_text(path: str, schema: Mapping[str, Any], lexicon: frozenset[str]) -> bool:
    return bool(set(_last(path)) & lexicon) and "string" in (_types(schema) or {"string"})


def _verb(description: str) -> str:
    """Return the first word in the imperative: `Sends a mail` is `send`."""
    first = next(iter(_words(description)), "")
    return first[:-1] if first.endswith("s") and not first.endswith("ss") else first


def _last(path: str) -> list[str]:
    return _words(path.rsplit(".", 1)[-1])


def _words(name: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(name[:200])] or [""]


_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# The words of names and descriptions, in English. `_KINDS` is in the order in which they are tried.
_KNOWN: Final = json.loads(Path(__file__).with_name("proposal_words.json").read_text("utf-8"))
_FORMAT_KINDS: Final[Mapping[str, str]] = _KNOWN["formats"]
_KINDS: Final[list[tuple[str, frozenset[str]]]] = [
    (kind, frozenset(words.split())) for kind, words in _KNOWN["kinds"].items()
]
_READS, _SEARCHES, _COMPUTES, _WRITES, _MAKES, _WEB, _CODE, _PROSE, _CONFIDENTIAL, _TIMES, _TEXTS = (
    frozenset[str](_KNOWN[name].split())
    for name in "reads searches computes writes makes web code prose confidential times texts".split()  # noqa: SIM905
)
