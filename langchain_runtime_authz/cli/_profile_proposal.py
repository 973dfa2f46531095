"""Guess a tool's profile from its name, description and schema.

A foreign server may have chosen the name and the description. So a guess that would lower the tool's risk (a read, an
internal sink, orders) is a *doubt*, which becomes a comment for a reviewer. Every other guess is a *fact*, and part of
the proposal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from langchain_core.tools import BaseTool

from langchain_runtime_authz._validate import as_list
from langchain_runtime_authz.cli._app import yaml_flow, yaml_scalar
from langchain_runtime_authz.langgraph.private_api import injected_names
from langchain_runtime_authz.langgraph.tool_facts import arguments_of, digest_of
from langchain_runtime_authz.mandate.step_places import RISKY
from langchain_runtime_authz.tool_profile import EFFECTS, HARMLESS, UNPROFILED, Effect, raise_by_hints

MAX_DEPTH: Final = 4


class GuessDoubt(NamedTuple):
    """A guessed field of a profile (`fact`) that only a reviewer can confirm, and why."""

    fact: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A guessed profile, with reasons and doubts."""

    name: str
    facts: dict[str, Any]  # fields of a `ToolProfile`, under their names in a file
    why: dict[str, str]  # field → the reason for the guess
    doubts: tuple[GuessDoubt, ...]  # facts that would lower the risk
    unknown: tuple[str, ...]  # arguments of unknown meaning

    def yaml(self) -> str:
        """Return the tool's entry for a profile file, with `draft: true`."""
        lines = [f"  {yaml_scalar(self.name)}:", "    draft: true  # reviewed? remove this line"]
        for fact, value in self.facts.items():
            why = self.why.get(fact)
            lines.append(f"    {fact}: {yaml_flow(value)}" + (f"  # DOUBT: {why}" if why else ""))
            lines += [
                f"    # {fact}: {yaml_flow(d.value)}  # DOUBT: or this, {d.why}" for d in self.doubts if d.fact == fact
            ]
        new = (d for d in self.doubts if d.fact not in self.facts)
        lines += [f"    # {d.fact}: {yaml_flow(d.value)}  # DOUBT: {d.why}" for d in new]
        if self.unknown:
            lines.append(f"    # DOUBT: nothing is known of {', '.join(json.dumps(s) for s in self.unknown)}")
        return "\n".join(lines)


