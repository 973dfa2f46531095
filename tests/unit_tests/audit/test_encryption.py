"""Contents sealed to an auditor: nobody else reads them, and everything else works as without contents."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from joserfc import jwe
from joserfc.jwk import OKPKey
from langchain_core.tools import StructuredTool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.audit.chain import GENESIS, line_hash, log_files, make_line, read_log, verify_log
from langchain_runtime_authz.audit.encryption import opener, sealer
from langchain_runtime_authz.audit.record import observation_record, run_record
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.pep import decide_calls
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.attack._graphs import call, hand_written, human, replying
from tests.cli import cli
from tests.unit_tests.audit.test_chain import a_record, a_request

SECRETS = ("DE21-ARG", "4711.5", "Pay the rent, please", "Not this one", "ledger/rows")


def pair(private: Any) -> tuple[bytes, bytes]:
    return (
        private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()),
        private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo),
    )


PRIVATE, PUBLIC = pair(x25519.X25519PrivateKey.generate())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "auditor.pem").write_bytes(PRIVATE)
    (tmp_path / "auditor.pub").write_bytes(PUBLIC)
    return tmp_path / "auditor.pem"


def played(sink: FileSink) -> None:
    """A session with a task and a question, a rejection with a message, and a resource that changed."""
    pay = ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"})
    authz = RuntimeAuthz(profiles={"pay": pay}, audit=sink)
    session = authz.session(subject="alice", task="Pay the rent, please")
    session.decide("pay", {"to": "DE21-ARG", "amount": 4711.5})
    told = {"message": "Not this one"} if sink.content else {}
    sink.write(run_record(now=1.0, event="approval", detail={"verdict": "reject", **told}))
    authz.data_changed("ledger/rows")


def members(record: Any) -> Any:
    """Names and types, without values."""
    if isinstance(record, dict):
        return {name: members(value) for name, value in record.items() if name != "sealed"}
    return type(record).__name__


def test_a_sealed_log_reveals_no_content(tmp_path: Path, key: Path) -> None:
    """The twin in clear has them all. Sealed, none is there, and every record is as if its contents were left out."""
    played(FileSink(tmp_path / "clear.jsonl", content=True))
    played(FileSink(tmp_path / "none.jsonl"))
    played(FileSink(tmp_path / "sealed.jsonl", seal_to=tmp_path / "auditor.pub"))
    clear, none, sealed = ((tmp_path / f"{name}.jsonl").read_text() for name in ("clear", "none", "sealed"))
    assert [secret for secret in SECRETS if secret not in clear] == []
    assert [secret for secret in SECRETS if secret in sealed or secret in none] == []
    assert [members(json.loads(line)) for line in sealed.splitlines()] == [members(json.loads(line)) for line in none.splitlines()]
    assert verify_log(tmp_path / "sealed.jsonl").ok


def test_the_auditor_reads_it(tmp_path: Path, key: Path) -> None:
    """With the key the commands show what a log in clear shows; without it, what one without contents shows."""
    log = tmp_path / "sealed.jsonl"
    played(FileSink(log, seal_to=PUBLIC, max_bytes=2000))
    assert len(log_files(log)) > 1
    opened = "".join(json.dumps(r) for r in read_log(log, opened=opener(key)))
    assert [secret for secret in SECRETS if secret not in opened] == []
    (decision,) = {r["decision_id"] for r in read_log(log) if r and r.get("action") == "tools/call"}
    thread = next(r["scope"]["thread"] for r in read_log(log) if r and r.get("scope"))
    for command in (["explain", decision], ["show", "--all"], ["story", thread], ["who-approved"]):
        run = cli("audit", *command, "--audit", str(log), "--key", str(key))
        bare = cli("audit", *command, "--audit", str(log))
        assert (run.exit_code, bare.exit_code) == (0, 0), run.output
        assert "DE21-ARG" not in bare.output
    told = cli("audit", "explain", decision, "--audit", str(log), "--key", str(key)).output
    assert "DE21-ARG" in told
    replayed = cli("policy", "replay", str(log), "--key", str(key))
    assert replayed.exit_code == 0, replayed.output
    assert "0 of" in replayed.output
    bare = cli("policy", "replay", str(log))
    assert (bare.exit_code, "key" in bare.stderr) == (2, True)


@pytest.mark.parametrize("ledger", ["works", "fails"])
def test_a_name_that_a_model_invented_is_sealed(tmp_path: Path, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is free text. In the clear twin and for the auditor it stands; the name of a tool that exists always does."""
    if ledger == "fails":
        monkeypatch.setattr(decide_calls, "_load_facts", lambda *_: 1 / 0)
    invented, log, clear = "alice-has-debts", tmp_path / "sealed.jsonl", tmp_path / "clear.jsonl"
    for sink in (FileSink(log, seal_to=PUBLIC), FileSink(clear, content=True)):
        authz = RuntimeAuthz(audit=sink, pdp=StaticPDP(True), profiles={"look": ToolProfile(effect="read")})
        calls = [call(invented, {}, "c1"), call("look", {}, "c2")]
        looks = StructuredTool.from_function(lambda: "seen", name="look", description="Look.")
        graph = authz.protect(hand_written(replying(calls, [call("look", {}, "c3")]), [looks]))
        with authz.run(subject="alice", task="Look"):
            graph.invoke(human())
    assert invented not in log.read_text() and invented in clear.read_text()
    opened = [r for r in read_log(log, opened=opener(PRIVATE)) if r]
    assert [r["resource"] for r in opened if r.get("action") == "tools/call"] == [invented, "look", "look"]
    assert [r["detail"]["tools"] for r in opened if r.get("event") == "planned"] == [[invented, "look"], ["look"]]
    sealed = [r for r in read_log(log) if r]
    assert [r["resource"] for r in sealed if r.get("action") == "tools/call"][1:] == ["look", "look"]
    assert [r["detail"]["tools"] for r in sealed if r.get("event") == "planned"] == [["*", "*"], ["*"]]


