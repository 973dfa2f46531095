"""Write the lines of a question that show an approver the evidence about a call."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final

from langchain_runtime_authz._display import one_line, quote, scripts_in
from langchain_runtime_authz.facts import provenance as tracing
from langchain_runtime_authz.facts.argument_atoms import DESTINATIONS
from langchain_runtime_authz.facts.normal_forms import forms_of, skeleton, tidy
from langchain_runtime_authz.ledger.base import LASTS, Doubt
from langchain_runtime_authz.mandate.description import described_mandate, described_step
from langchain_runtime_authz.pep.call import DecidedCall
from langchain_runtime_authz.pep.decision_log import tool_label
from langchain_runtime_authz.pep.run import Run
from langchain_runtime_authz.tool_profile import value_at

MAX_SENTENCE: Final = 240
_NOUNS: Final = {"pay": "payment", "send": "message", "delete": "deletion"}


def question_lines(run: Run, decided: DecidedCall) -> tuple[str, ...]:
    """Return the lines: order, calls in doubt, and arguments with their sources."""
    call, traced = decided.call, decided.provenance
    texts = run.engine.memory.texts_read(run.scope)
    payees = run.engine.memory.payees(run.scope)
    differs = {d.argument: _plain(d.expected) for d in decided.standing.deviations if d.expected}
    lines = []
    if decided.mandate is not None and decided.standing.step is not None:
        ordered = next(step for step in decided.mandate.steps if step.id == decided.standing.step)
        by = _SOURCES[decided.mandate.source]
        if decided.standing.confirms:
            lines.append(f"AN APPROVAL CONFIRMS THE WHOLE ORDER, {by}:")
            lines += [_plain(line) for line in described_mandate(decided.mandate.model_copy(update={"confirm": ()}))]
        else:
            lines.append(f"ordered {by}: {_plain(described_step(ordered))}")
    if "" in differs:
        lines.append(f"expected: {differs['']}")
    lines += _doubts(run, decided)
    if decided.prior_calls:
        lines.append(f"DONE BEFORE: the same was let run {decided.prior_calls} time(s) for this task")
    for name in dict.fromkeys((*call.args, *traced)):
        value = call.args[name] if name in call.args else value_at(call.args, name)
        line = f"{one_line(name)} {quote(value)}"
        if call.profile.critical.get(name) in DESTINATIONS:
            line += _resembling(value, payees)
        found = traced.get(name)
        outside = found if found is not None and found.standing != "told" else None
        if outside is not None:
            line += _source(outside)
        if name in differs:
            line += f", EXPECTED {differs[name]}"
        if outside is not None and (sentence := _sentence(value, texts)) is not None:
            line += f"; untrusted text from {sentence}"
        lines.append(line)
    return tuple(lines)


_QUOTES: Final = str.maketrans('`"', "''")  # in texts of the mandate: only values of the call stand in `"`


def _plain(line: str) -> str:
    return one_line(line.translate(_QUOTES))


def _source(found: tracing.Provenance) -> str:
    by = found.asserted_by or found.mentioned_by
    for item in found.items:
        by = [*by, *item.asserted_by, *item.mentioned_by]
    sources = list(dict.fromkeys(one_line(s.source) for s in by if s.source))
    line = f": {_TOLD[found.class_]}"
    if sources:
        line += f" ({', '.join(sources[:3])})"
    if found.lookalike:
        line += ", and it ONLY LOOKS LIKE what you said"
    return line


def _resembling(value: object, payees: Mapping[str, frozenset[str]]) -> str:
    """Return a warning if a destination resembles a used one or mixes alphabets."""
    line = ""
    for one in [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]:
        own = forms_of(one)
        known = sorted(v for v in payees.get(skeleton(one), ()) if not set(forms_of(v)) & set(own))
        if known:
            line += f", WHICH ONLY LOOKS LIKE {quote(known[0])}, used before"
        if len(used := scripts_in(one)) > 1:
            line += f", WRITTEN IN MIXED LETTERS ({', '.join(used)})"
    return line


_SOURCES: Final = {"application": "by the application", "planner": "as the planner read it", "words": "in your words"}
_TOLD: Final = {**tracing.SAYS, "human": "you said it", "principal": "it is yours"}


def _sentence(value: object, texts: tracing.TextsRead) -> str | None:
    """Return the newest output text that mentions the value, with its source."""
    needles = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | int | float)]
    for needle in needles[:16]:
        text = tidy(str(needle))
        if len(text) < tracing.SHORTEST or isinstance(needle, bool):
            continue
        for found in texts.mentions(text.casefold()):
            at = found.folded.find(text.casefold())
            if at >= 0:
                start = max(0, at - 100)
                start = found.text.find(" ", start, at) + 1 or start if start else 0  # begin at a word
                return f"{one_line(found.source)}: {quote(found.text[start : start + MAX_SENTENCE])}"
    return None


def _doubts(run: Run, decided: DecidedCall) -> list[str]:
    """Return a line about each call in doubt with the same deed."""
    lines, own, doubts = list[str](), decided.row, decided.doubts
    if own is not None and own.state == "unknown" and own.key not in {one.row.key for one in doubts}:
        doubts = (*doubts, Doubt(run.scope, run.subject.principal, own))
    for scope, _, row in doubts:
        at = dt.datetime.fromtimestamp(row.at, dt.UTC)
        when = f"{at:%H:%M}" if decided.now - row.at < LASTS / 2 else f"{at:%Y-%m-%d %H:%M}"
        noun = _NOUNS.get(decided.call.profile.effect, "call")
        ended = "has an unknown outcome" if row.state == "unknown" else "has no outcome yet"
        if "failed" in (row.about or {}):
            ended = "failed, perhaps after it had happened"
        if row.key == decided.key and "again" in (row.about or {}):
            ended = f"{ended}, and " * (row.state == "unknown") + "was begun again by another call"
        only = "it did not happen"
        if row.state == "done":
            author = (row.about or {}).get("resolved", {}).get("author")
            ended, only = "did happen" + (f", says {one_line(author)}" if author else ""), "it is to happen again"
        where = "" if scope == run.scope else f" (thread {one_line(tool_label(scope.thread))})"
        lines.append(f"IN DOUBT: the same {noun} of {when} UTC {ended}{where}; approve only if {only}")
    return lines
