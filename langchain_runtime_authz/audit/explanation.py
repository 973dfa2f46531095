"""Explain a decision record in words: outcome, reasons and remedy. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from langchain_runtime_authz._display import labelled, one_line, quote
from langchain_runtime_authz.errors import RETRY, Code, meaning_and_remedy
from langchain_runtime_authz.facts.provenance import SAYS

_QUOTES: Final = str.maketrans('`"', "''")
_OUTCOMES: Final = {"permit": "Permitted", "deny": "Denied", "approval_required": "Asks about", "halt": "Stopped"}
_FAILURES: Final = {
    None: "the policy",
    "mapping": "the enforcement point: the step could not be put into a request",
    "pdp": "nobody: the engine gave no usable answer, which denies",
    "enforcement": "the enforcement point, which no policy can overrule",
}
_ORDERED: Final = {
    "covered": "the task orders this call",
    "deviates": "the task orders this tool, but not this call",
    "forbidden": "the task forbids this call",
    "outside": "the task orders other tools",
    "none": "the task orders nothing that could be read",
}
_BY: Final = {"application": "by the application", "planner": "by the planner", "words": "in the user's words"}
# What each code of a deviation (`evaluation.DeviationCode`) means.
DEVIATIONS: Final = {
    "value": "another value was ordered",
    "missing": "a value was ordered and none is given",
    "undeclared": "the profile does not name this part of the argument",
    "unordered": "the order does not have this argument",
    "unread": "the value is to come from a read that was not made",
    "ambiguous": "several values fit the order",
    "untrusted": "the value is to come from a field that the user can trust",
    "extract": "the value was not found where the order takes it from",
    "text": "the text holds something that the user did not say",
    "condition": "the condition of the order is not met",
    "spent": "this step of the order is used up",
    "after": "another step of the order comes first",
    "part": "this step of the order is another agent's",
    "confirm": "a person confirms the whole order first",
    "limit": "the order's limit is reached",
    "suspended": "a correction suspended the order",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """A code in words. `remedy` and `retry` are empty for a policy's own code."""

    code: str
    meaning: str
    remedy: str
    retry: str


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a call, as texts. `None`: the record does not hold this value."""

    name: str
    given: str | None = None
    source: str = ""
    deviation: str = ""
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision in words. It may show arguments, so it must not reach a model.

    `str` gives lines of 80 columns. `order`: how the call compares with its mandate. `at`: epoch seconds.
    """

    decision_id: str
    outcome: str
    headline: str
    decided_by: str
    reasons: tuple[Reason, ...] = ()
    order: str = ""
    arguments: tuple[Argument, ...] = ()
    policy_revision: str = ""
    thread: str = ""
    run_id: str = ""
    at: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_pretty_(self, printer: Any, _cycle: object) -> None:
        printer.text(str(self))  # in IPython and notebooks, also in a list

    def __str__(self) -> str:
        lines = []
        for r in self.reasons:
            lines += [("because", f"{r.code}: {r.meaning}"), ("do", r.remedy), ("retry", r.retry)]
        lines += [("order", self.order), *(("argument", _shown(a)) for a in self.arguments), ("by", self.decided_by)]
        ids = {"policy": self.policy_revision, "decision": self.decision_id, "thread": self.thread, "run": self.run_id}
        lines += [(label, one_line(value)) for label, value in ids.items()]
        return "\n".join([labelled("", self.headline, 10), *(labelled(f"{n:<10}", text) for n, text in lines if text)])


def explain(record: Mapping[str, Any]) -> Explanation:
    """Return a decision record (`audit.record`) in words, from its own fields only."""
    request = record.get("request") or {}
    call = (request.get("context") or {}).get("call") or {}
    scope, failure = record.get("scope") or {}, record.get("failure")
    told_by = f" ({record['pdp']})" if failure in (None, "pdp") and record.get("pdp") else ""
    return Explanation(
        decision_id=str(record.get("decision_id", "")),
        outcome=str(record.get("outcome", "")),
        headline=_headline(record, request.get("subject") or {}, (request.get("resource") or {}).get("properties")),
        decided_by=_FAILURES.get(failure, str(failure)) + told_by,
        reasons=tuple(_reason(str(code)) for code in record.get("reasons") or ()),
        order=_order(call.get("mandate") or {}),
        arguments=_arguments(call, record.get("expected") or {}),
        policy_revision=str(record.get("policy_revision") or ""),
        thread=str(scope.get("thread", "")),
        run_id=str(record.get("run_id", "")),
        at=float(record.get("ts") or 0.0),
    )


def _headline(record: Mapping[str, Any], subject: Mapping[str, Any], properties: Mapping[str, Any] | None) -> str:
    line = f"{_words_for(_OUTCOMES, record.get('outcome', ''))}: {one_line(str(record.get('resource', '')))} ({record.get('action', '')})"
    if properties and properties.get("effect"):
        line += f", effect {properties['effect']}"
        line += "" if properties.get("profiled", True) else ", without a profile"
    if subject:
        line += f", for {one_line(str(subject.get('type')))} {one_line(str(subject.get('id')))}"
    path = record.get("agent") or ()
    return line + (f", agent {one_line('/'.join(map(str, path)))}" if len(path) > 1 else "")


def _reason(code: str) -> Reason:
    meaning, remedy = meaning_and_remedy(code)
    return Reason(code, meaning, remedy, RETRY[Code(code).retry] if remedy else "")


def _words_for(words: Mapping[Any, str], code: object) -> str:
    return words.get(str(code), str(code))


def _order(mandate: Mapping[str, Any]) -> str:
    if not mandate:
        return ""
    line = _words_for(_ORDERED, mandate.get("standing"))
    if mandate.get("source"):
        line += f"; it was given {_words_for(_BY, mandate['source'])}"
    whole = [_words_for(DEVIATIONS, d.get("code")) for d in mandate.get("deviations") or () if not d.get("argument")]
    return "; ".join([line, *whole])


def _arguments(call: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[Argument, ...]:
    given, traced = call.get("args") or {}, call.get("provenance") or {}
    deviates = {d["argument"]: d for d in (call.get("mandate") or {}).get("deviations") or () if d.get("argument")}
    return tuple(
        Argument(
            name=name,
            given=quote(given[name]) if name in given else None,
            source=_source(traced[name]) if name in traced else "",
            deviation=_words_for(DEVIATIONS, deviates[name].get("code")) if name in deviates else "",
            expected=one_line(str(expected[name]).translate(_QUOTES)) if name in expected else None,
        )
        for name in dict.fromkeys((*given, *traced, *deviates))
    )


def _source(found: Mapping[str, Any]) -> str:
    by = [
        one_line(str(s["source"])) for s in found.get("asserted_by") or found.get("mentioned_by") or () if s["source"]
    ]
    line = _words_for(SAYS, found.get("class")) + (f" ({', '.join(by[:3])})" if by else "")
    return line + (", and it only looks like what the user said" if found.get("lookalike") else "")


def _shown(argument: Argument) -> str:
    line = one_line(argument.name) + (f" {argument.given}" if argument.given is not None else "")
    facts = (argument.source, argument.deviation, f"expected {argument.expected}" if argument.expected else "")
    return ": ".join(filter(None, [line, "; ".join(filter(None, facts))]))
