"""`runtime-authz policy`: used as a security engineer would, on a recorded run of the demo."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from langchain_runtime_authz.audit.chain import read_log
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli.policy.open_policy import SHIPPED_REGO, open_policy, shipped_rego
from langchain_runtime_authz.cli.policy.rego_lint import lint_names, lint_rego
from langchain_runtime_authz.demo.bank import play_once
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import EvaluationRequest, request_schema
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, wrong_data
from langchain_runtime_authz.testing.example_request import example_request
from tests.bundles import DATA, Key
from tests.cli import cli

POLICIES = resources.files("langchain_runtime_authz") / "policies"
EXAMPLES = Path(__file__).parents[3] / "examples" / "policies"
Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_opa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs OPA."""
    monkeypatch.setenv("OPA", "no-such-opa")


@pytest.fixture
def run() -> Command:
    return partial(cli, "policy")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decision log of the demo, contents included."""
    path = tmp_path_factory.mktemp("demo") / "audit.jsonl"
    play_once(protected=True, log=path)
    return path


@pytest.fixture
def project(tmp_path: Path, run: Command) -> Path:
    assert run("init", tmp_path / "p").exit_code == 0
    return tmp_path / "p"


def decisions(run: Command, log: Path) -> dict[str, str]:
    """Decision id → what was decided, as `explain` lists them."""
    listed = run("explain", log)
    assert listed.exit_code == 0
    told = json.loads(run("explain", log, "--json").stdout)["decisions"]
    assert [d["decision_id"][:12] for d in told] == [line[:12] for line in listed.stdout.splitlines()]
    return dict(line.split("  ", 1) for line in listed.stdout.splitlines())


# --- explain, replay, diff ------------------------------------------------------------------------


def test_explain_what_was_not_ordered(run: Command, log: Path) -> None:
    """Which rule asks about the payment to the attacker, and what would lift it. In JSON each reason names its rules."""
    asked = [i for i, what in decisions(run, log).items() if "approval_required" in what and "amount=95" in what]
    told = run("explain", log, asked[0]).stdout
    lines = [int(n) for n in re.findall(rf"{re.escape(SHIPPED_REGO)}:(\d+)", told)]
    assert any(shipped_rego().splitlines()[n - 1].startswith('asked contains "deviates"') for n in lines)
    assert re.search(r"tools/call send_money\(.*amount=95.*\) by user alice", told)
    assert "permit if an approver approves exactly this call" in told
    said = json.loads(run("explain", log, asked[0], "--json").stdout)
    assert said["outcome"] == said["recorded"]["outcome"] == "approval_required"
    assert {"if": ["an approver approves exactly this call"], "outcome": "permit"} in said["changes"]
    assert all(reason["rules"] and reason["sentence"] for reason in said["reasons"])


def test_explain_a_permit(run: Command, log: Path, tmp_path: Path) -> None:
    """What a permit hangs on; and a policy of another day is told apart from what was recorded."""
    (paid, *_) = [i for i, what in decisions(run, log).items() if "send_money(" in what and "): permit" in what]
    told = run("explain", log, paid).stdout
    assert "no rule denies it or asks" in told and "deny if the plan belongs to an older task" in told
    data = tmp_path / "data.json"
    data.write_text('{"effects": {"pay": "deny"}}')
    told = run("explain", log, paid, "--policy", data).stdout
    assert "decided   deny" in told and "this policy decides differently" in told


def test_explained_changes_do_change_it(run: Command, log: Path) -> None:
    """Every outcome that is promised differs from the one explained."""
    for found in decisions(run, log):
        told = json.loads(run("explain", log, found, "--json").stdout)
        assert all(change["outcome"] != told["outcome"] and change["if"] for change in told["changes"])


def test_an_unchanged_policy_flips_nothing(run: Command, log: Path) -> None:
    """The recorded requests are decided again as they were: time and history are in them."""
    replayed = run("replay", log)
    assert (replayed.exit_code, replayed.stdout.split()[0]) == (0, "0")


def test_an_edit_is_listed_before_it_ships(run: Command, log: Path, project: Path, tmp_path: Path) -> None:
    """Edit, diff, see which recorded payments would be denied, and only then build and follow."""
    edited = tmp_path / "edited"
    shutil.copytree(project, edited)
    (edited / "data.json").write_text(json.dumps({"effects": {"pay": "deny"}}))
    (edited / "cases.yaml").write_text("cases:\n  - {name: writes go on, expect: permit}\n")
    listed = run("diff", log, project, edited)
    paid = [i for i, what in decisions(run, log).items() if "): permit" in what and "send_money(" in what]
    assert listed.exit_code == 1 and len(paid) == 2
    assert all(re.search(rf"flip  {i}  tools/call send_money\(.*\): permit -> deny \(effect\b", listed.stdout) for i in paid)
    assert "get_transactions" not in listed.stdout
    told = json.loads(run("diff", log, project, edited, "--json").stdout)
    assert {f["after"]["outcome"] for f in told["flips"]} == {"deny"}
    assert run("replay", log, edited).exit_code == 1 and run("diff", log, edited, edited).exit_code == 0

    key, pem, out = Key(), tmp_path / "key.pem", tmp_path / "policy.tar.gz"
    pem.write_bytes(key.private)
    assert run("build", project, "-o", out, "--key", pem).exit_code == 0
    pdp = ReloadingPDP(out, keys={"default": key.public}, poll=3600)
    try:
        before = pdp.revision
        assert run("build", edited, "-o", out, "--key", pem, "--revision", 2).exit_code == 0
        assert pdp.reload() and before.startswith("1@")
        assert pdp.revision.startswith("2@") and run("diff", log, edited, out).exit_code == 0
    finally:
        pdp.close()


def test_an_edit_that_takes_a_duty_away_is_listed(run: Command, log: Path, project: Path, tmp_path: Path) -> None:
    """The outcome stays, and the limit that came with it is gone, or another: that ships no less."""
    looser, none = tmp_path / "looser", tmp_path / "none"
    for edited, rates in ((looser, {"pay": {"max": 500}}), (none, {"pay": None})):
        shutil.copytree(project, edited)
        (edited / "data.json").write_text(json.dumps({"rates": rates}))
    listed = run("diff", log, project, looser)
    assert listed.exit_code == 1
    assert re.search(r'duty  \w+  tools/call send_money\(.*\): permit, obliges to rate_limit .*"max": 5,.* -> .*"max": 500,', listed.stdout)
    assert "0 of" in listed.stdout.splitlines()[-1]
    assert listed.stdout.splitlines()[-1].endswith("; 2 oblige differently")
    told = json.loads(run("diff", log, project, none, "--json").stdout)
    assert told["flips"] == []
    assert [f["after"]["obligations"] for f in told["obliged_otherwise"]] == [[], []]
    assert run("replay", log, looser).exit_code == 0  # a record holds the type
    replayed = run("replay", log, none)
    assert replayed.exit_code == 1 and "obliges to rate_limit -> nothing" in replayed.stdout


def test_an_edit_of_a_profile_is_told_to_be_beyond_a_log(run: Command, log: Path, project: Path, tmp_path: Path) -> None:
    """Recorded requests hold the old one's facts: no flip must not be read as no change."""
    edited = tmp_path / "edited"
    shutil.copytree(project, edited)
    (edited / "profiles.yaml").write_text("tools:\n  send_money: {effect: read, sink: none}\n")
    said = run("diff", log, project, edited)
    assert (said.exit_code, said.stdout.splitlines()[0]) == (
        0, "note  recorded under other profiles, and that change is not shown: send_money",
    )  # fmt: skip
    assert json.loads(run("replay", log, edited, "--json").stdout)["other_profiles"] == ["send_money"]


