"""The commands of `runtime-authz policy`."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_runtime_authz.cli._errors import FINDING, reporting
from langchain_runtime_authz.errors import Code, ConfigError, sentence

if TYPE_CHECKING:
    from langchain_runtime_authz.cli.policy.project import Policy
    from langchain_runtime_authz.cli.policy.replay import Flip, Recorded

__all__ = ["app"]

app = typer.Typer(
    help="""Write, test, compare, release and question policies.

    POLICY is a project directory (`policy init`), a bundle (`policy build`), an edited data.json, or
    absent for the policy that is shipped.

    \b
      init     start a project: data, profiles, grants, cases
      check    find what is wrong with it
      test     run its cases, and its Rego tests
      diff     what an edit would decide differently, on a recorded log: before it ships
      replay   what a policy decides today on what was recorded then
      explain  why a decision was taken, and what would change it
      build    one signed revision, to be followed by `ReloadingPDP`
      schema   the request that policies read, as JSON Schema

    Exit codes: 0; 1 for a finding (a failed case, a flip); 2 where a command could not do its work.""",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PolicyPath = Annotated[Path | None, typer.Argument(metavar="[POLICY]", help="Project, bundle or data.json.")]
Opa = Annotated[str | None, typer.Option("--opa", metavar="FILE", help="The OPA to call; default: $OPA, then PATH.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Log = Annotated[Path, typer.Argument(metavar="LOG", help="A log of `FileSink(path, content=True)`.")]

_STARTER = {
    "policy.yaml": "# Grows with every release; a policy never goes back.\nrevision: 1\n",
    "data.json": '{\n  "rates": {\n    "send": {"window": 60, "max": 20},\n    "pay": {"window": 60, "max": 5}\n  }\n}\n',
    "profiles.yaml": """# What each tool does: `runtime-authz inspect module:graph` lists yours to start from.
tools:
  read_file: {effect: read, sink: none, critical: {path: object}}
  send_money: {effect: pay, sink: external, critical: {recipient: principal, amount: amount}}
""",
    "grants.yaml": """# What an application gives for a task: `authz.run(subject=..., grant="small_payments")`.
grants:
  small_payments:
    tools: [read_file, send_money]
    args: {send_money: {amount: {le: 100}}}
""",
    "cases.yaml": """# Each case is the example request (`policy schema --example`) with some paths replaced.
cases:
  - name: a write that the task asks for is permitted
    expect: permit
  - name: a payment on somebody else's word is asked about
    request:
      resource.properties.effect: pay
      context.lease.grant: null
      context.call.provenance.account.standing: outside
    expect: approval_required
    reasons: [argument_source, effect]
  - name: nothing runs on a stale plan
    request: {context.plan.stale: true}
    expect: deny
    reasons: [stale_plan]
