"""Check by a report of pytest that each test that `runtime-authz controls` names ran, and that none failed."""

import sys
from xml.etree import ElementTree

from langchain_runtime_authz.cli.controls import controls_document


def not_shown(report: str) -> list[str]:
    """Return the named tests that did not run, or of which a case failed."""
    shown: dict[str, bool] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        node = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        whole = {child.tag for child in case}.isdisjoint({"failure", "error"})
        for test in {node, node.partition("[")[0]}:
            shown[test] = shown.get(test, True) and whole
    controls = [control for framework in controls_document()["frameworks"] for control in framework["controls"]]
    named = {test for control in controls for part in (control["attacks"], *(rule["tests"] for rule in control["rules"])) for test in part}
    return sorted(test for test in named if not shown.get(test))


if __name__ == "__main__":
    sys.exit("\n".join(not_shown(sys.argv[1])) or 0)
