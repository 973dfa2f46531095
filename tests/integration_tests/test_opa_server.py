"""`OpaPDP` against a real OPA: every way to reach it, bundles, and what a broken policy gives."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.pdp_suite import PDPContract
from tests.bundles import Key
from tests.integration_tests.faulted_graph import run_graph
from tests.integration_tests.services import SHIPPED, Authority, OpaServer, free_port, opa_binary

REQUEST = example_request()
DENIED = example_request({"context.lease.exp": 1})


@pytest.fixture(scope="module")
def server() -> Iterator[OpaServer]:
    with OpaServer() as running:
        yield running


@pytest.fixture
def pdp(server: OpaServer) -> Iterator[OpaPDP]:
    asked = OpaPDP(server.url, timeout=5)
    yield asked
    asked.close()


def ask(pdp: PDP, request=REQUEST, *, deadline: float = 10) -> Decision:
    (decision,) = Evaluator(pdp, deadline=deadline).evaluate([request.to_json()])
    return decision


class TestOpaContract(PDPContract):
    """A real server keeps the contract of every PDP."""

    @pytest.fixture(autouse=True)
    def _servers(self, server: OpaServer, tmp_path: Path) -> Iterator[None]:
        data = json.loads(SHIPPED[1].read_text())
        data["runtime_authz_data"]["effects"] = {}
        (tmp_path / "data.json").write_text(json.dumps(data))
        with OpaServer(SHIPPED[0], tmp_path / "data.json") as denying:
            self._url = {True: server.url, False: denying.url}
            yield

    def make_pdp(self, permit: bool) -> PDP:
        """The shipped policy; denying, its effect table is empty."""
        return OpaPDP(self._url[permit], timeout=5)


def counted(server: OpaServer) -> int:
    """How many decision requests OPA has answered."""
    _, text = server.get("/metrics")
    counts = [line for line in text.decode().splitlines() if "http_request_duration_seconds_count" in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in counts if 'v1/data"' in line)


def test_the_calls_of_a_message_are_one_request(server: OpaServer, pdp: OpaPDP) -> None:
    """Eight requests, eight answers in order, one exchange."""
    before = counted(server)
    for decisions in (
        Evaluator(pdp).evaluate([REQUEST.to_json(), DENIED.to_json()] * 4),
        asyncio.run(Evaluator(pdp).aevaluate([REQUEST.to_json(), DENIED.to_json()] * 4)),
    ):
        assert [d.permit for d in decisions] == [True, False] * 4
        assert {d.reason for d in decisions if not d.permit} == {Code.LEASE_INVALID}
    assert counted(server) == before + 2


def test_a_rule_without_a_batch_is_asked_side_by_side(server: OpaServer) -> None:
    """Another path has no batch rule unless one is named; the answers are the same."""
    before = counted(server)
    alone = OpaPDP(server.url, path="runtime_authz/decision", batch=None, timeout=5)
    alone._batch = None
    decisions = Evaluator(alone).evaluate([REQUEST.to_json(), DENIED.to_json()] * 4)
    assert [d.permit for d in decisions] == [True, False] * 4
    assert counted(server) == before + 8
    alone.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    """The same answers, and no port. Closed, it denies."""
    with OpaServer(address=f"unix://{tmp_path}/opa.sock") as local:
        pdp = OpaPDP(local.url)
        assert ask(pdp).permit and ask(pdp, DENIED).reason == Code.LEASE_INVALID
        for _ in range(2):
            pdp.close()
            assert ask(pdp).reason == Code.PDP_ERROR


def test_mutual_tls(tmp_path: Path) -> None:
    """The CA file is the only authority, the name is checked, and OPA sees our certificate."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    mine = ours.issue("127.0.0.1")
    files = ["--tls-cert-file", mine, "--tls-private-key-file", mine, "--tls-ca-cert-file", ours.file]
    with OpaServer(*files, "--authentication=tls", *SHIPPED) as secure:
        url = secure.url.replace("http:", "https:")
        client = ours.issue("pep")
        good = OpaPDP(url, ca_file=ours.file, client_cert=client, timeout=5)
        assert ask(good).permit
        good.close()
        # TLS 1.3 lets the server refuse a certificate after the handshake: its alert may be lost to the reset.
        refused_there = (Code.PDP_TLS, Code.PDP_UNREACHABLE)
        for arguments, codes in (
            ({"ca_file": ours.file}, refused_there),  # no certificate of ours
            ({"ca_file": ours.file, "client_cert": other.issue("pep")}, refused_there),
            ({"ca_file": other.file, "client_cert": client}, (Code.PDP_TLS,)),
            ({"client_cert": client}, (Code.PDP_TLS,)),  # the system's authorities do not know it
        ):
            bad = OpaPDP(url, timeout=5, **arguments)
            assert ask(bad).reason in codes, arguments
            bad.close()
        plain = OpaPDP(secure.url, timeout=5)
        assert ask(plain).reason in (Code.PDP_STATUS, Code.PDP_UNREACHABLE, Code.PDP_PROTOCOL)
        plain.close()