def test_what_can_not_be_replayed_is_told(run: Command, tmp_path: Path) -> None:
    """A log without contents is refused, and the message says how to write one."""
    path = tmp_path / "bare.jsonl"
    play_once(protected=True, log=tmp_path / "full.jsonl")
    bare = FileSink(path)
    for line in (tmp_path / "full.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "decision":
            bare.write({**record, "erased": ["/context/task/text"]})
    failed = run("replay", path)
    assert failed.exit_code == 2 and "content=True" in failed.stderr


# --- a project ------------------------------------------------------------------------------------


def test_a_new_project_is_in_order(run: Command, project: Path) -> None:
    """What `init` writes passes `check` and `test`, and nothing is written over."""
    assert run("check", project).exit_code == 0
    tested = run("test", project)
    assert (tested.exit_code, "3 of 3 cases" in tested.stdout) == (0, True)
    assert run("init", project).exit_code == 2


def test_a_failed_case_is_a_finding_and_builds_nothing(run: Command, project: Path, tmp_path: Path) -> None:
    (project / "cases.yaml").write_text("cases: [{name: c, expect: deny}]")
    tested = run("test", project)
    assert (tested.exit_code, "FAIL  c: expected deny, decided permit" in tested.stdout) == (1, True)
    assert run("build", project, "-o", tmp_path / "b.tar.gz").exit_code == 1
    assert not (tmp_path / "b.tar.gz").exists()


@pytest.mark.parametrize(("pem", "key_id"), [("no key", "k"), (Key().private.decode(), "")], ids=["key", "id"])
def test_a_key_that_does_not_sign_is_told_before_a_case_runs(
    run: Command, project: Path, tmp_path: Path, pem: str, key_id: str
) -> None:
    (tmp_path / "k.pem").write_text(pem)
    built = run("build", project, "-o", tmp_path / "b.tar.gz", "--key", tmp_path / "k.pem", "--key-id", key_id)
    assert (built.exit_code, built.stdout, built.stderr.startswith("error: config: the key")) == (2, "", True)


@pytest.mark.parametrize("name", ["bank_cedar", "read_only", "spend_limit"])
def test_an_example_without_rego_needs_no_opa(run: Command, name: str) -> None:
    assert run("check", EXAMPLES / name).exit_code == 0 and run("test", EXAMPLES / name).exit_code == 0


@pytest.mark.parametrize("command", ["check", "test"])
def test_rego_without_opa_says_what_to_do(run: Command, command: str) -> None:
    failed = run(command, EXAMPLES / "four_eyes")
    assert failed.exit_code == 2 and "$OPA" in failed.stderr


WRONG: dict[str, tuple[str, str]] = {
    "settings": ("policy.yaml", "revision: 0"), "unknown setting": ("policy.yaml", "revison: 1"),
    "a revision that no bundle holds": ("policy.yaml", f"revision: {10**15}"), "no mapping": ("policy.yaml", "[]"),
    "no YAML": ("policy.yaml", "a: b: c"), "data": ("data.json", "{"),
    "data twice": ("data.json", '{"rates": {}, "rates": {}}'), "data is a list": ("data.json", "[]"),
    "data key": ("data.json", '{"rate": {}}'),
    "data key beside": ("data.json", '{"runtime_authz_data": {"rates": {}}, "effects": {"pay": "deny"}}'),
    "profiles": ("profiles.yaml", "tools: {t: {effect: fly}}"), "grants": ("grants.yaml", "grants: {g: {tols: []}}"),
    "grants are a list": ("grants.yaml", "grants: []"), "cases": ("cases.yaml", "cases: {}"),
    "a case": ("cases.yaml", "cases: [1]"), "a case's path": ("cases.yaml", "cases: [{expect: deny, request: {a.b.c: 1}}]"),
    "a case's value": ("cases.yaml", "cases: [{expect: deny, request: {context.now: soon}}]"),
    "a case's time": ("cases.yaml", "cases: [{expect: deny, at: noon}]"), "a zone": ("policy.yaml", "zone: Berlin"),
    "an engine": ("policy.yaml", "engine: polar"), "Rego's data under Cedar": ("policy.yaml", "engine: cedar"),
    "a case's outcome": ("cases.yaml", "cases: [{expect: allow}]"),
    "replace the shipped policy": ("rego/runtime_authz.rego", "package runtime_authz"), "no cases": ("cases.yaml", "cases: []"),
    "a rule that is no text": ("rego/own.rego", "package runtime_authz # \udcff"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(run: Command, project: Path, name: str) -> None:
    """A stable code, the file, and exit code 2; no traceback."""
    file, text = WRONG[name]
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(text, errors="surrogateescape")
    failed = run("test", project)
    assert failed.exit_code == 2, failed.output
    assert failed.stderr.startswith(("error: policy_invalid: ", "error: profile_invalid: "))
    assert len(failed.stderr.splitlines()) == 1


RULE = 'package runtime_authz\n\ndenied contains "own" if true\n'
UNREAD: dict[str, tuple[str, str, str]] = {
    "outside rego/": ("own.rego", RULE, "`rego/own.rego`"),
    "a test beside rego/": ("own_test.rego", "package runtime_authz_test", "`rego/own_test.rego`"),
    "below rego/": ("rego/eu/own.rego", RULE, "`rego/own.rego`"),
    "another directory": ("policies/own.rego", RULE, "`rego/own.rego`"),
    "another suffix": ("rego/own.Rego", RULE, "`rego/own.rego`"),
    "data beside the rules": ("rego/data.json", "{}", "`data.json`"),
    "another name": ("cases.yml", "cases: []", "`cases.yaml`"),
    "data as YAML": ("data.yaml", "rates: {}", "`data.json`"),
}


@pytest.mark.parametrize("part", ["data.json", "profiles.yaml", "grants.yaml", "cases.yaml", "rego"])
def test_a_link_that_leads_nowhere_is_no_absent_file(run: Command, project: Path, part: str) -> None:
    """Else the shipped data, or no rule, would stand in the place of what was meant."""
    (project / part).unlink(missing_ok=True)
    (project / part).symlink_to(project / "gone")
    checked = run("check", project)
    assert (checked.exit_code, f"`{part}` is not read; the link leads nowhere" in checked.stdout) == (1, True)
    assert "leads nowhere" in run("test", project).stderr


def test_a_directory_in_the_place_of_a_file_is_told(run: Command, project: Path) -> None:
    (project / "data.json").unlink()
    (project / "data.json").mkdir()
    assert "`data.json` is not read; it is not a file" in run("check", project).stdout


def test_the_directory_one_is_in_has_a_name(run: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (project / "policy.yaml").unlink()
    assert "`p` is not a policy" in run("test", ".").stderr


def test_who_has_seen_enough_is_no_error(run: Command, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain LOG | head -1`: no message."""

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("typer.echo", gone)
    left = run("explain", log)
    assert (left.exit_code, left.output) == (1, "")


def test_reasons_of_other_types_are_shown_as_texts(run: Command, log: Path, tmp_path: Path) -> None:
    """In a log whose chain is whole: anybody can write one."""
    sink = FileSink(tmp_path / "odd.jsonl", content=True)
    for record in filter(None, read_log(log)):
        sink.write({k: v for k, v in record.items() if k not in ("seq", "prev")} | {"reasons": [["odd"], 5]})
    assert "(['odd'], 5)" in run("explain", tmp_path / "odd.jsonl").stdout


@pytest.mark.parametrize("name", UNREAD)
def test_what_stands_in_the_wrong_place_is_not_passed_over(run: Command, project: Path, tmp_path: Path, name: str) -> None:
    """Without it the policy would be checked, tested and built as if the rule had never been written."""
    file, text, belongs = UNREAD[name]
    (project / file).parent.mkdir(parents=True, exist_ok=True)
    (project / file).write_text(text)
    checked = run("check", project)
    assert (checked.exit_code, f"`{file}` is not read" in checked.stdout, belongs in checked.stdout) == (1, True, True)
    for command in (("test", project), ("build", project, "-o", tmp_path / "b.tar.gz")):
        failed = run(*command)
        assert failed.exit_code == 2 and failed.stderr.startswith("error: policy_invalid: ")
        assert f"`{file}` is not read" in failed.stderr
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_package_that_nothing_asks_for_is_not_passed_over(run: Command, project: Path) -> None:
    """It stands in the right place and would decide nothing; a library that a rule uses is fine."""
    (project / "rego").mkdir()
    (project / "rego" / "own.rego").write_text(RULE.replace("runtime_authz", "my_rules"))
    failed = run("test", project)
    assert (failed.exit_code, "the decision is made in `package runtime_authz`" in failed.stderr) == (2, True)
    (project / "rego" / "uses.rego").write_text("package runtime_authz\n\nimport data.my_rules\n")
    assert "was not found" in run("test", project).stderr  # on to OPA


@pytest.mark.parametrize(("arguments", "code"), [
    (("test", "none"), "policy_invalid"), (("test", "."), "policy_invalid"), (("replay", "none.jsonl"), "config"),
    (("replay", "chain.jsonl"), "chain_broken"), (("replay", "empty.jsonl"), "config"),
    (("try", "chain.jsonl"), "config"), (("explain", "none.json"), "config"), (("explain", "data.json"), "config"),
    (("test", "bundle.tar.gz"), "policy_invalid"), (("build", "data.json", "-o", "x.tar.gz"), "policy_invalid"),
    (("build", "p", "-o", "x.tar.gz", "--key", "none.pem"), "config"),
    (("build", "p", "-o", "x.tar.gz", "--key", "data.json"), "config"),
    (("build", "p", "-o", "x.tar.gz", "--key", "data.json", "--alg", "none"), "config"),
    (("init", "data.json"), "config"), (("build", "p", "-o", "p"), "config"),
], ids=lambda a: " ".join(a) if isinstance(a, tuple) else a)
def test_a_wrong_argument_is_one_line(
    run: Command, project: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str,
) -> None:
    at = project.parent
    monkeypatch.chdir(at)
    (at / "chain.jsonl").write_text("{}\n")
    (at / "empty.jsonl").write_text("")
    (at / "bundle.tar.gz").write_text("no")
    (at / "data.json").write_text("{}")
    failed = run(*arguments)
    assert failed.exit_code == 2, failed.output
    assert failed.stderr.startswith(f"error: {code}: ") and len(failed.stderr.splitlines()) == 1
    assert not (at / "x.tar.gz").exists()


def test_what_the_enforcement_point_refused_has_no_rule(run: Command, log: Path) -> None:
    """Asked about a refusal of the PEP itself, `explain` says that it is one, and its code. It wants one decision."""
    records = map(json.loads, log.read_text().splitlines())
    (own, *_) = [r for r in records if r.get("kind") == "decision" and r.get("failure") == "enforcement"]
    told = run("explain", log, own["decision_id"][:12])
    assert told.exit_code == 2
    assert f"the enforcement point made this decision, not a policy ({own['reasons'][0]}: " in told.stderr
    assert [run("explain", log, wanted).exit_code for wanted in ("", "zz")] == [2, 2]


# --- check ----------------------------------------------------------------------------------------


def test_the_shipped_policy_is_in_order(run: Command) -> None:
    assert run("check").exit_code == 0 and list(lint_rego({"r": shipped_rego()})) == []
    assert wrong_data(DATA) == []


@pytest.mark.parametrize("line", [
    "\tnot input.exp > input.now", "\tnot input.a == 1", "\tnot x != y", "\tnot input.a.b[c] <= 3",
    "x if not input.a >= 1", "\tnow := time.now_ns()", '\tprint("x")', '\tm := sprintf("%v", [x])',
    "\tr := http.send({})", "\t[ok, _, c] := io.jwt.decode_verify(t, {})", "\tcrypto.sha256(x) == y",
])
def test_what_opa_would_not_say(line: str) -> None:
    (found,) = lint_rego({"own.rego": f"package p\n{line}\n"})
    assert found.startswith("own.rego:2: ")


@pytest.mark.parametrize("line", [
    "\tnot tenant_same", "\tinput.exp > input.now", "\tnot name in names", "# not x > y", '\tx == "not a > b"',
    '\tx := concat(":", [a, b])', "\tx := object.get(a, b, c)", "\tstartswith(a, b)", "timeout(x) := x",
])
def test_what_is_fine(line: str) -> None:
    assert list(lint_rego({"own.rego": f"package p\n{line}\n"})) == []


@pytest.mark.parametrize(("rules", "found"), [
    ('deny contains "x" if is_call', ["own.rego:2: nothing reads the rule `deny`, so it changes no decision; `denied` is meant"]),
    ("approval_term contains {} if is_call # approval_term", ["own.rego:2: nothing reads the rule `approval_term`"]),
    ("default mine := 1\n\nmine := 2 if is_call", ["own.rego:2: ", "own.rego:4: "]),
    ('denied contains "x" if {\nmine\n}\n\nmine if is_call', []),
    ('denied contains "x" if data.runtime_authz.mine\n\nmine := {\n"a": 1,\n}', []),
    ('denied contains "x" if input.x > data.bank.limit.pay # data.x', []),
    ('denied contains "x" if input.x > data.bank.limits.pay', ["own.rego:2: `data.bank.limits.pay` is not in data.json"]),
    ('denied contains "x" if input.x > data.bank.limit.pay.x', ["own.rego:2: `data.bank.limit.pay.x` is not in data.json"]),
    ("import data.lib\nimport data.lib.a.b", []),
    ('denied contains "x" if data.runtime_authz_data.rate', ["own.rego:2: `data.runtime_authz_data.rate` is not in data.json"]),
    ("import data.bnk", ["own.rego:2: `data.bnk` is not in data.json"]),
    ('denied contains "x" if not data.flags.live', []),
    ('denied contains "x" if input.context.call.args.data.kind == "a"', []),
    ('denied contains "x" if data.runtime_authz["mine"]\n\nmine if is_call', []),
])
def test_a_rule_that_nothing_reads_or_that_reads_nothing_is_found(rules: str, found: list[str]) -> None:
    """A misspelt `denied` would forbid nothing, without an error of any engine."""
    rego = {"runtime_authz.rego": shipped_rego(), "own.rego": f"package runtime_authz\n{rules}\n", "lib.rego": "package lib.a"}
    told = list(lint_names(rego, "a/decision", {"runtime_authz_data": {}, "bank": {"limit": {"pay": 1}}}))
    assert len(told) == len(found) and all(line.startswith(start) for line, start in zip(told, found, strict=True))


@pytest.mark.parametrize(("data", "at"), [
    ({"effects": {"write": "allow"}}, "effects.write"),
    ({"effects": {"fly": "deny"}}, "effects.fly"),
    ({"effects": {"pay": {"perhaps": "ask"}}}, "effects.pay.perhaps"),
    ({"effects": {"pay": {"covered": "maybe"}}}, "effects.pay.covered"),
    ({"declassify": ["told"]}, "declassify.0"),
    ({"rates": {"pay": {"window": 0, "max": 1}}}, "rates.pay.window"),
    ({"rates": {"pay": {"max": None}}}, "rates.pay.max"),
    ({"rates": {"write": {"max": 1}}}, "rates.write.window"),
    ({"budget": {"effects": {"pay": {"max": 1, "window": 60}}}}, "budget.effects.pay.window"),
    ({"notify": {"effects": {"pay": {"permitted": "desk"}}}}, "notify.effects.pay.permitted"),
    ({"anomaly": {"max_denials": "many"}}, "anomaly.max_denials"),
    ({"approvals": {"*": {"sources": ["mail"], "authenticated": True}}}, "approvals"),
    ({"plan": {"stale": "write", "unplanned_permitted": []}}, "plan.stale"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_data_of_another_shape_is_found(run: Command, tmp_path: Path, data: dict[str, object], at: str) -> None:
    for given in (data, {DATA_ROOT: data}):
        (tmp_path / "data.json").write_text(json.dumps(given))
        found = run("check", tmp_path / "data.json")
        assert found.exit_code == 1 and at in found.stdout


# --- the request's schema -------------------------------------------------------------------------


def test_the_committed_schema_is_the_request(run: Command) -> None:
    """To renew it: `runtime-authz policy schema > langchain_runtime_authz/policies/request.schema.json`."""
    committed = (POLICIES / "request.schema.json").read_text(encoding="utf-8")
    assert committed == run("schema").stdout and json.loads(committed) == request_schema()


def test_the_schema_says_what_the_parser_does(run: Command) -> None:
    """A request validates; one with a member more, or of another type, does not."""
    validator = jsonschema.Draft202012Validator(request_schema())
    validator.check_schema(request_schema())
    example = json.loads(run("schema", "--example").stdout)
    EvaluationRequest.model_validate_json(json.dumps(example))
    validator.validate(example)
    for wrong in ({**example, "more": 1}, {**example, "action": {"name": "fly"}}, {**example, "context": {}}):
        assert not validator.is_valid(wrong)


# --- Cedar ----------------------------------------------------------------------------------------


@pytest.fixture
def cedar(tmp_path: Path, run: Command) -> Path:
    assert run("init", tmp_path / "c", "--engine", "cedar").exit_code == 0
    return tmp_path / "c"


def test_a_new_cedar_project_is_in_order_and_decides_in_its_bundle(run: Command, cedar: Path, tmp_path: Path) -> None:
    """`check`, `test` and `build` without OPA; the bundle decides what the project did, under its revision."""
    assert run("check", cedar).exit_code == 0 and "3 of 3 cases" in run("test", cedar).stdout
    key = Key()
    (tmp_path / "key.pem").write_bytes(key.private)
    built = run("build", EXAMPLES / "bank_cedar", "-o", tmp_path / "b.tar.gz", "--key", tmp_path / "key.pem", "--revision", 7)
    assert built.exit_code == 0, built.output
    pdp = ReloadingPDP(tmp_path / "b.tar.gz", keys={"default": key.public}, poll=3600)
    try:
        assert (pdp.name, pdp.revision.partition("@")[0]) == ("cedar", "7")
        for case in open_policy(tmp_path / "b.tar.gz").cases:
            (decided,) = Evaluator(pdp).evaluate([case.request.to_json()])
            assert case.unlike(decided) == "" and decided.policy_revision == pdp.revision
        declared = example_request({"resource.id": "send_money"})  # another effect than the bundle's profile
        (decided,) = Evaluator(pdp).evaluate([declared.to_json()])
        assert decided.reasons == (Code.POLICY_CHANGED,)
    finally:
        pdp.close()


def test_the_two_banks_have_the_same_cases() -> None:
    rego, cedar = ((EXAMPLES / name / "cases.yaml").read_bytes() for name in ("bank", "bank_cedar"))
    assert rego == cedar


@pytest.mark.parametrize(("name", "text", "says"), [
    ("cedar/own.cedar", "forbid (principal, action, resource) when { context.call.arg };", "arg"),
    ("cedar/own.cedar", "forbid (principal, action, resource) when { context.local.hour > 17 };", "local"),
    ("cedar/own.cedar", '@obligation("two")\nforbid (principal, action, resource);', "two"),
    ("own.cedar", "", "belong in cedar/"),
    ("rego/own.rego", "package runtime_authz", "engine: cedar"),
    ("data.json", "{}", "engine: cedar"),
    ("obligations.json", "[]", "object"),
    ("obligations.json", '{"two": {"kind": "require_approval"}}', "malformed"),
    ("entities.json", "{", "JSON"),
])
def test_a_wrong_cedar_file_is_one_line(run: Command, cedar: Path, name: str, text: str, says: str) -> None:
    (cedar / name).parent.mkdir(exist_ok=True)
    (cedar / name).write_text(text)
    for command in ("check", "test"):
        failed = run(command, cedar)
        assert failed.exit_code in (1, 2) and says in failed.output.splitlines()[0]


def test_an_obligation_that_no_call_can_meet_fails_its_case(run: Command, cedar: Path, tmp_path: Path) -> None:
    """The enforcement point would deny each call, so no command says that one is permitted, and nothing is built."""
    (cedar / "cedar/own.cedar").write_text('@obligation("mask")\npermit (principal, action == Action::"tools/call", resource);')
    for field, refused in (("fields", False), ("field", True)):
        (cedar / "obligations.json").write_text(json.dumps({"mask": {"type": "redact", "properties": {field: ["iban"]}}}))
        for arguments in (["test", cedar], ["build", cedar, "-o", tmp_path / "out"], ["try", tmp_path / "r.json", cedar]):
            assert ("unknown_obligation" in run(*arguments).output) is refused


def test_a_recorded_log_is_replayed_under_cedar(run: Command, log: Path, cedar: Path) -> None:
    """The demo's log: the shipped sample decides alike; a rule flips what it is about."""
    assert run("diff", log, cedar, cedar).exit_code == 0
    (cedar / "cedar" / "own.cedar").write_text(
        '@reason("closed")\nforbid (principal, action == Action::"tools/call", resource == Tool::"send_money");'
    )
    flips = json.loads(run("replay", log, cedar, "--json").stdout)["flips"]
    assert {f["resource"] for f in flips if f["after"]["reasons"] == ["closed"]} == {"send_money"}


# --- try ------------------------------------------------------------------------------------------


def test_try_writes_the_request_and_answers_at_each_save(
    run: Command, tmp_path: Path, cedar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example; then an edit of the request, a mistake in it, and an edit of the policy."""
    request = tmp_path / "request.json"
    assert run("try", request, cedar).stdout.splitlines()[1].startswith("permit")

    def edit(path: str, value: object) -> None:
        request.write_bytes(example_request({path: value}).to_json())

    rule = '@reason("closed")\nforbid (principal, action, resource);'
    edits = [
        lambda: edit("context.plan.stale", True), lambda: request.write_text("{"),
        lambda: edit("context.plan.stale", False), lambda: (cedar / "cedar" / "own.cedar").write_text(rule),
    ]

    def saved(_: float) -> None:
        if not edits:
            raise KeyboardInterrupt
        edits.pop(0)()
        os.utime(request, ns=(len(edits), len(edits)))

    monkeypatch.setattr("langchain_runtime_authz.cli.policy.commands.time", SimpleNamespace(sleep=saved))  # other threads may sleep
    shown = [line for line in run("try", request, cedar, "--watch").stdout.splitlines() if not line.startswith((" ", "because"))]
    assert [line.split()[0] for line in shown if line] == ["permit", "deny", "error", "permit", "deny"]
