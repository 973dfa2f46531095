"""Policies with Rego of their own: compiled, tested and served by a real OPA."""

import itertools
import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import AuthzError, Mandate, RuntimeAuthz
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli.policy.open_policy import bundle_files, open_policy
from langchain_runtime_authz.cli.policy.rego_lint import lint_paths
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pap.bundle import pack, read_bundle
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.testing import FrozenClock, ScriptedChatModel, example_request
from tests.bundles import Key
from tests.cli import cli
from tests.integration_tests.services import SHIPPED, opa_binary

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
OWN_RULES = ["bank", "data_residency", "four_eyes", "tenant_isolation"]


def opa(*arguments: object, given: str | None = None) -> str:
    done = subprocess.run([opa_binary(), *map(str, arguments)], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def policy(*arguments: object) -> str:
    done = cli("policy", *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def _opa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPA", opa_binary())


@pytest.fixture
def key(tmp_path: Path) -> Key:
    key = Key()
    (tmp_path / "key.pem").write_bytes(key.private)
    (tmp_path / "public.pem").write_bytes(key.public)
    return key


def test_there_are_seven_examples() -> None:
    assert sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir()) == sorted([*OWN_RULES, "bank_cedar", "read_only", "spend_limit"])


@pytest.mark.parametrize("name", OWN_RULES)
def test_an_example_holds_in_wasm_and_in_opa(name: str, tmp_path: Path, key: Key) -> None:
    """Its cases, its Rego tests; and its signed bundle, verified and evaluated by OPA, decides each case alike."""
    assert policy("check", EXAMPLES / name).strip() == "nothing found"
    told = policy("test", EXAMPLES / name)
    assert ("opa: PASS" in told) == any((EXAMPLES / name).rglob("*_test.rego"))
    bundle = tmp_path / "b.tar.gz"
    policy("build", EXAMPLES / name, "-o", bundle, "--key", tmp_path / "key.pem")
    again = ("--signing-key", tmp_path / "key.pem", "--signing-alg", "ES256", "--output", tmp_path / "again.tar.gz")
    opa("build", "--bundle", bundle, "--verification-key", tmp_path / "public.pem", *again)
    pdp = ReloadingPDP(bundle, keys={"default": key.public}, poll=3600)
    try:
        for case in open_policy(bundle).cases:
            body = case.request.to_json()
            result = json.loads(opa("eval", "--bundle", bundle, "--stdin-input", "data.runtime_authz.decision", given=body.decode()))
            (answer,) = (e["value"] for r in result["result"] for e in r["expressions"])
            mine = pdp.evaluate(body)
            assert [r["code"] for r in answer["context"]["reasons"]] == list(mine.reasons if mine.reason else [])
            assert answer["decision"] == mine.permit and answer["context"]["policy"]["revision"] == "1"
    finally:
        pdp.close()


@pytest.mark.parametrize(("line", "wrong", "right"), [
    ('input.context.tenant == "b"', "input.context.tenant", "input.subject.properties"),
    ("input.context.call.arg.amount > 1", "input.context.call.arg", "input.context.call.args"),
    ("input.task.epoch == 1", "input.task", "input.context.task"),
    ("c := input.context; c.plan.stalle", "c.plan.stalle", "c.plan.stale"),
    ('c := input.context; object.get(c, "tenant", "a") == "b"', "c.tenant", "input.subject.properties"),
    ('object.get(input.context, "tenant", "a") == "b"', "input.context.tenant", "input.subject.properties"),
    ('object.get(input, ["context", "leese"], 1) == 2', "input.context.leese", "input.context.lease"),
    ('some e in input.context.delegation.edges; e.form == "a"', "e.form", "e.from"),
    ("count([e | some e in input.context.delegation.edges; e.too]) > 1", "e.too", "e.to"),
    ("not input.context.planned", "input.context.planned", "input.context.plan"),
    ("input.context.local.hour.x == 1", "input.context.local.hour.x", "`input.context.local.hour` is a number"),
    ('input.subject.id.name == "a"', "input.subject.id.name", "`input.subject.id` is a string"),
    ("input.context.history[0].calls", "input.context.history.0", "names of your own"),
    ('{"context": {"tenant": t}} = input; t == "a"', "", "read each member by its path"),
    ('input.subject == {"type": "user", "name": "a"}', "", "read each member by its path"),
])
def test_a_path_that_no_request_has_is_found(line: str, wrong: str, right: str, tmp_path: Path) -> None:
    """A rule that reads it never fires, and OPA compiles it: the finding names the nearest true path."""
    project = tmp_path / "p"
    policy("init", project)
    (project / "rego").mkdir()
    own = project / "rego" / "own.rego"
    own.write_text(f'package runtime_authz\n\ndenied contains "own" if {{\n\t{line.replace("; ", chr(10))}\n}}\n')
    done = cli("policy", "check", str(project))
    assert done.exit_code == 1, done.output
    found, summary = done.stdout.strip().splitlines()
    assert found.startswith("rego/own.rego:")
    assert not wrong or f"{wrong}` is not in a request" in found
    assert right in found and summary == "findings: 1"


@pytest.mark.parametrize("lines", [
    "c := input.subject; c.id\n count([1 | c := input.context; c.now > 1]) > 0",
    "c := input.context; count([1 | some c in [{}]; c.x]) == 0", 'object.get(input.context, name, 1) == 2; name := "x"',
    "input.context.call.provenance.to.items[0].class", "some i, e in input.context.delegation.edges; e.from; i > 0",
    "input.context.lease.grant.args.pay.amount.le > 1", "input.context.history.calls[input.resource.id] > 1",
    "input.resource.properties.reaches[_].effect", "input.context.local.hour > 17",
])
def test_a_path_that_a_request_may_have_is_no_finding(lines: str) -> None:
    body = lines.replace("; ", "\n\t")
    assert list(lint_paths({"own": f"package p\n\nown if {{\n\t{body}\n}}\n"})) == []


def test_the_shipped_rules_read_only_what_a_request_has() -> None:
    """So do those of all examples (`check` above), free members and nested ones included."""
    assert list(lint_paths({"shipped": SHIPPED[0].read_text()})) == []


def test_four_eyes_by_amount_asks_two_people(tmp_path: Path) -> None:
    """Through a graph: the subject cannot answer, one other is not enough, two are."""
    files = bundle_files(open_policy(EXAMPLES / "bank"), 1)
    (tmp_path / "bank.tar.gz").write_bytes(pack(files))
    pdp = ReloadingPDP(tmp_path / "bank.tar.gz", poll=3600)
    noon = FrozenClock(1795690800)  # 2026-11-26 12:00 in Berlin
    paid: list[float] = []

    def send_money(recipient: str, amount: float) -> str:
        """Send money."""
        paid.append(amount)
        return "sent"

    authz = RuntimeAuthz(pdp=pdp, zone="Europe/Berlin", ledger=MemoryLedger(clock=noon))
    call = {"name": "send_money", "args": {"recipient": "DE21", "amount": 5000.0}, "id": "1"}
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    graph = authz.protect(create_agent(model, [tool(send_money)], checkpointer=InMemorySaver()))
    config = {"configurable": {"thread_id": "t"}}
    try:
        with authz.run(subject="alice"):
            graph.invoke({"messages": [("user", "Pay 5000 to DE21")]}, config)
        (asked,) = authz.approvals()
        with pytest.raises(AuthzError):
            authz.approve(asked.id, by="alice")
        assert authz.approve(asked.id, by="bob") == 1 and paid == []
        assert authz.approve(asked.id, by="carol") == 0
        with authz.run(subject="alice"):
            graph.invoke(None, config)
        assert paid == [5000.0]
    finally:
        pdp.close()


def test_yesterdays_log_flips_alike_in_rego_and_in_cedar(tmp_path: Path) -> None:
    """Recorded without a zone and sealed: each bank's rules flip the same decisions, for the same reasons."""
    private = X25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    clock, sink = FrozenClock(1795690800), FileSink(tmp_path / "a.jsonl", seal_to=public, max_bytes=50_000)
    authz = RuntimeAuthz(audit=sink, profiles=EXAMPLES / "bank" / "profiles.yaml", ledger=MemoryLedger(clock=clock))
    for n, (hours, tenant, amount) in enumerate(itertools.product((0, 5.99, 6), "ab", (1000, 1000.01))):
        clock.now = 1795690800 + hours * 3600 + n
        step = {"id": "p", "tool": "send_money", "args": {"recipient": "DE21", "amount": amount}}
        alice = {"type": "user", "id": f"alice{n}", "properties": {"tenant": tenant}}
        session = authz.session(subject=alice, task="Pay", mandate=Mandate.model_validate({"steps": [step]}), thread=f"t{n}")
        session.decide("send_money", step["args"])
        session.decide("export_ledger", {})
    flips = {}
    for name in ("bank", "bank_cedar"):
        arguments = ("replay", tmp_path / "a.jsonl", EXAMPLES / name, "--key", tmp_path / "key.pem", "--json")
        done = cli("policy", *arguments)
        assert done.exit_code == 1, done.output
        flips[name] = [(f["decision_id"], f["after"]["outcome"], f["after"]["reasons"]) for f in json.loads(done.stdout)["flips"]]
    assert flips["bank"] == flips["bank_cedar"]
    diff = ("diff", tmp_path / "a.jsonl", EXAMPLES / "bank", EXAMPLES / "bank_cedar", "--key", tmp_path / "key.pem", "--json")
    done = cli("policy", *diff)
    found = json.loads(done.stdout)
    assert (done.exit_code, found["flips"], found["obliged_otherwise"]) == (0, [], [])
    assert Counter(r for _, _, (r, *_) in flips["bank"]) == {"four_eyes": 4, "after_hours": 4, "tenant_tool": 6}


def test_without_its_rule_an_example_permits_the_harm(tmp_path: Path) -> None:
    """The unenforced twin: the shipped policy alone permits what each example's own rule denies."""
    for name in OWN_RULES:
        own = [c for c in open_policy(EXAMPLES / name).cases if c.reasons in (("other_tenant",), ("residency",), ("own_approval",), ("after_hours",), ("tenant_tool",))]
        assert own
        data = json.loads((EXAMPLES / name / "data.json").read_text())["runtime_authz_data"]
        (tmp_path / "data.json").write_text(json.dumps(data))
        pdp = open_policy(tmp_path / "data.json").pdp()
        assert [pdp.evaluate(c.request.to_json()).outcome for c in own] == ["permit"] * len(own), name
        pdp.close()


def test_a_bundle_that_opa_signed_is_read(tmp_path: Path, key: Key) -> None:
    """`opa build --signing-key` needs nothing of ours; under keys one without the signature is refused."""
    arguments = ("build", "--target", "wasm", "--entrypoint", "runtime_authz/decision", "--revision", "7", "--output")
    signing = ("--signing-key", tmp_path / "key.pem", "--signing-alg", "ES256")
    source = tmp_path / "source"
    source.mkdir()
    for file in SHIPPED:
        (source / file.name).write_bytes(file.read_bytes())
    opa(*arguments, tmp_path / "b.tar.gz", "--bundle", source, *signing)
    bundle = read_bundle(tmp_path / "b.tar.gz", {"default": key.public})
    assert (bundle.number, bundle.entrypoint, bundle.signed_by) == (7, "runtime_authz/decision", "default")
    opa(*arguments, tmp_path / "c.tar.gz", "--bundle", source)
    with pytest.raises(ConfigError) as caught:
        read_bundle(tmp_path / "c.tar.gz", {"default": key.public})
    assert caught.value.code == Code.POLICY_UNSIGNED


def test_what_opa_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    """A mistake in Rego: OPA's words, exit code 2."""
    (tmp_path / "policy.yaml").write_text("revision: 1\n")
    (tmp_path / "rego").mkdir()
    (tmp_path / "rego" / "own.rego").write_text("package runtime_authz\n\ndenied contains x if {\n")
    failed = cli("policy", "test", str(tmp_path))
    assert failed.exit_code == 2 and failed.stderr.startswith("error: policy_invalid: `opa check` says: ")
    assert len(failed.stderr.splitlines()) == 1


def own_bundle(path: Path, answer: str) -> Path:
    """Let OPA build a policy that has nothing of the shipped one."""
    (path / "source").mkdir()
    (path / "source" / "mine.rego").write_text(f"package mine\n\nanswer := {answer}\n")
    options = ("--target", "wasm", "--entrypoint", "mine/answer", "--revision", "3", "--output", path / "b.tar.gz")
    opa("build", *options, "--bundle", path / "source")
    return path / "b.tar.gz"


def test_a_policy_that_permits_nothing_being_asked_is_refused(tmp_path: Path) -> None:
    """It fails open, and is not followed."""
    with pytest.raises(ConfigError, match="permits an empty request"):
        ReloadingPDP(own_bundle(tmp_path, '{"decision": true, "context": {}}'))


def test_a_policy_wholly_of_ones_own(tmp_path: Path) -> None:
    """Its manifest names the entrypoint."""
    pdp = ReloadingPDP(own_bundle(tmp_path, '{"decision": input.subject.id == "alice", "context": {}}'), poll=3600)
    try:
        assert pdp.revision.startswith("3@")
        for subject in ("alice", "eve"):
            decision = pdp.evaluate(example_request({"subject.id": subject}).to_json())
            assert (decision.permit, decision.policy_revision) == (subject == "alice", pdp.revision)
    finally:
        pdp.close()


def test_a_trace_is_decided_by_rego_of_a_project(tmp_path: Path) -> None:
    """`replay-trace --policy PROJECT` compiles the Rego: with a rule that never holds it says what the shipped Wasm says, an edit counts."""
    examples = EXAMPLES.parent
    trace = ["replay-trace", str(examples / "coding_agent.jsonl"), "--profiles", str(examples / "coding_agent.yaml"), "--json"]
    (tmp_path / "policy.yaml").write_text("revision: 1\n")
    (tmp_path / "rego").mkdir()
    (tmp_path / "rego" / "own.rego").write_text('package runtime_authz\n\ndenied contains "frozen" if input.subject.id == "nobody"\n')
    shipped = cli(*trace)
    same = cli(*trace, "--policy", str(tmp_path))
    assert (same.exit_code, same.stdout) == (0, shipped.stdout)
    (tmp_path / "rego" / "own.rego").write_text('package runtime_authz\n\ndenied contains "frozen" if input.action.name == "tools/call"\n')
    edited = cli(*trace, "--policy", str(tmp_path))
    assert json.loads(edited.stdout)["stopped"] == len(json.loads(edited.stdout)["steps"])
    (tmp_path / "rego" / "own.rego").write_text("package runtime_authz\n\nthis is no rule\n")
    broken = cli(*trace, "--policy", str(tmp_path))
    assert (broken.exit_code, broken.stdout) == (2, "") and "own.rego" in broken.stderr
