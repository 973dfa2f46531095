"""`runtime-authz policy explain | try`: decide one request, and say why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Argument, Option

from langchain_runtime_authz.cli._app import Answer, Key
from langchain_runtime_authz.errors import AuthzError, ConfigError, sentence

if TYPE_CHECKING:
    from langchain_runtime_authz.authzen import Decision, EvaluationRequest
    from langchain_runtime_authz.cli.policy.project import Policy
    from langchain_runtime_authz.cli.policy.replay import Answered, Recorded

POLL: Final = 0.3  # seconds between looks at files
PolicyPath = Annotated[Path | None, Argument(metavar="[POLICY]", help="Project, bundle or data.json.")]
Opa = Annotated[str | None, Option("--opa", metavar="FILE", help="The OPA to call; default: $OPA, then PATH.")]


def try_request(
    request: Annotated[Path, Argument(metavar="REQUEST", help="A request in a JSON file; made if it is missing.")],
    policy: PolicyPath = None,
    watch: Annotated[bool, Option("--watch", help="Again at each save of the request or the policy.")] = False,
    log: Annotated[Path | None, Option(metavar="LOG", help="Take the request from this log.")] = None,
    decision_id: Annotated[str | None, Option("--decision", metavar="ID", help="The decision to take.")] = None,
    key: Key = None,
    opa: Opa = None,
    as_json: bool = False,
) -> Answer:
    """Decide a request in a file. Edit the file or the policy, and see the answer again.

    If REQUEST is missing, it is written first: the example request, or the one of a recorded decision.

    \b
    Examples:
      runtime-authz policy try request.json my-policy --watch
      runtime-authz policy try request.json my-policy --log audit.jsonl --decision 3f9c2a
    """
    from langchain_runtime_authz.testing.requests import example_request

    if not request.exists():
        found = None if log is None else _find(recorded_in(log, key)[0], decision_id or "", log).request
        body = (found or example_request()).to_json()
        request.write_text(json.dumps(json.loads(body), indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote     {request}", err=as_json)
    while watch:
        seen = _stamps(request, policy)
        try:
            _tried(request, policy, opa).show(as_json)
        except AuthzError as exc:
            typer.echo(f"error     {exc}", err=as_json)
        typer.echo("")
        while _stamps(request, policy) == seen:
            time.sleep(POLL)
    return _tried(request, policy, opa)


def _stamps(*paths: Path | None) -> list[tuple[str, int]]:
    files: Iterable[Path] = (f for p in paths if p is not None for f in (sorted(p.rglob("*")) if p.is_dir() else [p]))
    return [(str(f), f.stat().st_mtime_ns) for f in files if f.is_file()]


def _tried(source: Path, policy: Path | None, opa: str | None) -> Answer:
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import asked, decide, read_request, zoned

    opened = open_policy(policy, opa)
    request = zoned(opened, read_request(source))
    with closing(opened.pdp()) as pdp:
        (decision,) = decide(pdp, [request])
    document, because = _explained(opened, decision, request)
    return Answer(document, [f"{decision.outcome:<9} {request.action.name} {asked(request)}", *because])


def explain(
    source: Annotated[Path, Argument(metavar="LOG|REQUEST", help="A log, or a request in a JSON file.")],
    decision_id: Annotated[
        str | None, Argument(metavar="[DECISION]", help="Id of a decision in the log, or its beginning.")
    ] = None,
    policy: Annotated[Path | None, Option(metavar="POLICY", help="Ask this policy.")] = None,
    key: Key = None,
    opa: Opa = None,
) -> Answer:
    """Show which rules decided, and the smallest changes that would change the outcome.

    Without DECISION, a log's decisions are listed. Each change was tried on the policy. It is not a recommendation.

    \b
    Examples:
      runtime-authz policy explain audit.jsonl
      runtime-authz policy explain audit.jsonl 3f9c2a
      runtime-authz policy explain request.json --policy my-policy
    """
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import asked, changes, decide, read_request, zoned

    opened = open_policy(policy, opa)
    recorded = None
    if source.suffix == ".json" and decision_id is None:
        request = read_request(source)
    else:
        decisions, _ = recorded_in(source, key)
        if decision_id is None:
            return _list(decisions)
        recorded = _find(decisions, decision_id, source)
        request = recorded.request
    request = zoned(opened, request)
    with closing(opened.pdp()) as pdp:
        (decision,) = decide(pdp, [request])
        otherwise = changes(pdp, request, decision)
    document, because = _explained(opened, decision, request)
    text = [f"{request.action.name} {asked(request)} by {request.subject.type} {request.subject.id}"]
    text.append(f"decided   {decision.outcome} under {decision.policy_revision or opened.name}")
    was: dict[str, Any] | None = None
    if recorded is not None:
        outcome, reasons, _ = recorded.answered
        was = {"outcome": outcome, "reasons": reasons, "policy_revision": recorded.revision}
        if (outcome, reasons) != (decision.outcome, decision.reasons):
            said_then = f"recorded  {said(recorded.answered)} under {recorded.revision}"
            text.append(f"{said_then}; this policy decides differently")
    text += [*because, *(f"{outcome} if {'; and '.join(words)}" for words, outcome in otherwise)]
    text += [] if otherwise else ["no change of up to three facts changes the outcome"]
    more = [{"if": words, "outcome": outcome} for words, outcome in otherwise]
    return Answer({**document, "recorded": was, "changes": more}, text)


def _list(recorded: list[Recorded]) -> Answer:
    from langchain_runtime_authz.cli.policy.replay import asked

    rows, text = [], []
    for r in recorded:
        about = {"decision_id": r.decision_id, "action": r.request.action.name, "resource": r.request.resource.id}
        rows.append({**about, "outcome": r.answered.outcome, "reasons": r.answered.reasons})
        text.append(f"{r.decision_id[:12]}  {r.request.action.name} {asked(r.request)}: {said(r.answered)}")
    return Answer({"decisions": rows}, text)


def _find(recorded: list[Recorded], wanted: str, log: Path) -> Recorded:
    from langchain_runtime_authz.cli.policy.replay import refused

    found = {r.decision_id: r for r in recorded if r.decision_id.startswith(wanted)}
    if not found and (codes := refused(log, wanted)):
        why = "; ".join(f"{code}: {sentence(code)}" for code in codes)
        raise ConfigError(f"the enforcement point made this decision, not a policy ({why})")
    if len(found) != 1:
        many = f"{len(found) or 'no'} decisions that can be made again and whose id begins with `{wanted}`"
        raise ConfigError(f"{log.name} holds {many}")
    return next(iter(found.values()))


def _explained(policy: Policy, decision: Decision, request: EvaluationRequest) -> tuple[dict[str, Any], list[str]]:
    from langchain_runtime_authz.cli.policy.replay import rules

    fired = {code: rules(policy, code, decision.outcome) for code in decision.reasons}
    document = {
        "action": request.action.name,
        "resource": request.resource.id,
        "subject": request.subject.principal,
        "outcome": decision.outcome,
        "policy_revision": decision.policy_revision,
        "reasons": [{"code": c, "sentence": sentence(c), "rules": where} for c, where in fired.items()],
        "obligations": [asdict(o) for o in decision.obligations],
    }
    text = [] if fired else ["because   no rule denies it or asks"]
    for code, where in fired.items():
        text.append(f"because   {code}: {sentence(code)}")
        text.append(f"          {', '.join(where) or 'by default: no rule permits it'}")
    text += [f"obliges   {o.type} {json.dumps(o.properties)}" for o in decision.obligations]
    return document, text


def recorded_in(log: Path, key: Path | None) -> tuple[list[Recorded], int]:
    """Return what `read_decisions` does. Raises `ConfigError`: nothing can be decided again."""
    from langchain_runtime_authz.audit.seal import opener
    from langchain_runtime_authz.cli.policy.replay import read_decisions

    recorded, lost = read_decisions(log, None if key is None else opener(key))
    if not recorded:
        why = (
            "it has no contents; write it with `FileSink(path, content=True)`, or name the key to which they are sealed"
            if lost
            else "it is empty"
        )
        raise ConfigError(f"{log.name} holds no decision that can be made again: {why}")
    return recorded, lost


def said(answered: Answered) -> str:
    return answered.outcome + (f" ({', '.join(answered.reasons)})" if answered.reasons else "")
