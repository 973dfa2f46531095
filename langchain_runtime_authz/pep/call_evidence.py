"""Find where a call's arguments came from, and tell approvers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from langchain_runtime_authz._display import error_text, inert, quoted, scripts
from langchain_runtime_authz.facts import provenance as tracing
from langchain_runtime_authz.facts.argument_atoms import DESTINATIONS
from langchain_runtime_authz.facts.normal_forms import forms, skeleton, tidy
from langchain_runtime_authz.facts.output_reading import Observation, observe_output
from langchain_runtime_authz.ledger.base import Snapshot
from langchain_runtime_authz.mandate.call_matching import CONFIRMED
from langchain_runtime_authz.mandate.description import told, told_step
from langchain_runtime_authz.pep import calls_in_doubt
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.run import Run
from langchain_runtime_authz.pep.thread_memory import TaskWords
from langchain_runtime_authz.tool_profile import argument

MAX_SENTENCE: Final = 240
SMALL: Final = 20_000  # characters; longer outputs are read in a separate thread


def arguments(run: Run, snapshot: Snapshot, said: TaskWords, call: Call) -> dict[str, tracing.Provenance]:
    """Return the provenance of each critical argument of the call, by its name."""
    if not call.atoms.atoms:
        return {}
    own, memory = run.subject.properties.get("identifiers"), run.engine.memory.memory(run.scope)
    seen = memory.seen(snapshot.values, call.atoms.keys) if memory is not tracing.NO_MEMORY else snapshot.values
    return tracing.trace(call.atoms, tracing.Evidence(said.words, forms_of(own) if own else _NONE, seen, memory))


def wants_more(said: TaskWords, calls: Sequence[Call]) -> bool:
    """Return True if the user did not say a value, so that outputs are read in full."""
    items = [item for call in calls for atom in call.atoms.atoms for item in atom.items or ()]
    return not all(said.words.said(part) for item in items for part in item.parts)


_NONE: Final[frozenset[str]] = frozenset()


def forms_of(own: object) -> frozenset[str]:
    return frozenset(f for v in own for f in forms(v)) if isinstance(own, list) else _NONE


def backed(traced: Mapping[str, tracing.Provenance]) -> bool:
    """Return True if the user or a trusted source said each critical argument."""
    for found in traced.values():
        if found.standing == "outside" and found.kind != "when":
            return False
    return True


def observe(call: Call, output: object, failed: bool) -> Observation:
    output = error_text(output) if isinstance(output, BaseException) else output
    return observe_output(call.tool, call.profile, call.args, output, failed=failed)


def sentences(run: Run, decided: DecidedCall) -> tuple[str, ...]:
    """Return lines for the approver: order, calls in doubt, arguments with sources."""
    call, traced = decided.call, decided.provenance
    memory = run.engine.memory.memory(run.scope)
    payees = run.engine.memory.payees(run.scope)
    differs = {d.argument: _plain(d.expected) for d in decided.standing.deviations if d.expected}
    lines = []
    if decided.mandate is not None and decided.standing.step is not None:
        ordered = next(step for step in decided.mandate.steps if step.id == decided.standing.step)
        by = _SOURCES[decided.mandate.source]
        if any(spend.counter.startswith(CONFIRMED) for spend in decided.standing.spends):
            lines.append(f"AN APPROVAL CONFIRMS THE WHOLE ORDER, {by}:")
            lines += [_plain(line) for line in told(decided.mandate)]
        else:
            lines.append(f"ordered {by}: {_plain(told_step(ordered))}")
    if "" in differs:
        lines.append(f"expected: {differs['']}")
    lines += calls_in_doubt.sentences(run, decided)
    if decided.prior_calls:
        lines.append(f"DONE BEFORE: the same was let run {decided.prior_calls} time(s) for this task")
    for name in dict.fromkeys((*call.args, *traced)):
        value = call.args[name] if name in call.args else argument(call.args, name)
        line = f"{inert(name)} {quoted(value)}"
        if call.profile.critical.get(name) in DESTINATIONS:
            line += _resembling(value, payees)
        found = traced.get(name)
        outside = found if found is not None and found.standing != "told" else None
        if outside is not None:
            line += _source(outside)
        if name in differs:
            line += f", EXPECTED {differs[name]}"
        if outside is not None and (sentence := _sentence(value, memory)) is not None:
            line += f"; untrusted text from {sentence}"
        lines.append(line)
    return tuple(lines)


_QUOTES: Final = str.maketrans('`"', "''")  # for texts of the mandate, because `"` encloses the call's values


def _plain(line: str) -> str:
    return inert(line.translate(_QUOTES))


def _source(found: tracing.Provenance) -> str:
    by = found.asserted_by or found.mentioned_by
    for item in found.items:
        by = [*by, *item.asserted_by, *item.mentioned_by]
    sources = list(dict.fromkeys(inert(s.source) for s in by if s.source))
    line = f": {_TOLD[found.class_]}"
    if sources:
        line += f" ({', '.join(sources[:3])})"
    if found.lookalike:
        line += ", and it ONLY LOOKS LIKE what you said"
    return line


def _resembling(value: object, payees: Mapping[str, frozenset[str]]) -> str:
    """Return a warning if a destination looks like a known one or mixes scripts."""
    line = ""
    for one in [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]:
        own = forms(one)
        known = sorted(v for v in payees.get(skeleton(one), ()) if not set(forms(v)) & set(own))
        if known:
            line += f", WHICH ONLY LOOKS LIKE {quoted(known[0])}, used before"
        if len(used := scripts(one)) > 1:
            line += f", WRITTEN IN MIXED LETTERS ({', '.join(used)})"
    return line


_SOURCES: Final = {"application": "by the application", "planner": "as the planner read it", "words": "in your words"}
_TOLD: Final = {**tracing.SAYS, "human": "you said it", "principal": "it is yours"}


def _sentence(value: object, memory: tracing.Memory) -> str | None:
    """Return where a tool output last mentioned the value, and the text around it."""
    needles = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | int | float)]
    for needle in needles[:16]:
        text = tidy(str(needle))
        if len(text) < tracing.SHORTEST or isinstance(needle, bool):
            continue
        for found in memory.mentions(text.casefold()):
            at = found.folded.find(text.casefold())
            if at >= 0:
                start = max(0, at - 100)
                start = found.text.find(" ", start, at) + 1 or start if start else 0  # begin at a word
                return f"{inert(found.source)}: {quoted(found.text[start : start + MAX_SENTENCE])}"
    return None