def test_a_client_certificate_that_is_renewed(tmp_path: Path) -> None:
    """OPA lets in who shows the certificate; renewed files are read without a restart, broken ones deny."""
    ours = Authority(tmp_path)
    mine = ours.issue("127.0.0.1")
    (tmp_path / "authz.rego").write_text(
        "package system.authz\nimport rego.v1\ndefault allow := false\n"
        'allow if input.client_certificates[0].Subject.CommonName == "second"\n'
        'allow if input.path == ["health"]\n',
    )
    files = ["--tls-cert-file", mine, "--tls-private-key-file", mine, "--tls-ca-cert-file", ours.file]
    gate = ["--authentication=tls", "--authorization=basic", tmp_path / "authz.rego"]
    with OpaServer(*files, *gate, *SHIPPED) as secure:
        used = tmp_path / "used.pem"
        used.write_bytes(ours.issue("first").read_bytes())
        pdp = OpaPDP(secure.url.replace("http:", "https:"), ca_file=ours.file, client_cert=used, timeout=20)
        assert ask(pdp, deadline=30).reason == Code.PDP_UNAUTHORIZED
        replace(used, ours.issue("second").read_bytes())
        assert ask(pdp, deadline=30).permit
        replace(used, b"no certificate")
        assert ask(pdp, deadline=30).reason == Code.PDP_TLS
        used.unlink()
        assert ask(pdp, deadline=30).reason == Code.PDP_TLS
        used.write_bytes(ours.issue("second").read_bytes())
        assert ask(pdp, deadline=30).permit
        pdp.close()


