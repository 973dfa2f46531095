"""`runtime-authz audit verify` and `runtime-authz controls`: evidence that the log is whole and the rules are tested."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from langchain_runtime_authz.cli._errors import FINDING, Json, fail, reporting, show
from langchain_runtime_authz.errors import AuditError, Code, ConfigError

app = typer.Typer(help="Read the decision log.", no_args_is_help=True, rich_markup_mode=None)
POLICIES: Final = resources.files("langchain_runtime_authz") / "policies"
_WORST: Final = ("failed", "skipped", "not run", "passed")
DAY: Final = 86_400.0
SIX_MONTHS: Final = 184  # days
REGO: Final = "rego/runtime_authz.rego"


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="The log that `RuntimeAuthz(audit=FILE)` wrote, or an evidence pack.")],
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="HASH", help="The hash that the last line must have, from elsewhere."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a decision log with all its segments, from first line to last, alone or in an evidence pack (`audit pack`).

    Without --head, an edit of the last line and a cut at the end are not found. Keep the printed head somewhere
    else, and give it next time.

    \b
    Examples:
      runtime-authz audit verify audit.jsonl
      runtime-authz audit verify audit.jsonl --head "$(cat pinned-head)"
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz.audit.chain import verify_log

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise typer.BadParameter("must be 64 hexadecimal digits", param_hint="--head")
    with reporting():
        manifest = ""
        if zipfile.is_zipfile(file):
            from langchain_runtime_authz.audit.evidence import verify_pack

            report, manifest = verify_pack(file, head)
        else:
            report = verify_log(file, head)
    pinned = "and ends at the pinned head" if head is not None else "but no head was given: its end is not verified"
    result = f"whole, {pinned}" if report.ok else f"BROKEN at {report.where}"
    found = {"manifest": manifest or None, "records": report.records, "head": report.head, "result": result}
    show({"ok": report.ok, **found} if as_json else found, as_json)
    if not report.ok:
        fail(AuditError(Code.CHAIN_BROKEN, f"{file.name}, {report.where}: {report.error}"), FINDING)


@app.command("prune")
def prune(
    log: Annotated[Path, typer.Option("--log", envvar="RUNTIME_AUTHZ_AUDIT", metavar="FILE", help="The log.")],
    days: Annotated[float, typer.Option("--older-than", min=0, metavar="DAYS", help="Age of a segment's last record.")],
    as_json: Json = False,
) -> None:
    """Remove old closed segments of a log (`FileSink(max_bytes=, max_age=)`). Without this command all are kept.

    The log first records the head of each, so it still verifies.

    \b
    Example:
      runtime-authz audit prune --log audit.jsonl --older-than 400
    """  # noqa: D301
    from langchain_runtime_authz.audit.retention import drop_segments

    with reporting():
        dropped = drop_segments(log, time.time() - days * DAY)
    show(
        {"removed": dropped}, as_json, "".join(f"removed  {n}\n" for n in dropped) + f"{len(dropped)} segments removed"
    )
    if days < SIX_MONTHS:
        note = "note     the EU AI Act, article 26(6), asks deployers of high-risk systems for at least six months"
        typer.echo(note, err=as_json)


def controls(
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="A report of `pytest --junitxml FILE`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print which published control each shipped rule helps with, the tests that show it, and their last result.

    The controls are those of OWASP Agentic, OWASP NHI, MAESTRO and NIST AI RMF. Without --results, no test counts
    as passed. Exit code 1 if a named test failed.

    \b
    Examples:
      runtime-authz controls
      pytest --junitxml report.xml; runtime-authz controls --results report.xml --json
    """  # noqa: D301
    with reporting():
        document = controls_document(results)
    typer.echo(json.dumps(document, indent=2) if as_json else _text(document))
    shown = (s for f in document["frameworks"] for c in f["controls"] for s in (*c["attacks"], *c["rules"]))
    if any(s["result"] == "failed" for s in shown):
        raise typer.Exit(FINDING)


def controls_document(results: Path | None = None) -> dict[str, Any]:
    """Return what `controls` prints. Raises `ConfigError`: the results are not a JUnit report."""
    return _document(load(), {} if results is None else read_results(results))