@pytest.mark.parametrize(
    "other",
    [pair(x25519.X25519PrivateKey.generate())[0], pair(ec.generate_private_key(ec.SECP256R1()))[0], PUBLIC, b"-----BEGIN nothing", pair(rsa.generate_private_key(65537, 2048))[0]],
    ids=["another", "another curve", "the public one", "no key", "rsa"],
)
def test_a_wrong_key_is_one_sentence(tmp_path: Path, other: bytes) -> None:
    log, wrong = tmp_path / "a.jsonl", tmp_path / "wrong.pem"
    FileSink(log, seal_to=PUBLIC).write(a_record(a_request(), content=True))
    wrong.write_bytes(other)
    for key in (wrong, tmp_path / "missing.pem"):
        told = cli("audit", "show", "--all", "--audit", str(log), "--key", str(key))
        assert (told.exit_code, told.stderr.count("\n")) == (2, 1) and "key" in told.stderr


def test_what_is_sealed_is_bound_to_its_record(tmp_path: Path) -> None:
    """Exchanged contents break the chain; in a chain that was made anew, the key's owner finds them."""
    log = tmp_path / "a.jsonl"
    sink = FileSink(log, seal_to=PUBLIC)
    for n in range(2):
        sink.write(a_record(a_request(), run_id=f"r{n}", content=True))
    one, two = (json.loads(line) for line in log.read_bytes().splitlines())
    one["sealed"], two["sealed"] = two["sealed"], one["sealed"]
    log.write_text(json.dumps(one, separators=(",", ":")) + "\n" + json.dumps(two, separators=(",", ":")) + "\n")
    assert not verify_log(log).ok
    lines, prev = [], GENESIS
    for seq, record in enumerate((one, two)):
        lines.append(make_line({k: v for k, v in record.items() if k not in ("seq", "prev")}, seq, prev))
        prev = line_hash(lines[-1])
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    assert verify_log(log).ok
    with pytest.raises(ConfigError, match="sealed contents of another one"):
        list(read_log(log, opened=opener(PRIVATE)))


