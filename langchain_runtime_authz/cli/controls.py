"""`runtime-authz controls`: frameworks' controls, our rules for each, and tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

from typer import Option

from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.errors import Code, ConfigError

POLICIES: Final = resources.files("langchain_runtime_authz") / "policies"
_WORST: Final = ("failed", "skipped", "not run", "passed")
REGO: Final = "rego/runtime_authz.rego"
OWN_TEST: Final = "tests/unit_tests/test_controls.py::test_a_rule_gives_its_reason[{}]"


def controls(
    results: Annotated[Path | None, Option(metavar="FILE", help="A report of `pytest --junitxml FILE`.")] = None,
) -> Printout:
    """Print controls, the shipped rules that help with each, their tests and results.

    The controls are those of OWASP Agentic, OWASP NHI, MAESTRO and NIST AI RMF. Without --results, no test counts
    as passed. Exit code 1 if a named test failed.

    \b
    Examples:
      runtime-authz controls
      pytest --junitxml report.xml; runtime-authz controls --results report.xml --json
    """
    document = controls_document(results)
    parts = (p for f in document["frameworks"] for c in f["controls"] for p in (*c["attacks"], *c["rules"]))
    return Printout(document, _text(document), any(p["result"] == "failed" for p in parts))


def rule_lines(policy: str, reason: str, kind: str = "denied|asked") -> list[int]:
    """Return the lines of a policy's text that give a reason, or oblige to something."""
    name = re.escape(reason.removeprefix("obligation:"))
    given = rf'({kind}) contains "{name}"|\s*"max_\w+": "{name}",|@reason\("{name}"\)'
    given = rf'.*"type": "{name}"' if reason.startswith("obligation:") else given
    return [number for number, line in enumerate(policy.splitlines(), 1) if re.match(given, line)]


def read_results(path: Path) -> dict[str, str]:
    """Return test → its worst result. A parametrised case counts for its function too."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  (the operator's own report)
        wrong = "" if root.tag in ("testsuites", "testsuite") else root.tag
    except (ElementTree.ParseError, LookupError, ValueError) as exc:  # the last two, for an unknown encoding
        wrong = str(exc)
    if wrong:
        raise ConfigError(f"{path.name} is not a JUnit report: {wrong}")
    found: dict[str, str] = {}
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        node = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}"
        for at in {node, node.partition("[")[0]}:
            found[at] = min(found.get(at, result), result, key=_WORST.index)
    return found


def _tests(nodes: Iterable[str], seen: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"test": node, "result": seen.get(node, "not run")} for node in nodes]


def controls_document(results: Path | None = None) -> dict[str, Any]:
    """Return what `controls` prints. Raises `ConfigError` for an unreadable report."""
    mapping: Any = read_yaml(Path(str(POLICIES / "controls.yaml")), Code.CONFIG)
    seen, frameworks = {} if results is None else read_results(results), []
    for key, framework in mapping["frameworks"].items():
        listed = []
        for control, title in framework["controls"].items():
            rules = [_rule(r, seen) for r in mapping["rules"] if control in r[key]]
            attacks = _tests(framework.get("attacks", {}).get(control, ()), seen)
            listed.append({"id": control, "title": title, "attacks": attacks, "rules": rules})
        told = {name: framework[name] for name in ("title", "source", "titles_from")}
        frameworks.append({"id": key, **told, "controls": listed})
    return {"policy": REGO, "frameworks": frameworks, "crosswalk": mapping["crosswalk"]}


def _rule(rule: dict[str, Any], seen: Mapping[str, str]) -> dict[str, Any]:
    # `OWN_TEST` exists for every rule: a request that no other rule decides.
    tests = _tests([OWN_TEST.format(rule["reason"]), *rule.get("tests", [])], seen)
    worst = min((t["result"] for t in tests), key=_WORST.index)
    lines = rule_lines((POLICIES / REGO).read_text(encoding="utf-8"), rule["reason"])
    return {"reason": rule["reason"], "lines": lines, "result": worst, "tests": tests}


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
    crosswalk = (f"  {c['id']} -> {', '.join(c['controls'])}" for c in document["crosswalk"])
    return "\n".join([*lines, "Crosswalk of ids that are in no published list (this project's own):", *crosswalk])