""",
}


@app.callback()
def _group() -> None:
    """Write, test, compare, release and question policies."""


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
) -> None:
    """Start a policy project that builds on the shipped policy. Nothing is overwritten.

    Rules of your own go to DIR/rego/*.rego as `package runtime_authz`: `denied contains "my_code" if ...`
    beside the shipped ones (then OPA is needed to test and build).

    \b
    Examples:
      runtime-authz policy init my-policy
      runtime-authz policy test my-policy
    """  # noqa: D301  (`\b` is what keeps the lines apart)
    with reporting():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"`{directory.name}` is not empty; name a new directory")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in _STARTER.items():
            (directory / name).write_text(text, encoding="utf-8")
            typer.echo(f"wrote  {directory / name}")
    typer.echo(f"next   runtime-authz policy test {directory}")


@app.command("check")
def check(policy: PolicyPath = None, opa: Opa = None) -> None:
    """Find what is wrong with a policy, without running it.

    Reads data and profiles against their shape, and Rego for what OPA would not say: a file in a place where
    none is read, a negated comparison (undefined, not true, where an operand is missing) and built-ins
    that Wasm does not have.

    \b
    Examples:
      runtime-authz policy check my-policy
      runtime-authz policy check data.json
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.lint import lint_rego
    from langchain_runtime_authz.cli.policy.project import SHIPPED_REGO, open_policy, read_rego, unread
    from langchain_runtime_authz.pdp.shipped_data import wrong_data
    from langchain_runtime_authz.pdp.wasm import DATA_ROOT

    with reporting():
        # Text first: what is found there explains why a compiler refuses.
        own = {f"rego/{f.name}": read_rego(f) for f in sorted((policy / "rego").glob("*.rego"))} if policy else {}
        found = unread(policy) if policy else []
        found += lint_rego({n: t for n, t in own.items() if not n.endswith("_test.rego")})
        if not found:
            opened = open_policy(policy, opa)
            found += lint_rego({n: t for n, t in opened.rego.items() if n not in own})
            data = opened.data.get(DATA_ROOT, opened.data if SHIPPED_REGO in opened.rego else {})
            found += [f"data.json: {line}" for line in wrong_data(data if isinstance(data, dict) else {})]
            if not found:
                opened.pdp().close()
    for line in found:
        typer.echo(line)
    typer.echo(f"{len(found)} findings" if found else "nothing found")
    if found:
        raise typer.Exit(FINDING)


@app.command("test")
def run_tests(policy: PolicyPath = None, opa: Opa = None) -> None:
    """Run a policy's cases on its Wasm, and its Rego tests (rego/*_test.rego) with OPA.

    Without rules of its own a policy needs no OPA. Exit code 1 if anything is decided otherwise.

    \b
    Examples:
      runtime-authz policy test my-policy
      runtime-authz policy test policy.tar.gz
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import open_policy

    with reporting():
        opened = open_policy(policy, opa)
        if not opened.cases:
            raise ConfigError(f"`{opened.name}` has no cases; write cases.yaml, see `policy init`", Code.POLICY_INVALID)
        failed = _run_cases(opened)
        rego = _run_rego_tests(policy, opened, opa)
    typer.echo(f"{len(opened.cases) - failed} of {len(opened.cases)} cases as expected{rego}")
    if failed:
        raise typer.Exit(FINDING)


def _run_cases(policy: Policy) -> int:
    from langchain_runtime_authz.cli.policy.replay import decide

    pdp = policy.pdp()
    try:
        decided = decide(pdp, [c.request for c in policy.cases])
    finally:
        pdp.close()
    failed = 0
    for case, decision in zip(policy.cases, decided, strict=True):
        wrong = case.unlike(decision)
        failed += bool(wrong)
        typer.echo(f"{'FAIL' if wrong else 'ok  '}  {case.name}{f': {wrong}' if wrong else ''}")
    return failed


def _run_rego_tests(source: Path | None, policy: Policy, opa: str | None) -> str:
    import tempfile

    from langchain_runtime_authz.cli.policy.project import read_rego, run_opa

    tests = sorted((source / "rego").glob("*_test.rego")) if source is not None and source.is_dir() else []
    if not tests:
        return ""
    with tempfile.TemporaryDirectory() as work:
        at = Path(work)
        for name, text in policy.rego.items():
            (at / name.rpartition("/")[2]).write_text(text, encoding="utf-8")
        for file in tests:
            (at / file.name).write_text(read_rego(file), encoding="utf-8")
        (at / "data.json").write_text(json.dumps(dict(policy.data)), encoding="utf-8")
        return "; opa: " + run_opa(opa, "test", ".", cwd=at).strip().splitlines()[-1]


@app.command("diff")
def diff(
    log: Log,
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The policy as it is.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The policy as it would be.")],
    as_json: AsJson = False,
    opa: Opa = None,
) -> None:
    """List what an edited policy would decide differently on a recorded log: before it ships.

    Also what it would oblige to otherwise, where the outcome stays. Requests hold the profiles of their time;
    tools whose profile is another in AFTER are named. Exit code 1 if anything flips or obliges otherwise.

    \b
    Examples:
      runtime-authz policy diff audit.jsonl my-policy my-policy-edited
      runtime-authz policy diff audit.jsonl policy-41.tar.gz policy-42.tar.gz --json
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import flips

    with reporting():
        recorded, lost = _recorded(log)
        new = open_policy(after, opa)
        found = flips(recorded, open_policy(before, opa), new)
    _tell(found, recorded, lost, new, as_json)


@app.command("replay")
def replay(log: Log, policy: PolicyPath = None, as_json: AsJson = False, opa: Opa = None) -> None:
    """Decide again, by a policy of today, what a log recorded; list what flips.

    Time, task, history and approvals are what they were: they are in the recorded request. What the
    enforcement point refused by itself is left out. Of obligations a log holds the types. Exit code 1 if
    anything flips or obliges otherwise.

    \b
    Examples:
      runtime-authz policy replay audit.jsonl my-policy
      runtime-authz policy replay audit.jsonl data.json
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import flips

    with reporting():
        recorded, lost = _recorded(log)
        new = open_policy(policy, opa)
        found = flips(recorded, None, new)
    _tell(found, recorded, lost, new, as_json)


def _recorded(log: Path) -> tuple[list[Recorded], int]:
    from langchain_runtime_authz.cli.policy.replay import read_log

    recorded, lost = read_log(log)
    if not recorded:
        why = "its contents were left out; write it with `FileSink(path, content=True)`" if lost else "it holds none"
        raise ConfigError(f"{log.name} holds no decision that can be taken again: {why}")
    return recorded, lost


def _tell(found: list[Flip], recorded: list[Recorded], lost: int, policy: Policy, as_json: bool) -> None:
    from langchain_runtime_authz.cli.policy.replay import other_profiles

    flips, others = [f for f in found if f.turns], [f for f in found if not f.turns]
    profiled = other_profiles(recorded, policy)
    if as_json:
        told = {
            "decided": len(recorded),
            "without_content": lost,
            "flips": [_flip(f) for f in flips],
            "obliged_otherwise": [_flip(f) for f in others],
            "other_profiles": profiled,
        }
        typer.echo(json.dumps(told, indent=2))
    else:
        for f in flips:
            typer.echo(
                f"flip  {f.decision_id[:12]}  {f.action} {f.asked}: "
                f"{_said(f.before, f.reasons_before)} -> {_said(f.after, f.reasons_after)}",
            )
        for f in others:
            was, now = (", ".join(terms) or "nothing" for terms in (f.obliged_before, f.obliged_after))
            typer.echo(f"duty  {f.decision_id[:12]}  {f.action} {f.asked}: {f.after}, obliges to {was} -> {now}")
        if profiled:
            typer.echo(f"note  recorded under other profiles, whose change is not shown: {', '.join(profiled)}")
        more = f"; {len(others)} oblige to something else" if others else ""
        left = f"; {lost} left out, their contents were not recorded" if lost else ""
        typer.echo(f"{len(flips)} of {len(recorded)} decisions flip{more}{left}")
    if found:
        raise typer.Exit(FINDING)


def _flip(f: Flip) -> dict[str, Any]:
    return {
        "decision_id": f.decision_id,
        "action": f.action,
        "resource": f.resource,
        "before": {"outcome": f.before, "reasons": list(f.reasons_before), "obligations": list(f.obliged_before)},
        "after": {"outcome": f.after, "reasons": list(f.reasons_after), "obligations": list(f.obliged_after)},
    }


def _said(outcome: str, reasons: tuple[str, ...]) -> str:
    return f"{outcome} ({', '.join(reasons)})" if reasons else outcome


@app.command("explain")
def explain(
    source: Annotated[Path, typer.Argument(metavar="LOG|REQUEST", help="A log, or a request in a JSON file.")],
    decision_id: Annotated[
        str | None,
        typer.Argument(metavar="[DECISION]", help="Id of a decision in the log, or its beginning."),
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="POLICY", help="Ask this policy.")] = None,
    as_json: AsJson = False,
    opa: Opa = None,
) -> None:
    """Say which rules decided, and the smallest changes that would change the outcome.

    Without DECISION, a log's decisions are listed. Each change that is named was tried on the policy;
    none of them is a recommendation.

    \b
    Examples:
      runtime-authz policy explain audit.jsonl
      runtime-authz policy explain audit.jsonl 3f9c2a
      runtime-authz policy explain request.json --policy my-policy
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import open_policy
    from langchain_runtime_authz.cli.policy.replay import asked, changes, decide, read_request, rules

    with reporting():
        opened = open_policy(policy, opa)
        recorded = None
        if source.suffix == ".json" and decision_id is None:
            request = read_request(source)
        else:
            recorded = _find(_recorded(source)[0], decision_id, source, as_json)
            if recorded is None:
                return
            request = recorded.request
        pdp = opened.pdp()
        try:
            (decision,) = decide(pdp, [request])
            otherwise = changes(pdp, request, decision)
        finally:
            pdp.close()
    fired = {code: rules(opened, code, decision.outcome) for code in decision.reasons}
    if as_json:
        typer.echo(json.dumps(_explained(decision, recorded, fired, otherwise, request), indent=2))
        return
    typer.echo(f"{request.action.name} {asked(request)} by {request.subject.type} {request.subject.id}")
    typer.echo(f"decided   {decision.outcome} under {decision.policy_revision or opened.name}")
    if recorded is not None and (recorded.outcome, recorded.reasons) != (decision.outcome, decision.reasons):
        typer.echo(
            f"recorded  {_said(recorded.outcome, recorded.reasons)} under {recorded.revision}: not what this policy says"
        )
    for code, where in fired.items():
        typer.echo(f"because   {code}: {sentence(code)}")
        typer.echo(f"          {', '.join(where) or 'by the default: no rule permits it'}")
    if not fired:
        typer.echo("because   no rule denies it and none asks")
    for obligation in decision.obligations:
        typer.echo(f"obliges   {obligation.type} {json.dumps(obligation.properties)}")
    for words, outcome in otherwise:
        typer.echo(f"{outcome} if {'; and '.join(words)}")
    if not otherwise:
        typer.echo("no change of up to three of the facts that were tried changes the outcome")


def _find(recorded: list[Recorded], wanted: str | None, log: Path, as_json: bool) -> Recorded | None:
    from langchain_runtime_authz.cli.policy.replay import asked, refused

    if wanted is None and as_json:
        listed = [
            {
                "decision_id": r.decision_id,
                "action": r.request.action.name,
                "resource": r.request.resource.id,
                "outcome": r.outcome,
                "reasons": list(r.reasons),
            }
            for r in recorded
        ]
        typer.echo(json.dumps({"decisions": listed}, indent=2))
        return None
    if wanted is None:
        for r in recorded:
            typer.echo(
                f"{r.decision_id[:12]}  {r.request.action.name} {asked(r.request)}: {_said(r.outcome, r.reasons)}"
            )
        return None
    found = {r.decision_id: r for r in recorded if r.decision_id.startswith(wanted)}
    if not found and (codes := refused(log, wanted)):
        why = "; ".join(f"{code}: {sentence(code)}" for code in codes)
        raise ConfigError(f"no policy took this decision, the enforcement point refused by itself ({why})")
    if len(found) != 1:
        raise ConfigError(
            f"{log.name} holds {len(found) or 'no'} decisions whose id begins with `{wanted}` and can be taken again"
        )
    return next(reversed([r for r in recorded if r.decision_id in found]))


def _explained(decision: Any, recorded: Any, fired: Any, otherwise: Any, request: Any) -> dict[str, Any]:
    return {
        "action": request.action.name,
        "resource": request.resource.id,
        "subject": request.subject.principal,
        "outcome": decision.outcome,
        "policy_revision": decision.policy_revision,
        "recorded": None
        if recorded is None
        else {"outcome": recorded.outcome, "reasons": list(recorded.reasons), "policy_revision": recorded.revision},
        "reasons": [{"code": c, "sentence": sentence(c), "rules": where} for c, where in fired.items()],
        "obligations": [asdict(o) for o in decision.obligations],
        "changes": [{"if": list(words), "outcome": outcome} for words, outcome in otherwise],
    }


@app.command("build")
def build(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A project.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The bundle to write.")],
    revision: Annotated[int | None, typer.Option("--revision", min=1, help="In place of policy.yaml's.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="PEM", help="Private key to sign it with.")] = None,
    algorithm: Annotated[str, typer.Option("--alg", help="ES256, EdDSA, RS256 and their kin.")] = "ES256",
    key_id: Annotated[str, typer.Option("--key-id", help="Under which the key is trusted.")] = "default",
    opa: Opa = None,
) -> None:
    """Make one revision of policy, data, profiles, grants and cases: an OPA bundle, signed with --key.

    Its cases are run first; if one fails nothing is written and the exit code is 1. Rules in Rego are
    compiled by OPA. `ReloadingPDP(FILE, keys={KEY_ID: PEM})` follows the file; an OPA server can serve it.

    \b
    Examples:
      runtime-authz policy build my-policy -o policy.tar.gz
      runtime-authz policy build my-policy -o policy.tar.gz --revision 42 --key release.pem --key-id release
    """  # noqa: D301
    from langchain_runtime_authz.cli.policy.project import bundle_files, open_policy
    from langchain_runtime_authz.pap.bundle import pack, parse_bundle
    from langchain_runtime_authz.pap.reloading import self_test
    from langchain_runtime_authz.pap.signature import SIGNATURES, sign

    with reporting():
        if output.is_dir():
            raise ConfigError(f"`{output}` is a directory; name the file to write")
        opened = open_policy(policy, opa)
        if opened.wasm is None or not (policy / "policy.yaml").is_file():
            raise ConfigError(
                f"`{opened.name}` is no project; `runtime-authz policy init` makes one", Code.POLICY_INVALID
            )
        failed = _run_cases(opened)
        if failed:
            typer.echo(f"{failed} cases are decided otherwise: nothing was written", err=True)
            raise typer.Exit(FINDING)
        files = bundle_files(opened, revision or opened.number)
        if key is not None:
            files[SIGNATURES] = sign(files, key.read_bytes(), algorithm, key_id)
        made = parse_bundle(files, output.name, None)
        with closing(opened.pdp()) as pdp:
            self_test(pdp, made)
        new = output.with_name(output.name + ".new")
        new.write_bytes(pack(files))
        new.replace(output)
    typer.echo(f"wrote     {output}")
    typer.echo(f"revision  {made.revision}")
    typer.echo(f"signed    {f'by {key_id} ({algorithm})' if key is not None else 'no; give --key'}")


@app.command("schema")
def schema(
    example: Annotated[bool, typer.Option("--example", help="Print the request that cases start from.")] = False,
) -> None:
    """Print the JSON Schema of the request that a policy reads.

    \b
    Examples:
      runtime-authz policy schema > request.schema.json
      runtime-authz policy schema --example > request.json
    """  # noqa: D301
    from langchain_runtime_authz.authzen import request_schema
    from langchain_runtime_authz.testing.requests import example_request

    document = json.loads(example_request().to_json()) if example else request_schema()
    typer.echo(json.dumps(document, indent=2, sort_keys=not example))
