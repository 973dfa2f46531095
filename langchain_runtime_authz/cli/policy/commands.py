"""`runtime-authz policy`: make, check, test, compare, explain and build policies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from typer import Argument, Option

from langchain_runtime_authz._renewed_files import replace_file
from langchain_runtime_authz.cli._app import App, Key, Printout, echo, lines
from langchain_runtime_authz.errors import AuditError, AuthzError, Code, ConfigError

if TYPE_CHECKING:
    from langchain_runtime_authz.cli.policy.open_policy import Policy

app = App(
    help="""Write, test, compare, release and question policies.

    POLICY is a project directory (`policy init`), a bundle (`policy build`) or an edited data.json. Without POLICY
    the shipped policy is used. Rules in Rego need OPA: the binary that $OPA names, or `opa` on the PATH.

    Exit codes: 0; 1 for a finding (a failed case, a flip); 2 if a command could not do its work.""",
)

WATCH_INTERVAL: Final = 0.3  # seconds between looks at files
PolicyPath = Annotated[Path | None, Argument(metavar="POLICY", help="Project, bundle or data.json.")]
Log = Annotated[Path, Argument(metavar="LOG", help="A log of `FileSink(path, content=True)`.")]

_STARTER = Path(__file__).with_name("starter")


@app.command("init")
def init(
    directory: Annotated[Path, Argument(metavar="DIR", help="A new or empty directory.")],
    engine: Annotated[Literal["rego", "cedar"], Option("--engine", help="The language of your rules.")] = "rego",
) -> Printout:
    """Start a policy project on top of the shipped policy. Nothing is overwritten.

    Put rules of your own in DIR/rego/*.rego as `package runtime_authz`: `denied contains "my_code" if ...` adds to
    the shipped rules. Testing and building them needs OPA. With `--engine cedar` your rules are `forbid` policies in
    DIR/cedar/*.cedar, which need only the extra `cedar`.

    runtime-authz policy init my-policy
    runtime-authz policy init my-policy --engine cedar
    runtime-authz policy test my-policy
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"`{directory.name}` is not empty; name a new directory")
    wrote = []
    other = "data.json" if engine == "cedar" else "cedar/own.cedar"
    for file in sorted(f for f in _STARTER.rglob("*") if f.is_file()):
        if (name := file.relative_to(_STARTER).as_posix()) == other:
            continue
        text = file.read_text(encoding="utf-8")
        text += "engine: cedar\n" if engine == "cedar" and name == "policy.yaml" else ""
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
        wrote.append(str(directory / name))
    lines = [*(f"wrote  {file}" for file in wrote), f"next   runtime-authz policy test {directory}"]
    return Printout({"wrote": str(directory), "files": wrote}, lines)


@app.command("check")
def check(policy: PolicyPath = None) -> Printout:
    """Find what is wrong with a policy, without running it.

    Checks the shape of data and profiles, and built-ins that Wasm lacks. Finds what OPA does not report: a misplaced
    file, a negated comparison (undefined if an operand is missing), rules that nothing reads, and paths below `input`
    or `data` that do not exist.

    runtime-authz policy check my-policy
    runtime-authz policy check data.json
    """
    from langchain_runtime_authz.cli.policy.open_policy import misplaced_files, open_policy, read_rego
    from langchain_runtime_authz.cli.policy.rego_lint import lint_policy, lint_rego

    # Lint the text first, because its findings explain a compiler's errors.
    own = {f"rego/{f.name}": read_rego(f) for f in sorted((policy / "rego").glob("*.rego"))} if policy else {}
    found = misplaced_files(policy) if policy else []
    found += lint_rego({n: t for n, t in own.items() if not n.endswith("_test.rego")})
    if not found:
        opened = open_policy(policy)
        found += [] if opened.cedar else lint_policy(opened, own)
        if not found:
            opened.pdp().close()
    return Printout({"findings": found}, [*found, f"findings: {len(found)}" if found else "nothing found"], bool(found))


@app.command("test")
def run_tests(policy: PolicyPath = None, as_json: bool = False) -> Printout:
    """Run a policy's cases on its Wasm, and its Rego tests with OPA.

    The Rego tests are rego/*_test.rego. A policy without its own rules does not need OPA. Exit code 1 if a case fails.

    runtime-authz policy test my-policy
    runtime-authz policy test policy.tar.gz
    """
    from langchain_runtime_authz.cli.policy.open_policy import open_policy, run_rego_tests

    opened = open_policy(policy)
    if not opened.cases:
        raise ConfigError(f"`{opened.name}` has no cases; write cases.yaml, see `policy init`", Code.POLICY_INVALID)
    cases, failed = _run_cases(opened, as_json)
    rego = run_rego_tests(policy, opened)
    text = f"{len(cases) - failed} of {len(cases)} cases as expected{f'; opa: {rego}' if rego else ''}"
    return Printout({"cases": cases, "failed": failed, "opa": rego}, text, bool(failed))


def _run_cases(policy: Policy, quiet: bool) -> tuple[list[dict[str, str | None]], int]:
    """Run a policy's cases. Return (1) their results, (2) the number of failures."""
    from langchain_runtime_authz.cli.policy.recorded_requests import decide

    with closing(policy.pdp()) as pdp:
        decided = decide(pdp, [c.request for c in policy.cases])
    cases: list[dict[str, str | None]] = []
    for case, decision in zip(policy.cases, decided, strict=True):
        wrong = case.unlike(decision) or None
        cases.append({"case": case.name, "wrong": wrong})
        if not quiet:
            echo(f"{'FAIL' if wrong else 'ok  '}  {case.name}{f': {wrong}' if wrong else ''}")
    return cases, sum(case["wrong"] is not None for case in cases)


@app.command("diff")
def diff(
    log: Log,
    before: Annotated[Path, Argument(metavar="BEFORE", help="The policy today.")],
    after: Annotated[Path, Argument(metavar="AFTER", help="The edited policy.")],
    key: Key = None,
) -> Printout:
    """List the decisions of a recorded log that an edited policy would change.

    It also lists decisions with the same outcome and other obligations. A recorded request holds the tool's profile at
    that time; tools that have another profile in AFTER are named. Exit code 1 if an outcome or obligation changes.

    runtime-authz policy diff audit.jsonl my-policy my-policy-edited
    runtime-authz policy diff audit.jsonl policy-41.tar.gz policy-42.tar.gz --json
    """
    from langchain_runtime_authz.cli.policy.recorded_requests import compare_decisions

    return compare_decisions(log, key, after, before)


@app.command("replay")
def replay(log: Log, policy: PolicyPath = None, key: Key = None) -> Printout:
    """Decide a recorded log again by the present policy, and list the changes.

    Time, task, history and approvals are those of the recorded request. The zone is the policy's, if it names one.
    Refusals by the enforcement point itself are left out. Obligations are compared by type only, because a log holds
    only their types. Exit code 1 if an outcome or obligation changes.

    runtime-authz policy replay audit.jsonl my-policy
    runtime-authz policy replay audit.jsonl data.json
    """
    from langchain_runtime_authz.cli.policy.recorded_requests import compare_decisions

    return compare_decisions(log, key, policy)


@app.command("explain")
def explain(
    log: Log,
    decision_id: Annotated[str | None, Argument(metavar="DECISION", help="A decision's id, or its beginning.")] = None,
    policy: Annotated[Path | None, Option(metavar="POLICY", help="Ask this policy.")] = None,
    key: Key = None,
) -> Printout:
    """Show which rules decided, and the smallest changes to get another outcome.

    Without DECISION, a log's decisions are listed. Each change was tried on the policy. It is not a recommendation.

    runtime-authz policy explain audit.jsonl
    runtime-authz policy explain audit.jsonl 3f9c2a
    """
    from langchain_runtime_authz.cli.policy import recorded_requests as again
    from langchain_runtime_authz.cli.policy.open_policy import open_policy

    opened = open_policy(policy)
    try:
        decisions, _ = again.recorded_in(log, key)
    except AuditError as exc:
        if log.suffix != ".json":
            raise
        raise ConfigError(f"{log.name} is not a log; `runtime-authz policy try` decides a request in a file") from exc
    if decision_id is None:
        return again.list_decisions(decisions)
    recorded = again.find(decisions, decision_id, log)
    request = again.in_policy_zone(opened, recorded.request)
    with closing(opened.pdp()) as pdp:
        (decision,) = again.decide(pdp, [request])
        otherwise = again.changes(pdp, request, decision)
    document, because = again.in_words(opened, decision, request)
    text = [f"{request.action.name} {again.request_line(request)} by {request.subject.type} {request.subject.id}"]
    text.append(f"decided   {decision.outcome} under {decision.policy_revision or opened.name}")
    outcome, reasons, _ = recorded.answered
    was = {"outcome": outcome, "reasons": reasons, "policy_revision": recorded.revision}
    if (outcome, reasons) != (decision.outcome, decision.reasons):
        said_then = f"recorded  {again.outcome_text(recorded.answered)} under {recorded.revision}"
        text.append(f"{said_then}; this policy decides differently")
    text += [*because, *(f"{outcome} if {'; and '.join(words)}" for words, outcome in otherwise)]
    text += [] if otherwise else ["no change of up to three facts changes the outcome"]
    more = [{"if": words, "outcome": outcome} for words, outcome in otherwise]
    return Printout({**document, "recorded": was, "changes": more}, text)


@app.command("try")
def try_request(
    request: Annotated[Path, Argument(metavar="REQUEST", help="A request in a JSON file; made if it is missing.")],
    policy: PolicyPath = None,
    watch: Annotated[bool, Option("--watch", help="Again at each save of the request or the policy.")] = False,
    as_json: bool = False,
) -> Printout:
    """Decide a request in a file. With --watch, decide again after each edit.

    If REQUEST is missing, the example request is written first.

    runtime-authz policy try request.json my-policy --watch
    """
    from langchain_runtime_authz.cli.policy.recorded_requests import decide_file
    from langchain_runtime_authz.testing.example_request import example_request

    if not request.exists():
        request.write_text(json.dumps(json.loads(example_request().to_json()), indent=2) + "\n", encoding="utf-8")
        echo(f"wrote     {request}", err=as_json)
    while watch:
        seen = _stamps(request, policy)
        try:
            decide_file(request, policy).show(as_json)
        except AuthzError as exc:
            echo(f"error     {exc}", err=as_json)
        echo("")
        while _stamps(request, policy) == seen:
            time.sleep(WATCH_INTERVAL)
    return decide_file(request, policy)


def _stamps(*paths: Path | None) -> list[tuple[str, int]]:
    files: Iterable[Path] = (f for p in paths if p is not None for f in (sorted(p.rglob("*")) if p.is_dir() else [p]))
    return [(str(f), f.stat().st_mtime_ns) for f in files if f.is_file()]


@app.command("build")
def build(
    policy: Annotated[Path, Argument(metavar="POLICY", help="A project.")],
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The bundle to write.")],
    revision: Annotated[int | None, Option(min=1, help="Replaces the revision in policy.yaml.")] = None,
    key: Annotated[Path | None, Option(metavar="PEM", help="Private key to sign it with.")] = None,
    algorithm: Annotated[str, Option("--alg", help="ES256, EdDSA, RS256 or a relative.")] = "ES256",
    key_id: Annotated[str, Option(help="The id under which the key is trusted.")] = "default",
    as_json: bool = False,
) -> Printout:
    """Make one revision of a policy: an OPA bundle, signed with --key.

    The bundle holds policy, data, profiles, grants and cases. If a case fails, nothing is written and the exit code is
    1. OPA compiles Rego. `ReloadingPDP(FILE, keys={KEY_ID: PEM})` follows the file; an OPA server can serve it.

    runtime-authz policy build my-policy -o policy.tar.gz
    runtime-authz policy build my-policy -o policy.tar.gz --revision 42 --key release.pem --key-id release
    """
    from langchain_runtime_authz.cli.policy.open_policy import bundle_files, open_policy
    from langchain_runtime_authz.pap.bundle import SIGNATURES, pack, parse_bundle, policy_error, sign

    if output.is_dir():
        raise ConfigError(f"`{output}` is a directory; name the file to write")
    opened = open_policy(policy)
    if not (policy / "policy.yaml").is_file():
        raise policy_error(f"`{opened.name}` is not a project; `runtime-authz policy init` makes one")
    files = bundle_files(opened, revision or opened.number)
    if key is not None:
        files[SIGNATURES] = sign(files, key.read_bytes(), algorithm, key_id)
    made = parse_bundle(files, output.name, None)
    cases, failed = _run_cases(opened, as_json)
    if failed:
        echo(f"{failed} cases are decided differently: nothing was written", err=True)
        return Printout({"wrote": None, "cases": cases}, (), finding=True)
    with closing(opened.pdp()) as pdp:
        made.self_test(pdp)
    replace_file(output, pack(files))
    signed = f"by {key_id} ({algorithm})" if key is not None else "no; give --key"
    told = {"wrote": str(output), "revision": made.revision, "signed": signed}
    return Printout({**told, "cases": cases}, lines(told))


@app.command("schema")
def schema(
    example: Annotated[bool, Option("--example", help="Print the request that cases start from.")] = False,
) -> None:
    """Print the JSON Schema of the request that a policy reads.

    runtime-authz policy schema > request.schema.json
    runtime-authz policy schema --example > request.json
    """
    from langchain_runtime_authz.evaluation import request_schema
    from langchain_runtime_authz.testing.example_request import example_request

    document = json.loads(example_request().to_json()) if example else request_schema()
    echo(json.dumps(document, indent=2, sort_keys=not example))
