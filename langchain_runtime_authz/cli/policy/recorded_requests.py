"""Decide the requests in our audit log again: replay, difference, explanation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from langchain_runtime_authz.audit.chain import read_log, verify_or_raise
from langchain_runtime_authz.audit.encryption import opener
from langchain_runtime_authz.audit.record import erase_member, locate_member
from langchain_runtime_authz.cli._app import Keys, Printout
from langchain_runtime_authz.cli.controls import rule_lines
from langchain_runtime_authz.cli.policy.open_policy import Policy, open_policy
from langchain_runtime_authz.errors import Code, ConfigError, sentence, unreadable, wrong_field
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest, LocalContext, Obligation
from langchain_runtime_authz.facts.local_time import local_time
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pep.obligations import enforceable

MAX_CHANGES: Final = 3  # in one set
MAX_SETS: Final = 5
_SHOWN: Final = 100  # characters of a call's arguments


class Answered(NamedTuple):
    """An outcome, its reasons, and its obligations as texts."""

    outcome: str
    reasons: tuple[str, ...]
    obligations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A policy's decision and its request. `str` gives one line."""

    decision_id: str
    revision: str
    request: EvaluationRequest
    answered: Answered  # a record holds only the types of obligations

    def __str__(self) -> str:
        return f"{self.decision_id[:12]}  {self.request.action.name} {request_line(self.request)}"

    def to_dict(self) -> dict[str, Any]:
        about = {"action": self.request.action.name, "resource": self.request.resource.id}
        return {"decision_id": self.decision_id, **about}


def request_line(request: EvaluationRequest) -> str:
    """Return a request in one line with its arguments, which tell two payments apart."""
    call = request.context.call
    if call is None:
        return request.resource.id
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=True)}" for name, value in call.args.items())
    shown = arguments if len(arguments) <= _SHOWN else arguments[: _SHOWN - 1] + "…"
    return f"{request.resource.id}({shown})"


def recorded_in(log: Path, key: Keys) -> tuple[list[Recorded], int]:
    """Return a log's decisions with whole requests, and the number of the others.

    Neither includes denials after a failure, which no policy decided. Raises `ConfigError` if no request is whole.
    """
    verify_or_raise(log)
    found, lost = [], 0
    for record in read_log(log, opened=opener(*key) if key else None):
        if record is not None and record["kind"] == "decision" and record.get("failure") is None:
            try:
                if record.get("erased") or not record.get("request"):
                    raise ValueError
                request = EvaluationRequest.model_validate_json(json.dumps(record["request"]))
                terms = tuple(sorted(map(str, record.get("obligations", ()))))
                answered = Answered(str(record["outcome"]), tuple(map(str, record["reasons"])), terms)
                found.append(Recorded(str(record["decision_id"]), str(record["policy_revision"]), request, answered))
            except (ValidationError, ValueError, KeyError, TypeError):
                lost += 1
    if not found:
        sealed = "write it with `FileSink(path, content=True)`, or name the key to which they are sealed"
        why = f"it has no contents; {sealed}" if lost else "it is empty"
        raise ConfigError(f"{log.name} holds no decision that can be made again: {why}")
    return found, lost


def read_request(path: Path) -> EvaluationRequest:
    """Return the request in a JSON file, or raise `ConfigError`."""
    try:
        return EvaluationRequest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        why = wrong_field(exc, "request") if isinstance(exc, ValidationError) else unreadable(exc)
        raise ConfigError(f"{path.name} is not a request: {why}") from exc


def in_policy_zone(policy: Policy, request: EvaluationRequest) -> EvaluationRequest:
    """Return the request with the local time of the policy's zone, if it names one."""
    if policy.zone is None:
        return request
    local = LocalContext(**local_time(policy.zone, request.context.now))
    return request.model_copy(update={"context": request.context.model_copy(update={"local": local})})


def decide(pdp: PDP, requests: Sequence[EvaluationRequest]) -> list[Decision]:
    """Decide, and refuse unknown obligations as the enforcement point does."""
    evaluator = Evaluator(pdp, deadline=600)
    return [enforceable(evaluator.evaluate([r.to_json()])[0], r.action.name) for r in requests]


def _answers(policy: Policy, requests: Sequence[EvaluationRequest], *, whole: bool) -> list[Answered]:
    def written(one: Obligation) -> str:
        return f"{one.type} {json.dumps(one.properties, sort_keys=True)}" if whole else one.type

    with closing(policy.pdp()) as pdp:
        decided = decide(pdp, [in_policy_zone(policy, request) for request in requests])
    return [Answered(d.outcome, d.reasons, tuple(sorted(map(written, d.obligations)))) for d in decided]


def other_profiles(recorded: Sequence[Recorded], policy: Policy) -> list[str]:
    """Return the tools whose profile differs from the recorded one."""
    found = set()
    for r in recorded:
        declared, told = policy.profiles.get(r.request.resource.id), r.request.resource.properties
        if r.request.action.name != "tools/call" or declared is None or declared.draft:
            continue
        if told.get("profiled") is not True or declared.differs(told):
            found.add(r.request.resource.id)
    return sorted(found)