def propose(tool: BaseTool, tools: Sequence[BaseTool] = ()) -> Proposal:
    """Guess a tool's profile from its declaration. `tools`: all tools of its graph."""
    paths = dict(_paths(arguments_of(tool), injected_names(tool)))
    words = _named(tool.name)
    kinds = {p: _new(kind, p, words) for p, s in paths.items() if (kind := _kind(p, s)) is not None}
    effect, why_effect = max(_effects(tool, words, kinds), key=lambda e: EFFECTS.index(e[0]))
    searches = words[0] in _SEARCHES and not set(words) & (_WRITES | _CODE)
    if effect == UNPROFILED.effect and searches:  # `fetch` is the riskiest that a search can be
        effect, why_effect = "fetch", "it searches, by its name; `write` if it changes anything"
    doubts = tuple(_milder(tool, words, kinds, effect))
    acts = effect not in HARMLESS and not any(d.fact == "effect" for d in doubts)
    silent = {p: _unknown(s) for p, s in paths.items() if p not in kinds}
    closed = {p for p, s in paths.items() if _is_closed(s)}
    unknown = tuple(n for n in _top(p for p in silent if p not in closed) if n not in _top(kinds))
    if acts:  # an argument of unknown meaning is critical, unless it is a boolean
        kinds |= {p: kind for p, kind in silent.items() if kind}
    if effect in ("send", "pay"):
        kinds |= {p: "principal" for p, kind in kinds.items() if kind == "object" and _last(p)[-1] in _ENDS}
    when = [p for p, kind in kinds.items() if kind == "when"]
    text = [p for p, kind in kinds.items() if kind == "text"]
    critical = {p: kind for p, kind in kinds.items() if kind not in ("when", "text")}
    if effect == "fetch":  # of a search, only the address is critical, not the words
        text += [p for p, kind in critical.items() if kind == "value" and p not in closed]
        critical = {p: kind for p, kind in critical.items() if kind != "value"}
    text = [t for t in _top(text) if t not in _top([*critical, *when])]
    confidential = _CONFIDENTIAL.intersection(_words(tool.name))
    facts = {
        "effect": effect,
        "sink": UNPROFILED.sink,
        "critical": critical,
        "when": when,
        "text": text,
        "class": "confidential" if confidential else UNPROFILED.data_class,
        "trust": UNPROFILED.trust,
        "prose": [""] if _PROSE.intersection(_words(tool.name)) else None,
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
    if acts and (intent := _intent(tool, words, tools)):
        doubts += (GuessDoubt("intent", intent, "words by which a user orders it"),)
    return Proposal(tool.name, facts, why, doubts, unknown)


def _effects(tool: BaseTool, words: list[str], kinds: Mapping[str, str]) -> Iterator[tuple[Effect, str]]:
    """Yield the effects that the declaration hints at, with reasons."""
    yield UNPROFILED.effect, "its name tells nothing worse"
    hinted = raise_by_hints(UNPROFILED, tool.metadata, tool.name).effect
    if hinted != UNPROFILED.effect:
        annotated = (tool.metadata or {}).get("destructiveHint") is True
        yield hinted, "its annotations say so" if annotated else "its name says so"
    said = _verb(tool.description)
    yield raise_by_hints(UNPROFILED, None, said).effect, "its description begins so"
    for effect, verbs in _EFFECTS.items():
        if words[0] in verbs or (words[0] in _MAKES | _VAGUE and verbs.intersection(words[1:])):
            yield effect, "its name says so"
        if said in verbs:
            yield effect, "its description begins so"
    if words[0] in _READS - _RUNS:
        return
    if any(kind == "principal" and _last(p)[-1] not in _WEAK for p, kind in kinds.items()):
        paid = any(kind == "amount" and _MONEY.intersection(_last(p)) for p, kind in kinds.items())
        yield ("pay", "it takes an amount and whom it is for") if paid else ("send", "it takes people")
    taken = {w for p in kinds for w in _last(p)}
    runs = words[0] in _RUNS | _CODE and (taken | {*_words(tool.name)}) & (_CODE | _PROGRAMS)
    if runs or (taken & _CODE and words[0] not in _WRITES):
        yield "admin", "it runs what an argument says"


def _milder(tool: BaseTool, words: list[str], kinds: Mapping[str, str], effect: Effect) -> Iterator[GuessDoubt]:
    said, hints = _verb(tool.description), tool.metadata or {}
    schemas = arguments_of(tool)
    more = _PARTICLES.intersection(words[1:2]) or {"and", "or"}.intersection(words) or said in _VERBS - _READS
    more = more or any(_words(n)[0] in _VERBS - _READS for n, s in schemas.items() if _types(s) == {"boolean"})
    more = more or "text" in kinds.values() or any(_QUANTITY.intersection(_last(p)) for p in kinds)
    looks = (words[0] in _READS and not more) or words[:2] == ["look", "up"]
    hint = hints.get("readOnlyHint") is True
    acts = raise_by_hints(UNPROFILED, hints, " ".join(w for w in words if w not in _NOUNS)).effect
    mild = effect in (UNPROFILED.effect, "fetch") or (looks and acts == UNPROFILED.effect and effect != "admin")
    numbers = all(_unknown(s) == "amount" for s in schemas.values())
    if mild and (looks or hint):
        why = "an annotation says that it only reads" if hint else f"its name begins with {json.dumps(words[0])}"
        web = _WEB.intersection(_words(tool.name)) or (_WEB - {"page"}).intersection(_words(tool.description))
        alone = words[0] in _SEARCHES and not words[1:]
        out = hints.get("openWorldHint") is True or web or alone or "url" in kinds.values()
        if out and effect != "fetch":
            yield GuessDoubt("effect", "fetch", f"as the address is seen outside: {why}")
        elif not out:
            yield GuessDoubt("effect", "read", f"if it looks into nothing outside: {why}")
            yield GuessDoubt("sink", "none", "if it is a read that sends nothing outside")
    elif effect == UNPROFILED.effect and words[0] in _COMPUTES and (words[0] not in _WRITES or numbers):
        yield GuessDoubt("effect", "compute", "if it works on its arguments alone; then without `sink`")
    elif effect in ("write", "delete") and not {"url", "channel"}.intersection(kinds.values()):
        yield GuessDoubt("sink", "internal", "if its data stays in the organisation")


def _intent(tool: BaseTool, words: list[str], tools: Sequence[BaseTool]) -> list[str]:
    """Return verbs that order the tool, with its nouns if other tools share the verb."""
    own, nouns = _orders(words)
    rivals = [one for t in tools if t.name != tool.name for one in [_orders(_named(t.name))] if {*own} & {*one[0]}]
    if any({*nouns} <= {*named} for _, named in rivals):
        return []
    shared = {verb for verbs, _ in rivals for verb in verbs} | _VAGUE
    return [" ".join([verb, *nouns]) if verb in shared.difference(nouns) else verb for verb in own]


def _orders(words: list[str]) -> tuple[list[str], list[str]]:
    """Return (verbs that order a tool, nouns in its name up to a preposition)."""
    if words[0] not in _VERBS or words[0] in _READS:
        return [], []
    verb, *nouns = words
    particle = "".join(f" {n}" for n in nouns[:1] if n in _PARTICLES)
    nouns = nouns[bool(particle) :]
    end = next((n for n, w in enumerate(nouns) if n and w in _SMALL), None)
    nouns = [n for n in nouns[:end] if n not in _SMALL]
    groups = [g for of, groups in _SYNONYMS.items() for g in groups if not of or {*of.split()} & {*nouns}]
    named = {*nouns} if verb in _MAKES | _VAGUE else ()  # `add_comment` is also ordered by "comment"
    said = [w for g in groups if verb in g.split() or {*g.split()}.intersection(named) for w in g.split()]
    return [w + particle for w in dict.fromkeys([verb, *said])], nouns


def _paths(
    properties: Mapping[str, Any], left_out: Collection[str] = (), before: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    for name, schema in properties.items() if depth <= MAX_DEPTH else ():
        if name in left_out or not isinstance(schema, Mapping):
            continue
        inner = next((s for s in _alternatives(schema) if isinstance(s.get("properties"), Mapping)), None)
        if inner is None:
            yield before + name, schema
        else:
            yield from _paths(inner["properties"], (), f"{before}{name}.", depth + 1)


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


def _kind(path: str, schema: Mapping[str, Any]) -> str | None:
    """Return an argument's kind by its format, name or description, or `None`."""
    formats = {str(part.get("format")) for part in _alternatives(schema)} & _FORMAT_KINDS.keys()
    if formats:
        return min(_FORMAT_KINDS[known] for known in formats)
    types = _types(schema)
    if types and types <= {"boolean", "null"}:
        return None
    kind = _by_name(_last(path), numeric=bool(types & {"number", "integer"}) and "string" not in types)
    if _is_closed(schema):
        return kind if kind not in ("text", "when", "amount") else None
    said = " ".join(str(part.get("description", "")) for part in _alternatives(schema)).lower()
    marked = (k for mark, k in _MARKS.items() if re.search(rf"\b{mark}\b", said))
    return next(marked, kind) if kind in (None, "object", "value") else kind


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """Return True if an argument takes only the texts that its schema lists."""
    texts = [part for part in _alternatives(schema) if part.get("type") == "string" or "enum" in part]
    listed = [as_list(part.get("enum")) or [part.get("const", 0)] for part in texts]
    return bool(listed) and all(text is None or isinstance(text, str) for one in listed for text in one)


def _by_name(words: list[str], *, numeric: bool) -> str | None:
    """Return the kind that a name's words tell, last word first: `user_id` is a user."""
    weak = None
    for word in reversed(words):
        kind = next((kind for kind, names in _KINDS if word in names), None)
        if kind is None or (numeric and weak is None and kind not in ("amount", "object")):
            continue
        if word in _WEAK:
            weak = weak or kind
        elif weak is not None:
            theirs = kind in ("principal", "channel") and not (word in _LETTERS and weak == "object")
            return kind if theirs or (weak == "place" and kind == "url") else weak
        elif kind != "text" or word == words[-1]:
            return kind
    return weak


def _unknown(schema: Mapping[str, Any]) -> str | None:
    """Return the kind of an argument of unknown meaning; `None` for a boolean."""
    types = _types(schema) - {"null"}
    return None if types == {"boolean"} else "amount" if types and types <= {"number", "integer"} else "value"


def _new(kind: str, path: str, words: list[str]) -> str:
    """Return `kind`; `name` in place of `object` if the tool creates that object."""
    named = _last(path)
    there = kind != "object" or words[0] not in _MAKES or named[-1] in _WEAK - {"name", "names"}
    return "name" if not there and {"filename", "path", "name", *words[1:]}.intersection(named) else kind


def _verb(description: str) -> str:
    """Return the first word in the imperative: `Sends a mail` is `send`."""
    first = next(iter(_words(description)), "")
    return first[:-1] if first.endswith("s") and not first.endswith("ss") else first


def _last(path: str) -> list[str]:
    return _words(path.rsplit(".", 1)[-1])


def _named(name: str) -> list[str]:
    """Return a name's words from its verb on: post, message for `slack_post_message`."""
    words = _words(name)
    return words[next((n for n, w in enumerate(words) if w in _VERBS), 0) :]


def names_other(verb: str, effect: Effect) -> bool:
    """Return True if `effect` deletes, pays or grants, and `verb` says something else."""
    paid = " ".join(_SYNONYMS["money funds cash payment"]).split() if effect == "pay" else ()  # "Send 45 EUR to Bob"
    return effect in RISKY and verb not in _EFFECTS[effect].union(paid, _RUNS if effect == "admin" else ())


def _words(name: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(name[:200])] or [""]


_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# The words of names and descriptions, in English. `_KINDS` is in the order in which they are tried.
_KNOWN: Final = json.loads(Path(__file__).with_name("proposal_words.json").read_text("utf-8"))
_FORMAT_KINDS: Final[Mapping[str, str]] = _KNOWN["formats"]
_KINDS: Final[list[tuple[str, frozenset[str]]]] = [(kind, frozenset(w.split())) for kind, w in _KNOWN["kinds"].items()]
_EFFECTS: Final[Mapping[Effect, frozenset[str]]] = {
    effect: frozenset(words.split()) for effect, words in _KNOWN["effects"].items()
}
_SYNONYMS: Final[Mapping[str, list[str]]] = _KNOWN["synonyms"]
_MARKS: Final[Mapping[str, str]] = _KNOWN["marks"]
_READS, _SEARCHES, _COMPUTES, _WRITES, _MAKES, _VAGUE, _RUNS, _CODE, _PROGRAMS, _WEB, _PROSE, _CONFIDENTIAL = (
    frozenset[str](_KNOWN[name].split())
    for name in "reads searches computes writes makes vague runs code programs web prose confidential".split()  # noqa: SIM905
)
_NOUNS, _WEAK, _MONEY, _ENDS, _SMALL, _PARTICLES = (
    frozenset[str](_KNOWN[name].split())
    for name in "nouns weak money ends small particles".split()  # noqa: SIM905
)
_QUANTITY: Final = frozenset({"amount", "quantity"})
_LETTERS: Final = frozenset({"email", "mail"})
_VERBS: Final = frozenset({*_READS, *_COMPUTES, *_WRITES, *_RUNS}).union(*_EFFECTS.values())
