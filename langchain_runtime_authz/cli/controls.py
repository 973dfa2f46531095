"""`runtime-authz controls`: frameworks' controls, our rules for each, and tests."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, Final

from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.errors import Code

POLICIES: Final = resources.files("langchain_runtime_authz") / "policies"
REGO: Final = "rego/runtime_authz.rego"
OWN_TEST: Final = "tests/unit_tests/test_controls.py::test_a_rule_gives_its_reason[{}]"


def controls() -> Printout:
    """Print controls, the shipped rules that help with each, and their tests.

    The controls are those of OWASP Agentic, OWASP NHI, MAESTRO and NIST AI RMF.

    runtime-authz controls
    """
    document = controls_document()
    return Printout(document, _text(document))


def rule_lines(policy: str, reason: str, kind: str = "denied|asked") -> list[int]:
    """Return the lines of a policy's text that give a reason, or oblige to something."""
    name = re.escape(reason.removeprefix("obligation:"))
    given = rf'({kind}) contains "{name}"|\s*"max_\w+": "{name}",|@reason\("{name}"\)'
    given = rf'.*"type": "{name}"' if reason.startswith("obligation:") else given
    return [number for number, line in enumerate(policy.splitlines(), 1) if re.match(given, line)]


def controls_document() -> dict[str, Any]:
    """Return what `controls` prints."""
    mapping: Any = read_yaml(Path(str(POLICIES / "controls.yaml")), Code.CONFIG)
    policy, frameworks = (POLICIES / REGO).read_text(encoding="utf-8"), []
    for key, framework in mapping["frameworks"].items():
        listed = []
        for control, title in framework["controls"].items():
            rules = [_rule(policy, rule) for rule in mapping["rules"] if control in rule[key]]
            attacks = framework.get("attacks", {}).get(control, [])
            listed.append({"id": control, "title": title, "attacks": attacks, "rules": rules})
        told = {name: framework[name] for name in ("title", "source", "titles_from")}
        frameworks.append({"id": key, **told, "controls": listed})
    return {"policy": REGO, "frameworks": frameworks, "crosswalk": mapping["crosswalk"]}


def _rule(policy: str, rule: dict[str, Any]) -> dict[str, Any]:
    reason = rule["reason"]
    # `OWN_TEST` exists for every rule: a request that no other rule decides.
    tests = [OWN_TEST.format(reason), *rule.get("tests", [])]
    return {"reason": reason, "lines": rule_lines(policy, reason), "tests": tests}


def _text(document: dict[str, Any]) -> str:
    lines = []
    for framework in document["frameworks"]:
        lines += [framework["title"], framework["source"], f"titles read from {framework['titles_from']}"]
        for control in framework["controls"]:
            lines.append(f"  {control['id']}  {control['title']}{'' if control['rules'] else ': no rule, not claimed'}")
            lines += [f"    {test}" for test in control["attacks"]]
            for rule in control["rules"]:
                at = ", ".join(map(str, rule["lines"]))
                lines += [f"    {rule['reason']}  ({document['policy']}:{at})", *(f"      {t}" for t in rule["tests"])]
        lines.append("")
    crosswalk = (f"  {c['id']} -> {', '.join(c['controls'])}" for c in document["crosswalk"])
    return "\n".join([*lines, "Crosswalk of ids that are in no published list (this project's own):", *crosswalk])