def rules(policy: Policy, code: str, outcome: str) -> list[str]:
    """Return the `file:line` of the rules that give a reason for an outcome."""
    kind = "asked" if outcome == "approval_required" else "denied"
    return [f"{name}:{line}" for name, text in policy.rego.items() for line in rule_lines(text, code, kind)]


Edit = Callable[[dict[str, Any]], object]
# Facts that a change may assume: in words, as path, and as value.
_MILDER: Final[tuple[tuple[str, str, Any], ...]] = (
    ("the task's mandate covers the call", "/context/call/mandate/standing", "covered"),
    ("each critical argument is told or known", "/context/call/mandate/backed", True),
    ("the task and the plan are of one epoch", "/context/plan/stale", False),
    ("a recorded plan holds the call", "/context/plan/planned", True),
    ("it is the planned call", "/context/plan", {"planned": True, "changed": False}),
    ("the data behind the plan has not changed", "/context/call/changed", []),
    ("the tool has a reviewed profile", "/resource/properties/profiled", True),
    ("the tool's effect is `read`", "/resource/properties/effect", "read"),
    ("its arguments go nowhere (sink `none`)", "/context/call/sink", "none"),
)
_CALM: Final = dict.fromkeys(("denials", "streak", "unplanned", "tainted", "rotations", "last_minute"), 0)
_OTHER: Final[tuple[tuple[str, str, Any], ...]] = (
    ("the subject is a known user", "/subject/type", "user"),
    ("the history holds no denials, bursts or streaks", "/context/history", _CALM),
    ("the acting agent is the root agent", "/context/delegation/depth", 0),
    ("this entry has taken no steps yet", "/context/lease/steps", 0),
    ("this entry has just begun", "/context/lease/seconds", 0),
    ("the plan belongs to an older task", "/context/plan/stale", True),
    ("no recorded plan holds the call", "/context/plan/planned", False),
    ("the tool has no reviewed profile", "/resource/properties/profiled", False),
    ("there is no approval", "/context/approval", None),
    ("the task has no mandate", "/context/call/mandate/standing", "none"),
    ("its arguments leave the organisation (sink `external`)", "/context/call/sink", "external"),
)


def _set(path: str, value: Any, document: dict[str, Any]) -> None:
    node, last = locate_member(document, path)
    if last in node or path.count("/") < 4:  # noqa: PLR2004  (members of a profile and of the context may be absent)
        node[last] = {**(node.get(last) or {}), **value} if isinstance(value, dict) else value


def _approve(authenticated: bool, document: dict[str, Any]) -> None:
    if call := document["context"].get("call"):
        given = {"source": "interrupt", "approver": "somebody", "authenticated": authenticated}
        document["context"]["approval"] = {**given, "args_digest": call["args_digest"]}


def _drop_class(name: str, document: dict[str, Any]) -> None:
    history = document["context"]["history"]
    for fact in ("classes_read", "classes_held"):
        if history.get(fact) is not None:
            history[fact] = [c for c in history[fact] if c != name]


def _candidates(request: Mapping[str, Any]) -> Iterator[tuple[str, Edit]]:
    yield "an approver approves exactly this call", partial(_approve, False)
    yield "an authenticated approver approves exactly this call", partial(_approve, True)
    yield "the run has no grant that limits it", partial(_set, "/context/lease/grant", None)
    for name in request["context"]["lease"]["grant"] or {}:
        yield f"the grant does not limit `{name}`", partial(erase_member, pointer=f"/context/lease/grant/{name}")
    for word, path, value in _MILDER:
        yield word, partial(_set, path, value)
    for name in request["context"]["history"]["classes_read"]:
        yield f"no `{name}` data was read before", partial(_drop_class, name)
    for word, path, value in _OTHER:
        yield word, partial(_set, path, value)


def changes(pdp: PDP, request: EvaluationRequest, decision: Decision) -> list[tuple[tuple[str, ...], str]]:
    """Return the smallest sets of changes with another outcome, and these outcomes.

    A set has at most three changes. They turn a deny into a permit or a question, a question into a permit, and a
    permit into any other outcome. Each set was tried on the policy.
    """
    document = json.loads(request.to_json())
    telling = []
    for word, edit in _candidates(document):
        tried = _tried(pdp, document, (edit,))
        if tried is not None and (tried.outcome, tried.reasons) != (decision.outcome, decision.reasons):
            telling.append((word, edit))
    found: list[tuple[tuple[str, ...], str]] = []
    better = ("permit",) if decision.outcome == "approval_required" else ("permit", "approval_required")
    wanted = ("deny", "approval_required", "halt") if decision.permit else better
    for size in range(1, MAX_CHANGES + 1):
        for chosen in itertools.combinations(telling, size):
            words = tuple(w for w, _ in chosen)
            if any(set(smaller) <= set(words) for smaller, _ in found):
                continue
            tried = _tried(pdp, document, [e for _, e in chosen])
            if tried is not None and tried.outcome in wanted:
                found.append((words, tried.outcome))
        if len(found) >= MAX_SETS:
            break
    return found[: MAX_SETS * 2]


