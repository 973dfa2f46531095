"""`runtime-authz controls`: published control → attacks, and rule → tests → last result."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from langchain_runtime_authz.cli._errors import FINDING, reporting
from langchain_runtime_authz.errors import ConfigError

__all__ = ["controls", "load", "own_test", "rule_lines"]

_POLICIES: Final = resources.files("langchain_runtime_authz") / "policies"
_WORST: Final = ("failed", "skipped", "not run", "passed")
REGO: Final = "rego/runtime_authz.rego"


def controls(
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="A report of `pytest --junitxml FILE`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print which published control each shipped rule helps with, the tests that show it, and their last result.

    OWASP Agentic, OWASP NHI, MAESTRO and NIST AI RMF. Without --results nothing is said to have passed.
    Exit code 1 if a named test failed.

    \b
    Examples:
      runtime-authz controls
      pytest --junitxml report.xml; runtime-authz controls --results report.xml --json
    """  # noqa: D301  (`\b` is what keeps the lines apart)
    with reporting():
        mapping = load()
        seen = {} if results is None else read_results(results)
    document = _document(mapping, seen)
    typer.echo(json.dumps(document, indent=2) if as_json else _text(document))
    shown = (s for f in document["frameworks"] for c in f["controls"] for s in (*c["attacks"], *c["rules"]))
    if any(s["result"] == "failed" for s in shown):
        raise typer.Exit(FINDING)


def load() -> dict[str, Any]:
    """The mapping, `policies/controls.yaml`."""
    import yaml

    loaded: dict[str, Any] = yaml.safe_load((_POLICIES / "controls.yaml").read_text(encoding="utf-8"))
    return loaded


def own_test(reason: str) -> str:
    """The test that every mapped rule has: a request that it, and nothing else, decides."""
    return f"tests/unit_tests/test_controls.py::test_a_rule_gives_its_reason[{reason}]"


def rule_lines(reason: str) -> list[int]:
    """Where rules of the shipped policy give a reason or an obligation."""
    kind, _, obligation = reason.rpartition("obligation:")
    name = re.escape(obligation)
    given = (
        rf'"type": "{name}"'
        if kind or reason.startswith("obligation:")
        else rf'^(denied|asked) contains "{name}"|^\s*"max_\w+": "{name}",'
    )
    text = (_POLICIES / REGO).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(text, 1) if re.search(given, line)]


def read_results(path: Path) -> dict[str, Counter[str]]:
    """Test → how often it passed, failed or was skipped; a test's parameters are its own entry and its function's.

    Raises:
        ConfigError: the file is no JUnit report.
    """
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  (the operator's own report)
    except ElementTree.ParseError as exc:
        raise ConfigError(f"{path.name} is no JUnit report: {exc}") from exc
    if root.tag not in ("testsuites", "testsuite"):
        raise ConfigError(f"{path.name} is no JUnit report")
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
    lines.append("Crosswalk of ids that stand in no published list (this project's own, nobody else's):")
    lines += [f"  {c['id']} -> {', '.join(c['controls'])}" for c in document["crosswalk"]]
    return "\n".join(lines)