def replace(file: Path, content: bytes) -> None:
    """Put a new file in its place, as whoever renews certificates does."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def test_a_token_from_a_file_that_is_renewed(tmp_path: Path) -> None:
    """OPA lets in who has the token; a renewed file is read without a restart."""
    token = tmp_path / "token"
    token.write_text("first\n")
    (tmp_path / "authz.rego").write_text(
        'package system.authz\nimport rego.v1\ndefault allow := false\nallow if input.identity == "second"\n'
        'allow if input.path == ["health"]\n',
    )
    arguments = ["--authentication=token", "--authorization=basic", tmp_path / "authz.rego", *SHIPPED]
    with OpaServer(*arguments) as guarded:
        pdp = OpaPDP(guarded.url, token_file=token, timeout=5)
        assert ask(pdp).reason == Code.PDP_UNAUTHORIZED
        token.write_text("second\n")
        assert ask(pdp).permit
        token.write_text("two words")
        assert ask(pdp).reason == Code.PDP_UNAUTHORIZED
        token.unlink()
        assert ask(pdp).reason == Code.PDP_UNAUTHORIZED
        pdp.close()


@pytest.mark.parametrize("arguments", [
    {"url": "ftp://127.0.0.1"}, {"url": "http://user:pass@127.0.0.1"}, {"url": "unix://opa.sock"},
    {"url": "http://127.0.0.1/?x=1"}, {"url": "http://opa.example", "token_file": __file__}, {"ca_file": __file__},
    {"url": "https://127.0.0.1", "ca_file": __file__}, {"url": "https://127.0.0.1", "ca_file": "absent.pem"},
    {"token_file": "absent"}, {"path": "runtime_authz/../system"}, {"path": "a b"}, {"batch": "x?y"}, {"timeout": 0},
    {"timeout": float("inf")}, {"pool_size": 0},
], ids=str)
def test_wrong_settings_are_refused(arguments: dict[str, object]) -> None:
    """At construction, with a sentence, before anything is asked."""
    with pytest.raises(ConfigError):
        OpaPDP(**arguments)  # type: ignore[arg-type]


def test_the_environment_changes_nothing(server: OpaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy nor a netrc of the environment is used."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login eve password eve\n")
    (tmp_path / ".netrc").chmod(0o600)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    pdp = OpaPDP(server.url, timeout=5)
    assert ask(pdp).permit
    pdp.close()
    asked = OpaPDP(server.url, timeout=1, proxy=f"http://127.0.0.1:{free_port()}")
    assert ask(asked).reason == Code.PDP_UNREACHABLE  # but one that was asked for is
    asked.close()


def _in_child(pdp: OpaPDP, queue) -> None:
    queue.put((ask(pdp).outcome, ask(pdp, DENIED).outcome))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_makes_its_own_connections(pdp: OpaPDP) -> None:
    """Parent and child go on, each on connections of its own."""
    assert ask(pdp).permit
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_in_child, args=(pdp, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [("permit", "deny")] * 2
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert ask(pdp).permit


def test_a_signed_bundle_names_its_revision(tmp_path: Path) -> None:
    """Every decision carries the bundle's revision and OPA's decision id."""
    key, source = Key(), tmp_path / "source"
    (tmp_path / "key.pem").write_bytes(key.private)
    (tmp_path / "public.pem").write_bytes(key.public)
    source.mkdir()
    for file in SHIPPED:
        (source / file.name).write_bytes(file.read_bytes())
    (source / ".manifest").write_text(json.dumps({"revision": "r7", "roots": ["runtime_authz", "runtime_authz_data"]}))
    signed = ["--bundle", source, "--signing-key", tmp_path / "key.pem", "--signing-alg", "ES256"]
    subprocess.run([opa_binary(), "build", *signed, "--output", tmp_path / "b.tar.gz"], capture_output=True, check=True)
    arguments = ["--bundle", tmp_path / "b.tar.gz", "--verification-key", tmp_path / "public.pem", "--signing-alg", "ES256"]
    with OpaServer(*arguments, "--set=decision_logs.console=true") as server:
        pdp = OpaPDP(server.url, timeout=5)
        decision = ask(pdp)
        assert decision.permit and decision.policy_revision == pdp.revision
        assert pdp.revision.endswith("@r7") and len(decision.pdp_decision_id) == 36
        first, second = Evaluator(pdp).evaluate([REQUEST.to_json(), DENIED.to_json()])
        assert first.pdp_decision_id == second.pdp_decision_id != decision.pdp_decision_id  # one evaluation
        assert {first.policy_revision, second.policy_revision} == {pdp.revision}
        pdp.close()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_graph_decided_by_a_real_opa(server: OpaServer, asynchronous: bool) -> None:
    """Three calls of one message run on a permit; of an undefined rule none does."""
    pdp = OpaPDP(server.url, timeout=5)
    codes, ran, statuses, _ = run_graph(pdp, 3, asynchronous=asynchronous)
    assert (codes, sorted(ran), statuses) == ([], [0, 1, 2], ["success"] * 3)
    pdp.close()
    nowhere = OpaPDP(server.url, path="runtime_authz/nothing", timeout=5)
    codes, ran, statuses, _ = run_graph(nowhere, 3, asynchronous=asynchronous)
    assert (codes, ran, statuses) == ([Code.PDP_UNDEFINED] * 3, [], ["error"] * 3)
    nowhere.close()


# Other shapes are of `test_faults`.
BROKEN = {
    "throws": ('decision := true if true\ndecision := false if input.subject.type == "user"', Code.PDP_STATUS),
    "loops": (
        "decision := count([1 | some i in numbers.range(1, 30000); some j in numbers.range(1, 30000); i == j])",
        Code.PDP_TIMEOUT,
    ),
    "boolean": ("decision := true", Code.PDP_MALFORMED),
    "undefined": ('decision := {"decision": true} if input.subject.type == "nobody"', Code.PDP_UNDEFINED),
}


def test_a_policy_that_fails_denies_and_says_how(tmp_path: Path) -> None:
    """It loops, throws, is undefined, or answers in another shape."""
    for name, (rule, _) in BROKEN.items():
        (tmp_path / f"{name}.rego").write_text(f"package {name}\nimport rego.v1\n{rule}\n")
    with OpaServer(*tmp_path.glob("*.rego")) as server:
        for name, (_, code) in BROKEN.items():
            pdp = OpaPDP(server.url, path=f"{name}/decision", timeout=0.5 if name == "loops" else 10)
            started = time.monotonic()
            for decision in (ask(pdp), *asyncio.run(Evaluator(pdp, deadline=10).aevaluate([REQUEST.to_json()]))):
                assert (decision.outcome, decision.reason, decision.failure) == ("deny", code, "pdp"), name
            assert name != "loops" or time.monotonic() - started < 30
            pdp.close()
