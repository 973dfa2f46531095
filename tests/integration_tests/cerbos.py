"""`AuthzenPDP` against a PDP that is not ours: Cerbos, by its AuthZEN 1.0 endpoints. Long tier: `.ci/cerbos` builds it.

Cerbos gives its policies the subject, the action and the resource of a request, but not the context. So it is combined with an engine
that decides by the context.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pdp.compose import DenyOverrides
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.pdp_suite import PDPContract
from tests.integration_tests.authzen_certification import CERBOS, KNOWN, ROWS, passes, play
from tests.integration_tests.services import answers, free_port
from tests.threads import until

POLICY = """
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: tool
  version: default
  rules:
    - {actions: ["tools/call"], effect: EFFECT_ALLOW, roles: ["*"],
       condition: {match: {all: {of: [{expr: P.attr.tenant == "acme"}, {expr: R.attr.sink != "external"}]}}}}
    - {actions: ["*"], effect: EFFECT_DENY, roles: ["*"], condition: {match: {expr: R.attr.effect == "pay" && R.attr.target.amount > 100}}}
"""


@contextmanager
def serving(folder: Path, policy: str) -> Iterator[str]:
    """Start it with one policy, and give its URL once it answers."""
    port, policies, config = free_port(), folder / "policies", folder / "cerbos.json"
    policies.mkdir()
    (policies / "policy.yaml").write_text(policy)
    server = {"httpListenAddr": f"127.0.0.1:{port}", "grpcListenAddr": f"127.0.0.1:{free_port()}"}
    disk = {"driver": "disk", "disk": {"directory": str(policies), "watchForChanges": False}}
    config.write_text(json.dumps({"server": server, "storage": disk, "telemetry": {"disabled": True}}))
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([os.environ["LRA_CERBOS"], "server", "--config", config], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(f"{url}/_cerbos/health"), told=lambda: "Cerbos did not start")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield url
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def cerbos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one with `POLICY`."""
    with serving(tmp_path_factory.mktemp("cerbos"), POLICY) as url:
        yield url


class TestCerbosContract(PDPContract):
    """It keeps the contract of every PDP; the one that denies has no rule that permits."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _servers(cerbos: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with serving(tmp_path_factory.mktemp("denying"), POLICY.replace("EFFECT_ALLOW", "EFFECT_DENY")) as denying:
            TestCerbosContract.urls = {True: cerbos, False: denying}
            yield

    def make_pdp(self, permit: bool) -> PDP:
        """The endpoints that its metadata names."""
        return AuthzenPDP.discover(self.urls[permit], timeout=5)


CASES = {
    "a write": ({}, True),
    "a call with an effect outside": ({"resource.properties.sink": "external"}, False),
    "a call of another tenant": ({"subject.properties.tenant": "umbrella"}, False),
    "a small payment": ({"resource.properties.effect": "pay", "resource.properties.target": {"amount": 99.5}}, True),
    "a large payment": ({"resource.properties.effect": "pay", "resource.properties.target": {"amount": 100.5}}, False),
    "a model's call, which no rule names": ({"action.name": "model/call"}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_it_decides_by_its_own_policy(cerbos: str, case: str) -> None:
    """One request, and the same between two others of the same tool, which its batch would answer as one."""
    changes, permit = CASES[case]
    body, known = example_request(changes).to_json(), example_request().to_json()
    with closing(AuthzenPDP.discover(cerbos, timeout=5)) as pdp:
        decision = pdp.evaluate(body)
        assert isinstance(decision, Decision) and decision.permit is permit
        assert [d.permit for d in pdp.evaluate_batch([known, body, known])] == [True, permit, True]


def test_the_context_is_decided_by_another_engine(cerbos: str) -> None:
    """Deny after a lease ended: Cerbos does not see it, and the shipped rules do."""
    ended = example_request({"context.lease.exp": 1}).to_json()
    with closing(AuthzenPDP.discover(cerbos, timeout=5)) as alone:
        assert alone.evaluate(ended).permit
        both = DenyOverrides(alone, WasmPDP())
        given = Evaluator(both, deadline=10).evaluate([ended, example_request().to_json()])
        assert [(d.permit, d.reason) for d in given] == [(False, Code.LEASE_INVALID), (True, given[1].reason)]


def test_the_certification_scenario(tmp_path: Path) -> None:
    """Its rows pass through the client, but for those that Cerbos cannot decide; each of these is a deny."""
    with serving(tmp_path, CERBOS) as url, closing(AuthzenPDP.discover(url, timeout=5)) as pdp:
        failed = {row["id"]: play(pdp, row) for row in ROWS if not passes(row, play(pdp, row))}
    assert failed.keys() == KNOWN["cerbos"]
    assert not any(d.permit for decisions in failed.values() for d in decisions)
