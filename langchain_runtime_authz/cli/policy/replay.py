"""Decide recorded requests again: replay, difference, and explanation."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from langchain_runtime_authz.audit.chain import Opened, read_log, verified
from langchain_runtime_authz.authzen import Decision, EvaluationRequest, LocalContext
from langchain_runtime_authz.cli.policy.project import Policy
from langchain_runtime_authz.errors import ConfigError, unreadable, wrong_field
from langchain_runtime_authz.facts.local_time import local_time
from langchain_runtime_authz.pdp.base import PDP, Evaluator, serialise

__all__ = [
    "Flip",
    "Recorded",
    "asked",
    "changes",
    "decide",
    "flips",
    "other_profiles",
    "read_decisions",
    "refused",
    "rules",
]
__all__ += ["zoned"]

MAX_CHANGES: Final = 3  # at once
MAX_SETS: Final = 5
_SHOWN: Final = 100  # characters of a call's arguments


@dataclass(frozen=True, slots=True)
class Recorded:
    """A policy's decision and its request. A record holds only the types of obligations."""

    decision_id: str
    outcome: str
    reasons: tuple[str, ...]
    revision: str
    request: EvaluationRequest
    obligations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flip:
    """A request that two policies decide differently: another outcome, or other obligations."""

    decision_id: str
    resource: str
    action: str
    before: str
    after: str
    reasons_before: tuple[str, ...]
    reasons_after: tuple[str, ...]
    asked: str
    obliged_before: tuple[str, ...] = ()
    obliged_after: tuple[str, ...] = ()

    @property
    def turns(self) -> bool:
        """True if the outcome changes."""
        return self.before != self.after


def asked(request: EvaluationRequest) -> str:
    """Return the request in one line, with a call's arguments, which tell payments apart."""
    call = request.context.call
    if call is None:
        return request.resource.id
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=True)}" for name, value in call.args.items())
    shown = arguments if len(arguments) <= _SHOWN else arguments[: _SHOWN - 1] + "…"
    return f"{request.resource.id}({shown})"


def refused(path: Path, wanted: str) -> tuple[str, ...]:
    """Return the codes of a decision that the enforcement point made itself; none if there is no such decision."""
    for record in read_log(path, wanted):
        own = record is not None and record["kind"] == "decision" and record.get("failure") is not None
        if record is not None and own and str(record.get("decision_id", "")).startswith(wanted):
            return tuple(map(str, record["reasons"]))
    return ()


def read_decisions(path: Path, opened: Opened | None = None) -> tuple[list[Recorded], int]:
    """Return the decisions of a log that can be made again, and the number of those that cannot.

    Refusals by the enforcement point are left out: no policy made them. A record without its contents cannot be
    decided again. `opened` gives sealed records their contents back.

    Raises:
        AuditError: `chain_broken`.
        OSError: the log cannot be read.
    """
    verified(path)
    found, lost = [], 0
    for record in read_log(path, opened=opened):
        if record is not None and record["kind"] == "decision" and record.get("failure") is None:
            try:
                if record.get("erased") or not record.get("request"):
                    raise ValueError
                request = EvaluationRequest.model_validate_json(json.dumps(record["request"]))
                found.append(
                    Recorded(
                        str(record["decision_id"]),
                        str(record["outcome"]),
                        tuple(record["reasons"]),
                        str(record["policy_revision"]),
                        request,
                        tuple(sorted(map(str, record.get("obligations", ())))),
                    )
                )
            except (ValidationError, ValueError, KeyError, TypeError):
                lost += 1
    return found, lost


def read_request(path: Path) -> EvaluationRequest:
    """Return the request in a JSON file.

    Raises:
        ConfigError: it is not a request; the error names the field.
    """
    try:
        return EvaluationRequest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        why = wrong_field(exc, "request") if isinstance(exc, ValidationError) else unreadable(exc)
        raise ConfigError(f"{path.name} is not a request: {why}") from exc


def zoned(policy: Policy, request: EvaluationRequest) -> EvaluationRequest:
    """Return the request with its time by the policy's clock, if the policy names a zone."""
    if policy.zone is None:
        return request
    local = LocalContext(**local_time(policy.zone, request.context.now))
    return request.model_copy(update={"context": request.context.model_copy(update={"local": local})})


def decide(pdp: PDP, requests: Sequence[EvaluationRequest]) -> list[Decision]:
    """Decide each request alone."""
    evaluator = Evaluator(pdp, deadline=600)
    return [evaluator.evaluate([serialise(request)])[0] for request in requests]


def flips(recorded: Sequence[Recorded], before: Policy | None, after: Policy) -> list[Flip]:
    """Return the requests that `after` decides differently than `before`, or than the log.

    An edit that keeps the outcome may still drop a limit, a redaction or a second approver.

    Raises:
        ConfigError: a policy cannot be used.
    """
    requests = [r.request for r in recorded]
    obliged = _types if before is None else _terms
    if before is None:
        old = [(r.outcome, r.reasons, r.obligations) for r in recorded]
    else:
        old = [(d.outcome, d.reasons, _terms(d)) for d in _decided(before, requests)]
    found = []
    for r, (outcome, reasons, terms), new in zip(recorded, old, _decided(after, requests), strict=True):
        if new.outcome != outcome or obliged(new) != terms:
            flip = Flip(
                r.decision_id, r.request.resource.id, r.request.action.name, outcome, new.outcome, reasons, new.reasons,
                asked(r.request), terms, obliged(new),
            )  # fmt: skip
            found.append(flip)
    return found


def _types(decision: Decision) -> tuple[str, ...]:
    return tuple(sorted(o.type for o in decision.obligations))


