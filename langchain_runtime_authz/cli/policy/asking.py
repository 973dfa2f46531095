"""`runtime-authz policy explain | try`: decide one request, and say why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from langchain_runtime_authz.cli._errors import Json, Key, reporting, show
from langchain_runtime_authz.errors import AuthzError, ConfigError, sentence

if TYPE_CHECKING:
    from langchain_runtime_authz.authzen import Decision, EvaluationRequest
    from langchain_runtime_authz.cli.policy.replay import Recorded

__all__ = ["Opa", "PolicyPath", "explain", "recorded_in", "said", "try_request"]

POLL: Final = 0.3  # seconds between looks at files
PolicyPath = Annotated[Path | None, typer.Argument(metavar="[POLICY]", help="Project, bundle or data.json.")]
Opa = Annotated[str | None, typer.Option("--opa", metavar="FILE", help="The OPA to call; default: $OPA, then PATH.")]


def try_request(
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="A request in a JSON file; made if it is missing.")
    ],
    policy: PolicyPath = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again at each save of the request or the policy.")] = False,
    log: Annotated[Path | None, typer.Option("--log", metavar="LOG", help="Take the request from this log.")] = None,
    decision_id: Annotated[str | None, typer.Option("--decision", metavar="ID", help="The decision to take.")] = None,
    key: Key = None,
    as_json: Json = False,
    opa: Opa = None,
) -> None:
    """Decide a request in a file. Edit the file or the policy, and see the answer again.

    If REQUEST is missing, it is written first: the example request, or the one of a recorded decision.

    \b
    Examples:
      runtime-authz policy try request.json my-policy --watch
      runtime-authz policy try request.json my-policy --log audit.jsonl --decision 3f9c2a
    """  # noqa: D301
    from langchain_runtime_authz.testing.requests import example_request

    with reporting():
        if not request.exists():
            found = None if log is None else _find(recorded_in(log, key)[0], decision_id or "", log, as_json=False)
            body = (example_request() if found is None else found.request).to_json()
            request.write_text(json.dumps(json.loads(body), indent=2) + "\n", encoding="utf-8")
            typer.echo(f"wrote     {request}", err=as_json)
        seen = _stamps(request, policy)
        if not watch:
            _try(request, policy, opa, as_json)
            return
        while True:
            try:
                _try(request, policy, opa, as_json)
            except AuthzError as exc:
                typer.echo(f"error     {exc}", err=as_json)
            typer.echo("")
            while (now := _stamps(request, policy)) == seen:
                time.sleep(POLL)
            seen = now


def _stamps(*paths: Path | None) -> list[tuple[str, int]]:
    """Return what changes when one of the files does."""
    files: Iterable[Path] = (f for p in paths if p is not None for f in (sorted(p.rglob("*")) if p.is_dir() else [p]))
    return [(str(f), f.stat().st_mtime_ns) for f in files if f.is_file()]


def _try(source: Path, policy: Path | None, opa: str | None, as_json: bool) -> None:
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import asked, decide, read_request, rules, zoned

    opened = open_policy(policy, opa)
    request = zoned(opened, read_request(source))
    with closing(opened.pdp()) as pdp:
        (decision,) = decide(pdp, [request])
    fired = {code: rules(opened, code, decision.outcome) for code in decision.reasons}
    if as_json:
        show(_explained(decision, request, fired), as_json)
        return
    typer.echo(f"{decision.outcome:<9} {request.action.name} {asked(request)}")
    _because(fired, decision)


def explain(
    source: Annotated[Path, typer.Argument(metavar="LOG|REQUEST", help="A log, or a request in a JSON file.")],
    decision_id: Annotated[
        str | None, typer.Argument(metavar="[DECISION]", help="Id of a decision in the log, or its beginning.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="POLICY", help="Ask this policy.")] = None,
    as_json: Json = False,
    key: Key = None,
    opa: Opa = None,
) -> None:
    """Show which rules decided, and the smallest changes that would change the outcome.

    Without DECISION, a log's decisions are listed. Each change was tried on the policy. It is not a recommendation.

    \b
    Examples:
      runtime-authz policy explain audit.jsonl
      runtime-authz policy explain audit.jsonl 3f9c2a
      runtime-authz policy explain request.json --policy my-policy
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import asked, changes, decide, read_request, rules, zoned

    with reporting():
        opened = open_policy(policy, opa)
        recorded = None
        if source.suffix == ".json" and decision_id is None:
            request = read_request(source)
        else:
            recorded = _find(recorded_in(source, key)[0], decision_id, source, as_json)
            if recorded is None:
                return
            request = recorded.request
        request = zoned(opened, request)
        with closing(opened.pdp()) as pdp:
            (decision,) = decide(pdp, [request])
            otherwise = changes(pdp, request, decision)
    fired = {code: rules(opened, code, decision.outcome) for code in decision.reasons}
    if as_json:
        was: dict[str, Any] | None = None
        if recorded is not None:
            reasons, revision = list(recorded.reasons), recorded.revision
            was = {"outcome": recorded.outcome, "reasons": reasons, "policy_revision": revision}
        more = [{"if": list(words), "outcome": outcome} for words, outcome in otherwise]
        show({**_explained(decision, request, fired), "recorded": was, "changes": more}, as_json)
        return
    typer.echo(f"{request.action.name} {asked(request)} by {request.subject.type} {request.subject.id}")
    typer.echo(f"decided   {decision.outcome} under {decision.policy_revision or opened.name}")
    if recorded is not None and (recorded.outcome, recorded.reasons) != (decision.outcome, decision.reasons):
        typer.echo(
            f"recorded  {said(recorded.outcome, recorded.reasons)} under {recorded.revision}; this policy decides differently"
        )
    _because(fired, decision)
    for words, outcome in otherwise:
        typer.echo(f"{outcome} if {'; and '.join(words)}")
    if not otherwise:
        typer.echo("no change of up to three facts changes the outcome")