@pytest.mark.parametrize("contents", [None, [], {"/decision_id": "forged"}, {"/request/x": 1}, {"/a/b": 1}], ids=str)
def test_a_stranger_seals_nothing_that_counts(contents: Any) -> None:
    """The key is public. What comes back is what a record leaves out, and nothing else."""
    record = json.loads(json.dumps(a_record(a_request())))
    inner = {"of": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest(), "contents": contents}
    header = {"alg": "ECDH-ES", "enc": "A256GCM"}
    blob = jwe.encrypt_compact(header, json.dumps(inner).encode(), OKPKey.import_key(PUBLIC))
    with pytest.raises(ConfigError, match="sealed contents of another one"):
        opener(PRIVATE)({**record, "sealed": blob, "seq": 0, "prev": ""})


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1(), None], ids=["p256", "p384", "p521", "x25519"])
def test_a_record_comes_back_whole(curve: Any) -> None:
    """Of each kind that holds contents, for each kind of key, as PEM text or bytes."""
    private, public = pair(ec.generate_private_key(curve) if curve else x25519.X25519PrivateKey.generate())
    seal, opened = sealer(public.decode()), opener(private)
    told = run_record(now=1.0, event="data_changed", detail={"resource": "rows\ud800"})
    for record in (
        a_record(a_request(), content=True, expected={"to": "DE21"}),
        run_record(now=1.0, event="mandate", detail={"source": "words", "mandate": {"steps": []}}),
        run_record(now=1.0, event="approval", detail={"verdict": "reject", "message": "no"}),
        observation_record(now=1.0, what="connect", name="db:5432"),
        run_record(now=1.0, event="planned", detail={"tools": ["pay", "look"]}),
        told,
    ):
        sealed = seal(record)
        assert "sealed" in sealed
        assert opened(json.loads(json.dumps({**sealed, "seq": 0, "prev": ""}))) | {"seq": 0, "prev": ""} == {**record, "seq": 0, "prev": ""}
    assert seal(told)["detail"]["resource"] == content_digest("rows\ud800")
    plain = [run_record(now=1.0, event="started", detail={"subject": "user:a"}), observation_record(now=1.0, what="tool", name="pay")]
    assert [seal(record) for record in plain] == plain
    assert [opened(record) for record in plain] == plain


def test_a_log_outlives_its_auditor_s_key(tmp_path: Path) -> None:
    """Each key to which a log was sealed opens its part, in any order; one alone is not enough."""
    log = tmp_path / "a.jsonl"
    pairs = [(PRIVATE, PUBLIC), pair(ec.generate_private_key(ec.SECP256R1()))]
    for number, (private, public) in enumerate(pairs):
        (tmp_path / f"{number}.pem").write_bytes(private)
        FileSink(log, seal_to=public).write(a_record(a_request(), run_id=f"r{number}", content=True))
    show, both = ["audit", "show", "--all", "--json", "--audit", str(log)], [str(tmp_path / f"{n}.pem") for n in (1, 0)]
    assert cli(*show, "--key", both[0]).exit_code == 2
    shown = cli(*show, "--key", both[0], "--key", both[1])
    assert shown.exit_code == 0, shown.stderr
    assert all("sealed" not in (r or {}) or r["request"] for r in read_log(log, opened=opener(*both)))


@pytest.mark.parametrize("key", [PRIVATE, pair(ec.generate_private_key(ec.SECP256K1()))[1]], ids=["private", "secp256k1"])
def test_only_a_public_key_of_a_known_curve_seals(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(ConfigError, match="key"):
        FileSink(tmp_path / "a", seal_to=key)


def test_one_way_to_keep_contents(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        FileSink(tmp_path / "a", content=True, seal_to=PUBLIC)
    with pytest.raises(ConfigError):
        FileSink(tmp_path / "a", seal_to=tmp_path / "missing.pub")


def test_without_the_extra_nothing_is_needed() -> None:
    code = "import sys; from langchain_runtime_authz.audit import encryption, sinks; assert 'joserfc' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
