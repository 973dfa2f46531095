"""Which published control a rule helps with: nothing is claimed that no rule and no test shows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from langchain_runtime_authz.cli.controls import OWN_TEST, POLICIES, rule_lines
from langchain_runtime_authz.cli.policy.open_policy import shipped_rego
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import NOW, example_request
from tests.bundles import DATA
from tests.cli import cli
from tests.controls_ran import not_shown

ROOT = Path(__file__).parents[2]
MAPPING: dict[str, Any] = yaml.safe_load((POLICIES / "controls.yaml").read_text())
EFFECT, GRANT, HISTORY = "resource.properties.effect", "context.lease.grant", "context.history"
STANDING = "context.call.mandate.standing"
MODEL = {
    "action.name": "model/call", "resource.type": "model", "resource.id": "m", "context.call": None, "context.plan": None,
    "resource.properties": {"tools": ["a"], "provider_tools": []},
}  # fmt: skip
EXTERNAL = {"resource.properties.sink": "external", "context.call.sink": "external", GRANT: None}

# What of the example request is changed, and of the shipped data, so that the rule gives its reason.
TRIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no_permit": ({"context.call": None}, {}),
    "unknown_action": ({"resource.type": "agent"}, {}),
    "lease_invalid": ({"context.lease.exp": NOW}, {}),
    "grant_expired": ({f"{GRANT}.expires_at": NOW}, {}),
    "grant_depth": ({"context.delegation.depth": 3}, {}),
    "grant_tool": ({f"{GRANT}.tools": []}, {}),
    "grant_argument": ({"context.call.args.amount": 100.5}, {}),
    "grant_data_class": ({f"{GRANT}.data_classes": ["public"]}, {}),
    "grant_sink": ({f"{GRANT}.sinks": ["none"]}, {}),
    "model": (MODEL, {"models": {"providers": None, "names": ["other"], "provider_tools": []}}),
    "stale_plan": ({"context.plan.stale": True}, {}),
    "unplanned": ({"context.plan.planned": False}, {}),
    "plan_changed": ({"context.plan.planned": False, "context.plan.changed": True, STANDING: "none"}, {}),
    "data_changed": ({"context.call.changed": ["read_file"]}, {}),
    "anonymous": ({"subject.type": "anonymous"}, {}),
    "not_attested": ({"context.agent.attested": False}, {"attested": ["write"]}),
    "unprofiled": ({"resource.properties.profiled": False}, {}),
    "effect": ({}, {"effects": {"write": "ask"}}),
    "verdict": ({"resource.properties.verdict": "ask"}, {}),
    "not_ordered": ({STANDING: "outside"}, {}),
    "deviates": ({STANDING: "deviates"}, {}),
    "forbidden": ({STANDING: "forbidden"}, {}),
    "data_flow": ({**EXTERNAL, f"{HISTORY}.classes_read": ["secret"]}, {}),
    "denial_streak": ({f"{HISTORY}.streak": DATA["anomaly"]["max_streak"]}, {}),
    "burst": ({f"{HISTORY}.last_minute": DATA["anomaly"]["max_per_minute"]}, {}),
    "unplanned_streak": ({f"{HISTORY}.unplanned": DATA["anomaly"]["max_unplanned"]}, {}),
    "tainted_streak": ({f"{HISTORY}.tainted": DATA["anomaly"]["max_tainted"]}, {}),
    "rotations": ({f"{HISTORY}.rotations": DATA["anomaly"]["max_rotations"]}, {}),
    "too_deep": ({"context.delegation.depth": DATA["anomaly"]["max_depth"], GRANT: None}, {}),
    "step_budget": ({"context.lease.steps": DATA["anomaly"]["max_steps"]}, {}),
    "time_budget": ({"context.lease.seconds": DATA["anomaly"]["max_seconds"]}, {}),
    "obligation:require_approval": ({STANDING: "none"}, {}),
    "obligation:rate_limit": ({}, {"rates": {"write": {"window": 60, "max": 1}}}),
    "obligation:budget": ({}, {"budget": {"effects": {"write": {"max": 1}}}}),
    "obligation:notify": ({}, {"notify": {"effects": {"write": {"permit": "desk"}}}}),
    "obligation:redact": ({}, {"redact": {"book_invoice": ["iban"]}}),
    "obligation:withhold_tools": (MODEL, {}),
    "obligation:revoke": ({f"{HISTORY}.streak": DATA["anomaly"]["max_streak"]}, {}),
    "obligation:rotate": ({"context.call.changed": ["read_file"]}, {}),
}


@pytest.mark.parametrize("reason", TRIPS)
def test_a_rule_gives_its_reason(reason: str) -> None:
    """With that one change the rule decides, and without it nothing does: the example itself is permitted."""
    overrides, data = TRIPS[reason]
    pdp = WasmPDP(data=data, pool_size=1)
    try:
        (decided,) = Evaluator(pdp).evaluate([example_request(overrides).to_json()])
    finally:
        pdp.close()
    given = {*decided.reasons, *(f"obligation:{o.type}" for o in decided.obligations)}
    assert decided.failure is None and reason in given
    on_permits = ("rate_limit", "budget", "notify", "redact", "withhold_tools")
    assert decided.permit is (reason in [f"obligation:{o}" for o in on_permits])


def test_the_example_itself_is_permitted() -> None:
    pdp = WasmPDP(pool_size=1)
    (decided,) = Evaluator(pdp).evaluate([example_request().to_json()])
    pdp.close()
    assert (decided.permit, decided.reasons, decided.obligations) == (True, (), ())


def given_by_the_policy() -> set[str]:
    text = shipped_rego()
    reasons = set(re.findall(r'^(?:denied|asked) contains "(\w+)"', text, re.MULTILINE))
    bounds = set(re.findall(r'^\s*"max_\w+": "(\w+)",', text, re.MULTILINE))
    return reasons | bounds | {f"obligation:{o}" for o in re.findall(r'"type": "(\w+)"', text)}


def test_every_rule_is_mapped_once_and_no_other() -> None:
    """Reasons and obligations of the Rego, the mapping and the tests are the same set."""
    mapped = [r["reason"] for r in MAPPING["rules"]]
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == given_by_the_policy() == set(TRIPS)
    assert all(rule_lines(shipped_rego(), reason) for reason in mapped)


def test_every_rule_names_controls_that_exist() -> None:
    """At least one of OWASP Agentic, MAESTRO and NIST AI RMF; of OWASP NHI where it has a counterpart."""
    mapping = MAPPING
    for rule in mapping["rules"]:
        assert set(rule) <= {"reason", "tests", *mapping["frameworks"]}
        for key, framework in mapping["frameworks"].items():
            assert set(rule[key]) <= set(framework["controls"])
            assert rule[key] or key == "owasp_nhi"


def test_titles_are_the_published_ones() -> None:
    """Ten, ten, seven and four; ASI05 is claimed by nothing."""
    frameworks = MAPPING["frameworks"]
    assert [len(f["controls"]) for f in frameworks.values()] == [10, 10, 7, 4]
    assert list(frameworks["owasp_agentic"]["controls"]) == [f"ASI{n:02}" for n in range(1, 11)]
    assert list(frameworks["owasp_nhi"]["controls"]) == [f"NHI{n}:2025" for n in range(1, 11)]
    assert not any("ASI05" in r["owasp_agentic"] for r in MAPPING["rules"])


def test_the_crosswalk_is_marked_as_ours() -> None:
    mapping = MAPPING
    known = {c for f in mapping["frameworks"].values() for c in f["controls"]}
    assert {c["id"] for c in mapping["crosswalk"]} == {"OWASP A1", "MAESTRO MT-3", "GOVERN"}
    assert all(c["by"] == "this project" and set(c["controls"]) <= known for c in mapping["crosswalk"])
    assert "this project's own" in cli("controls").stdout


def attacks() -> dict[str, list[str]]:
    return MAPPING["frameworks"]["owasp_agentic"]["attacks"]  # type: ignore[no-any-return]


def test_every_claimed_id_has_a_file_of_attacks() -> None:
    """One file by its name, of which every test is named, twins among them; and no file for what is not claimed."""
    claimed = {c for r in MAPPING["rules"] for c in r["owasp_agentic"]}
    files = sorted((ROOT / "tests/attack").glob("test_asi*.py"))
    assert [f"ASI{f.name[8:10]}" for f in files] == sorted(claimed) == sorted(attacks())
    for file in files:
        named = attacks()[f"ASI{file.name[8:10]}"]
        there = re.findall(r"^(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert named == [f"tests/attack/{file.name}::{name}" for name in there]
        assert any("::test_unenforced_" in name for name in named)


def test_every_named_test_is_collected() -> None:
    """Each is a function of its module; the cases of the rules' own test are those of `TRIPS`."""
    named = {t for r in MAPPING["rules"] for t in r.get("tests", [])} | {t for tests in attacks().values() for t in tests}
    named |= set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", (ROOT / "docs/security.md").read_text(encoding="utf-8")))
    for test in named:
        path, _, name = test.partition("::")
        assert name.startswith("test_"), test
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body  # not imported: its services may not be installed
        assert name in {f.name for f in body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}, test


def test_a_report_of_pytest_shows_which_named_tests_ran(tmp_path: Path) -> None:
    """One that failed, or did not run, is named."""
    path, _, name = OWN_TEST.partition("[")[0].partition("::")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"import pytest\n@pytest.mark.parametrize('reason', ['burst', 'effect'])\ndef {name}(reason): assert reason == 'burst'\n")
    env = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", path, "--junitxml", "r.xml"]
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    named = not_shown(str(tmp_path / "r.xml"))
    assert [OWN_TEST.format(reason) in named for reason in ("burst", "effect", "verdict")] == [False, True, True]