def load() -> dict[str, Any]:
    """Return the mapping of `policies/controls.yaml`."""
    import yaml

    loaded: dict[str, Any] = yaml.safe_load((POLICIES / "controls.yaml").read_text(encoding="utf-8"))
    return loaded


def own_test(reason: str) -> str:
    """Return the test that every mapped rule has: a request that this rule alone decides."""
    return f"tests/unit_tests/test_controls.py::test_a_rule_gives_its_reason[{reason}]"


@cache
def rule_lines(reason: str) -> list[int]:
    """Return the lines of the shipped policy that give a reason or an obligation."""
    kind, _, obligation = reason.rpartition("obligation:")
    name = re.escape(obligation)
    given = (
        rf'"type": "{name}"'
        if kind or reason.startswith("obligation:")
        else rf'^(denied|asked) contains "{name}"|^\s*"max_\w+": "{name}",'
    )
    text = (POLICIES / REGO).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(text, 1) if re.search(given, line)]


def read_results(path: Path) -> dict[str, Counter[str]]:
    """Return how often each test passed, failed or was skipped. A parametrised case also counts for its function.

    Raises:
        ConfigError: the file is not a JUnit report.
    """
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  (the operator's own report)
    except ElementTree.ParseError as exc:
        raise ConfigError(f"{path.name} is not a JUnit report: {exc}") from exc
    if root.tag not in ("testsuites", "testsuite"):
        raise ConfigError(f"{path.name} is not a JUnit report")
    found: dict[str, Counter[str]] = {}
    for case in root.iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        node = f"{module.replace('.', '/')}.py::{name}"
        for at in {node, node.partition("[")[0]}:
            found.setdefault(at, Counter())[result] += 1
    return found


def _result(node: str, seen: dict[str, Counter[str]]) -> str:
    counted = seen.get(node)
    return "not run" if not counted else next(r for r in _WORST if counted[r])


def _document(mapping: dict[str, Any], seen: dict[str, Counter[str]]) -> dict[str, Any]:
    frameworks = []
    for key, framework in mapping["frameworks"].items():
        listed = []
        for control, title in framework["controls"].items():
            rules = [_rule(r, seen) for r in mapping["rules"] if control in r[key]]
            attacks = [{"test": n, "result": _result(n, seen)} for n in framework.get("attacks", {}).get(control, ())]
            listed.append({"id": control, "title": title, "attacks": attacks, "rules": rules})
        told = {name: framework[name] for name in ("title", "source", "titles_from")}
        frameworks.append({"id": key, **told, "controls": listed})
    return {"policy": REGO, "frameworks": frameworks, "crosswalk": mapping["crosswalk"]}


def _rule(rule: dict[str, Any], seen: dict[str, Counter[str]]) -> dict[str, Any]:
    nodes = [own_test(rule["reason"]), *rule.get("tests", [])]
    tests = [{"test": n, "result": _result(n, seen)} for n in nodes]
    worst = min((t["result"] for t in tests), key=_WORST.index)
    return {"reason": rule["reason"], "lines": rule_lines(rule["reason"]), "result": worst, "tests": tests}


def _text(document: dict[str, Any]) -> str:
    lines = []
    for framework in document["frameworks"]:
        lines += [framework["title"], framework["source"], f"titles read from {framework['titles_from']}"]
        for control in framework["controls"]:
            lines.append(f"  {control['id']}  {control['title']}{'' if control['rules'] else ': no rule, not claimed'}")
            lines += [f"    {t['result']:8} {t['test']}" for t in control["attacks"]]
            for rule in control["rules"]:
                at = ", ".join(map(str, rule["lines"]))
                lines.append(f"    {rule['reason']}  ({document['policy']}:{at})  {rule['result']}")
                lines += [f"      {t['result']:8} {t['test']}" for t in rule["tests"]]
        lines.append("")
    lines.append("Crosswalk of ids that are in no published list (this project's own):")
    lines += [f"  {c['id']} -> {', '.join(c['controls'])}" for c in document["crosswalk"]]
    return "\n".join(lines)