def _terms(decision: Decision) -> tuple[str, ...]:
    return tuple(sorted(f"{o.type} {json.dumps(o.properties, sort_keys=True)}" for o in decision.obligations))


def other_profiles(recorded: Sequence[Recorded], policy: Policy) -> list[str]:
    """Return the tools whose profile in the policy differs from the recorded one.

    A recorded request holds the facts of its time, so no flip shows the effect of a changed profile.
    """
    found = set()
    for r in recorded:
        declared, told = policy.profiles.get(r.request.resource.id), r.request.resource.properties
        if r.request.action.name != "tools/call" or declared is None or declared.draft:
            continue
        facts = {name: getattr(declared, name) for name in ("effect", "sink", "data_class", "verdict")}
        if any(told.get(name) != fact for name, fact in {**facts, "profiled": True}.items()):
            found.add(r.request.resource.id)
    return sorted(found)


def _decided(policy: Policy, requests: Sequence[EvaluationRequest]) -> list[Decision]:
    with closing(policy.pdp()) as pdp:
        return decide(pdp, [zoned(policy, request) for request in requests])


# --- why --------------------------------------------------------------------------------------------


def rules(policy: Policy, code: str, outcome: str) -> list[str]:
    """Return the `file:line` of the rules that give a reason for an outcome."""
    kind = "asked" if outcome == "approval_required" else "denied"
    found = []
    for name, text in policy.rego.items():
        lines = text.splitlines()
        bound = any(re.search(rf'^\s*"\w+": "{re.escape(code)}",?$', line) for line in lines)
        for number, line in enumerate(lines, 1):
            given = re.match(
                rf'{kind} contains ("{re.escape(code)}"|bounds\[\w+\])|@reason\(("{re.escape(code)}")\)', line
            )
            if given and (bound or '"' in given[0]):
                found.append(f"{name}:{number}")
    return found


Edit = Callable[[dict[str, Any]], None]


def _node(document: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the object that holds the last member of a dotted path, and that member's name."""
    *way, last = path.split(".")
    node: Any = document
    for step in way:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}, last


def _at(path: str, value: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        node, last = _node(document, path)
        if last in node or path.count(".") < 3:  # noqa: PLR2004  (a profile's and the context's own)
            node[last] = value

    return edit


def _approved(source: str, *, authenticated: bool) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        call = document["context"].get("call")
        if call:
            document["context"]["approval"] = {
                "source": source,
                "approver": "somebody",
                "authenticated": authenticated,
                "args_digest": call["args_digest"],
            }

    return edit


def _unread(name: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        history = document["context"]["history"]
        for fact in ("classes_read", "classes_held"):
            if history.get(fact) is not None:
                history[fact] = [c for c in history[fact] if c != name]

    return edit


def _calm(document: dict[str, Any]) -> None:
    document["context"]["history"].update(
        denials=0, streak=0, unplanned=0, tainted=0, rotations=0, last_minute=0,
    )  # fmt: skip


def _candidates(request: Mapping[str, Any]) -> Iterator[tuple[str, Edit]]:
    """Yield facts that could have been different, in words."""
    yield "an approver approves exactly this call", _approved("interrupt", authenticated=False)
    yield "an authenticated approver approves exactly this call", _approved("interrupt", authenticated=True)
    yield "the run has no grant that limits it", _at("context.lease.grant", None)
    for name in request["context"]["lease"]["grant"] or {}:
        yield f"the grant does not limit `{name}`", _without(f"context.lease.grant.{name}")
    yield "the task's mandate covers the call", _at("context.call.mandate.standing", "covered")
    yield "each critical argument is told or known", _at("context.call.mandate.backed", True)
    yield "the task and the plan are of one epoch", _at("context.plan.stale", False)
    yield "a recorded plan holds the call", _at("context.plan.planned", True)
    yield (
        "it is the planned call",
        _at("context.plan", {**(request["context"].get("plan") or {}), "planned": True, "changed": False}),
    )
    yield "the data behind the plan has not changed", _at("context.call.changed", [])
    yield "the tool has a reviewed profile", _at("resource.properties.profiled", True)
    yield "the tool's effect is `read`", _at("resource.properties.effect", "read")
    yield "its arguments go nowhere (sink `none`)", _at("context.call.sink", "none")
    for name in request["context"]["history"]["classes_read"]:
        yield f"no `{name}` data was read before", _unread(name)
    yield "the subject is a known user", _at("subject.type", "user")
    yield "the history holds no denials, bursts or streaks", _calm
    yield "the acting agent is the root agent", _at("context.delegation.depth", 0)
    yield "this entry has taken no steps yet", _at("context.lease.steps", 0)
    yield "this entry has just begun", _at("context.lease.seconds", 0)
    yield "the plan belongs to an older task", _at("context.plan.stale", True)
    yield "no recorded plan holds the call", _at("context.plan.planned", False)
    yield "the tool has no reviewed profile", _at("resource.properties.profiled", False)
    yield "there is no approval", _at("context.approval", None)
    yield "the task has no mandate", _at("context.call.mandate.standing", "none")
    yield "its arguments leave the organisation (sink `external`)", _at("context.call.sink", "external")


def _without(path: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        node, last = _node(document, path)
        node.pop(last, None)

    return edit


def changes(pdp: PDP, request: EvaluationRequest, decision: Decision) -> list[tuple[tuple[str, ...], str]]:
    """Return the smallest sets of changes, at most three each, that change the outcome, with the new outcome.

    For a deny they are changes that permit the request or ask about it, for a permit those that do not permit it.
    Each set was tried on the policy.
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