def _find(recorded: list[Recorded], wanted: str | None, log: Path, as_json: bool) -> Recorded | None:
    from langchain_runtime_authz.cli.policy.replay import asked, refused

    if wanted is None and as_json:
        fields = ("decision_id", "action", "resource", "outcome", "reasons")
        rows = ((r.decision_id, r.request.action.name, r.request.resource.id, r.outcome, r.reasons) for r in recorded)
        typer.echo(json.dumps({"decisions": [dict(zip(fields, row, strict=True)) for row in rows]}, indent=2))
        return None
    if wanted is None:
        for r in recorded:
            typer.echo(
                f"{r.decision_id[:12]}  {r.request.action.name} {asked(r.request)}: {said(r.outcome, r.reasons)}"
            )
        return None
    found = {r.decision_id: r for r in recorded if r.decision_id.startswith(wanted)}
    if not found and (codes := refused(log, wanted)):
        why = "; ".join(f"{code}: {sentence(code)}" for code in codes)
        raise ConfigError(f"the enforcement point made this decision, not a policy ({why})")
    if len(found) != 1:
        raise ConfigError(
            f"{log.name} holds {len(found) or 'no'} decisions that can be made again and whose id begins with `{wanted}`"
        )
    return next(reversed([r for r in recorded if r.decision_id in found]))


def _explained(decision: Decision, request: EvaluationRequest, fired: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "action": request.action.name,
        "resource": request.resource.id,
        "subject": request.subject.principal,
        "outcome": decision.outcome,
        "policy_revision": decision.policy_revision,
        "reasons": [{"code": c, "sentence": sentence(c), "rules": where} for c, where in fired.items()],
        "obligations": [asdict(o) for o in decision.obligations],
    }


def _because(fired: Mapping[str, list[str]], decision: Decision) -> None:
    for code, where in fired.items():
        typer.echo(f"because   {code}: {sentence(code)}")
        typer.echo(f"          {', '.join(where) or 'by default: no rule permits it'}")
    if not fired:
        typer.echo("because   no rule denies it or asks")
    for obligation in decision.obligations:
        typer.echo(f"obliges   {obligation.type} {json.dumps(obligation.properties)}")


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


def said(outcome: str, reasons: tuple[str, ...]) -> str:
    """Return an outcome with its reasons."""
    return f"{outcome} ({', '.join(reasons)})" if reasons else outcome