def _tried(pdp: PDP, document: dict[str, Any], edits: Sequence[Edit]) -> Decision | None:
    changed = json.loads(json.dumps(document))
    for edit in edits:
        edit(changed)
    try:
        request = EvaluationRequest.model_validate_json(json.dumps(changed))
    except ValidationError:
        return None
    return decide(pdp, [request])[0]


def outcome_text(answered: Answered) -> str:
    """Return an outcome with its reasons, as text."""
    return answered.outcome + (f" ({', '.join(answered.reasons)})" if answered.reasons else "")


def list_decisions(recorded: list[Recorded]) -> Printout:
    rows = [{**r.to_dict(), "outcome": r.answered.outcome, "reasons": r.answered.reasons} for r in recorded]
    return Printout({"decisions": rows}, [f"{r}: {outcome_text(r.answered)}" for r in recorded])


def find(recorded: list[Recorded], wanted: str, log: Path) -> Recorded:
    """Return the only decision whose id begins with `wanted`, or raise `ConfigError`."""
    found = {r.decision_id: r for r in recorded if r.decision_id.startswith(wanted)}
    for own in read_log(log, wanted) if not found else ():
        if own and own["kind"] == "decision" and own.get("failure") and str(own["decision_id"]).startswith(wanted):
            why = "; ".join(f"{code}: {sentence(code)}" for code in map(str, own["reasons"]))
            raise ConfigError(f"the enforcement point made this decision, not a policy ({why})")
    if len(found) != 1:
        many = f"{len(found) or 'no'} decisions that can be made again and whose id begins with `{wanted}`"
        raise ConfigError(f"{log.name} holds {many}")
    return next(iter(found.values()))


def in_words(policy: Policy, decision: Decision, request: EvaluationRequest) -> tuple[dict[str, Any], list[str]]:
    """Return a decision with the rules that gave its reasons, as JSON and as lines."""
    fired = {code: rules(policy, code, decision.outcome) for code in decision.reasons}
    asked_for = {"action": request.action.name, "resource": request.resource.id, "subject": request.subject.principal}
    answered = {"outcome": decision.outcome, "policy_revision": decision.policy_revision}
    reasons = [{"code": c, "sentence": sentence(c), "rules": where} for c, where in fired.items()]
    obligations = [asdict(o) for o in decision.obligations]
    document = {**asked_for, **answered, "reasons": reasons, "obligations": obligations}
    text = [] if fired else ["because   no rule denies it or asks"]
    for code, where in fired.items():
        text.append(f"because   {code}: {sentence(code)}")
        given = [", ".join(where)] if where else ["by default: no rule permits it"] * (code == Code.NO_PERMIT)
        text += [f"          {line}" for line in given]
    text += [f"obliges   {o.type} {json.dumps(o.properties)}" for o in decision.obligations]
    return document, text


def compare_decisions(log: Path, key: Keys, after: Path | None, before: Path | None = None) -> Printout:
    """Return decisions that differ between `after` and `before` (default: the log)."""
    earlier, later = open_policy(before) if before is not None else None, open_policy(after)
    recorded, lost = recorded_in(log, key)
    requests = [r.request for r in recorded]
    old = [r.answered for r in recorded] if earlier is None else _answers(earlier, requests, whole=True)
    new = _answers(later, requests, whole=earlier is not None)
    flips: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    text, duties = [], []
    for r, was, now in zip(recorded, old, new, strict=True):
        changed = {**r.to_dict(), "before": was._asdict(), "after": now._asdict()}
        if was.outcome != now.outcome:
            flips.append(changed)
            text.append(f"flip  {r}: {outcome_text(was)} -> {outcome_text(now)}")
        elif was.obligations != now.obligations:
            others.append(changed)
            owed = (", ".join(one.obligations) or "nothing" for one in (was, now))
            duties.append(f"duty  {r}: {now.outcome}, obliges to {' -> '.join(owed)}")
    text += duties
    profiled = other_profiles(recorded, later)
    turned = {"flips": flips, "obliged_otherwise": others}
    told = {"decided": len(recorded), "without_content": lost, **turned, "other_profiles": profiled}
    if profiled:
        text.append(f"note  recorded under other profiles, and that change is not shown: {', '.join(profiled)}")
    more = f"; {len(others)} oblige differently" if others else ""
    left = f"; {lost} left out because their contents were not recorded" if lost else ""
    return Printout(told, [*text, f"{len(flips)} of {len(recorded)} decisions flip{more}{left}"], bool(flips or others))


def decide_file(source: Path, policy: Path | None) -> Printout:
    """Decide the request in a JSON file, and explain the decision."""
    opened = open_policy(policy)
    request = in_policy_zone(opened, read_request(source))
    with closing(opened.pdp()) as pdp:
        (decision,) = decide(pdp, [request])
    document, because = in_words(opened, decision, request)
    return Printout(document, [f"{decision.outcome:<9} {request.action.name} {request_line(request)}", *because])
