"""`runtime-authz audit verify | prune | pack`, `runtime-authz controls`: evidence of a whole log and of tested rules."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from typer import Argument, Option

from langchain_runtime_authz.cli._app import Answer, App, lines
from langchain_runtime_authz.cli.policy.asking import Opa
from langchain_runtime_authz.cli.story import LOG, Log
from langchain_runtime_authz.errors import AuditError, Code, ConfigError

app = App(help="Read the decision log.")
POLICIES: Final = resources.files("langchain_runtime_authz") / "policies"
_WORST: Final = ("failed", "skipped", "not run", "passed")
DAY: Final = 86_400.0
SIX_MONTHS: Final = 184  # days
REGO: Final = "rego/runtime_authz.rego"


@app.command("verify")
def verify(
    file: Annotated[Path, Argument(help="The log that `RuntimeAuthz(audit=FILE)` wrote, or an evidence pack.")],
    head: Annotated[
        str | None, Option(metavar="HASH", help="The hash that the last line must have, from elsewhere.")
    ] = None,
) -> Answer:
    """Verify a decision log with all its segments, from first line to last, alone or in an evidence pack (`audit pack`).

    Without --head, an edit of the last line and a cut at the end are not found. Keep the printed head somewhere
    else, and give it next time.

    \b
    Examples:
      runtime-authz audit verify audit.jsonl
      runtime-authz audit verify audit.jsonl --head "$(cat pinned-head)"
    """
    from langchain_runtime_authz.audit.chain import read_log, verify_log

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise typer.BadParameter("must be 64 hexadecimal digits", param_hint="--head")
    manifest = ""
    if zipfile.is_zipfile(file):
        from langchain_runtime_authz.audit.evidence import verify_pack

        report, manifest = verify_pack(file, head)
    else:
        report = verify_log(file, head)
        if not report.ok and not any(read_log(file)):
            report = replace(report, error="no line is a record: the log was overwritten, or this is another file")
    pinned = "and ends at the pinned head" if head is not None else "but no head was given: its end is not verified"
    result = f"whole, {pinned}" if report.ok else f"BROKEN at {report.where}"
    found = {"manifest": manifest or None, "records": report.records, "head": report.head, "result": result}
    broken = AuditError(Code.CHAIN_BROKEN, f"{file.name}, {report.where}: {report.error}")
    return Answer({"ok": report.ok, **found}, lines(found), not report.ok and broken)


@app.command("prune")
def prune(
    log: Annotated[Path, Option(envvar="RUNTIME_AUTHZ_AUDIT", metavar="FILE", help="The log.")],
    days: Annotated[float, Option("--older-than", min=0, metavar="DAYS", help="Age of a segment's last record.")],
    as_json: bool = False,
) -> Answer:
    """Remove old closed segments of a log (`FileSink(max_bytes=, max_age=)`). Without this command all are kept.

    The log first records the head of each, so it still verifies.

    \b
    Example:
      runtime-authz audit prune --log audit.jsonl --older-than 400
    """
    from langchain_runtime_authz.audit.sinks import drop_segments

    dropped = drop_segments(log, time.time() - days * DAY)
    if days < SIX_MONTHS:
        note = "note     the EU AI Act, article 26(6), asks deployers of high-risk systems for at least six months"
        typer.echo(note, err=as_json)
    text = [*(f"removed  {n}" for n in dropped), f"{len(dropped)} segments removed"]
    return Answer({"removed": dropped}, text)


@app.command("pack")
def pack(
    log: Log = LOG,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The archive.")] = Path("evidence.zip"),
    policy: Annotated[
        Path | None, Option(metavar="PATH", help="The policy that decided; default: the shipped one.")
    ] = None,
    opa: Opa = None,
) -> Answer:
    """Write an evidence pack: the log, its head, the policy with its data, the controls, and the digest of each.

    Keep the printed head or manifest digest somewhere else: both can be rewritten inside the archive.

    \b
    Examples:
      runtime-authz audit pack -o evidence.zip
      runtime-authz audit verify evidence.zip --head "$(cat pinned-head)"
    """
    from langchain_runtime_authz import __version__
    from langchain_runtime_authz.audit.chain import read_log
    from langchain_runtime_authz.audit.evidence import write_pack
    from langchain_runtime_authz.cli.policy.project import open_policy

    source = open_policy(policy, opa)
    with closing(source.pdp()) as engine:
        revision = engine.revision
    seen = Counter(str(r["policy_revision"]) for r in read_log(log) if r and r.get("policy_revision"))
    texts = {f"policy/{Path(name).name}": text.encode() for name, text in source.rego.items()}
    texts["policy/data.json"] = json.dumps(source.data, indent=2).encode()
    texts["controls.json"] = json.dumps(controls_document(), indent=2).encode()
    if source.wasm is not None:
        texts["policy/policy.wasm"] = source.wasm
    else:  # what `data.json` changes
        texts["policy/shipped_data.json"] = (POLICIES / "data.json").read_bytes()
    named = {"name": source.name, "revision": revision, "revisions_in_log": dict(seen)}
    about = {"made_by": f"langchain-runtime-authz {__version__}", "policy": named}
    chain, manifest = write_pack(output, log, texts, about)
    found = {"records": chain.records, "head": chain.head, "policy": revision, "manifest": manifest}
    other = sorted(seen.keys() - {revision})
    note = f"other policies decided too: {', '.join(other)}" if other else None
    text = lines({**found, "note": note, "wrote": output})
    return Answer({**found, "other": other, "wrote": str(output)}, text)


def controls(
    results: Annotated[Path | None, Option(metavar="FILE", help="A report of `pytest --junitxml FILE`.")] = None,
) -> Answer:
    """Print which published control each shipped rule helps with, the tests that show it, and their last result.

    The controls are those of OWASP Agentic, OWASP NHI, MAESTRO and NIST AI RMF. Without --results, no test counts
    as passed. Exit code 1 if a named test failed.

    \b
    Examples:
      runtime-authz controls
      pytest --junitxml report.xml; runtime-authz controls --results report.xml --json
    """
    document = controls_document({} if results is None else read_results(results))
    shown = (s for f in document["frameworks"] for c in f["controls"] for s in (*c["attacks"], *c["rules"]))
    return Answer(document, _text(document), any(s["result"] == "failed" for s in shown))


def load() -> dict[str, Any]:
    import yaml

    loaded: dict[str, Any] = yaml.safe_load((POLICIES / "controls.yaml").read_text(encoding="utf-8"))
    return loaded


def own_test(reason: str) -> str:
    """Return the test that every mapped rule has: a request that this rule alone decides."""
    return f"tests/unit_tests/test_controls.py::test_a_rule_gives_its_reason[{reason}]"


@cache
def rule_lines(reason: str) -> list[int]:
    """Return the lines of the shipped policy that give a reason or an obligation."""
    name = re.escape(reason.removeprefix("obligation:"))
    given = rf'^(denied|asked) contains "{name}"|^\s*"max_\w+": "{name}",'
    given = given if name == reason else rf'"type": "{name}"'
    text = (POLICIES / REGO).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(text, 1) if re.search(given, line)]


def read_results(path: Path) -> dict[str, Counter[str]]:
    """Return how often each test passed, failed or was skipped. A parametrised case also counts for its function."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  (the operator's own report)
    except ElementTree.ParseError as exc:
        raise ConfigError(f"{path.name} is not a JUnit report: {exc}") from exc
    if root.tag not in ("testsuites", "testsuite"):
        raise ConfigError(f"{path.name} is not a JUnit report")
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in root.iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        node = f"{module.replace('.', '/')}.py::{name}"
        for at in {node, node.partition("[")[0]}:
            found[at][result] += 1
    return found


def _tests(nodes: Iterable[str], seen: Mapping[str, Counter[str]]) -> list[dict[str, str]]:
    """Return tests with their results: the worst one if there are several."""
    return [{"test": n, "result": next((r for r in _WORST if seen.get(n, Counter()).get(r)), "not run")} for n in nodes]


def controls_document(seen: Mapping[str, Counter[str]] = MappingProxyType({})) -> dict[str, Any]:
    """Return what `controls` prints, with the results of tests (`read_results`)."""
    mapping, frameworks = load(), []
    for key, framework in mapping["frameworks"].items():
        listed = []
        for control, title in framework["controls"].items():
            rules = [_rule(r, seen) for r in mapping["rules"] if control in r[key]]
            attacks = _tests(framework.get("attacks", {}).get(control, ()), seen)
            listed.append({"id": control, "title": title, "attacks": attacks, "rules": rules})
        told = {name: framework[name] for name in ("title", "source", "titles_from")}
        frameworks.append({"id": key, **told, "controls": listed})
    return {"policy": REGO, "frameworks": frameworks, "crosswalk": mapping["crosswalk"]}


def _rule(rule: dict[str, Any], seen: Mapping[str, Counter[str]]) -> dict[str, Any]:
    tests = _tests([own_test(rule["reason"]), *rule.get("tests", [])], seen)
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
