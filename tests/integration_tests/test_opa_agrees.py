"""The compiled policy answers what a real OPA answers on its source, and Cedar permits nothing more.

`LRA_REQUESTS` sets how many requests of each kind are generated.
"""

import http.client
import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from langchain_runtime_authz.evaluation import EvaluationRequest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from tests.bundles import policy_data
from tests.integration_tests.mutants import ANYTHING, type_preserving, wild
from tests.integration_tests.services import POLICIES, OpaServer, opa_binary

ROOT = Path(__file__).parents[2]
REQUESTS = int(os.environ.get("LRA_REQUESTS", "600"))


@pytest.fixture(scope="module")
def server() -> Iterator[OpaServer]:
    """A real OPA with the shipped Rego and data."""
    with OpaServer() as running:
        yield running


@pytest.fixture(scope="module")
def oracle(server: OpaServer) -> Iterator[Callable[[object], Any]]:
    """OPA's own answer, by nothing of ours."""
    connection = http.client.HTTPConnection(server.address, timeout=10)

    def ask(document: object) -> Any:
        connection.request("POST", "/v1/data/runtime_authz/decision", json.dumps({"input": document}))
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        return body["result"]

    yield ask
    connection.close()


def comparable(answer: Any) -> tuple[bool, list[object], list[object]]:
    """Everything but the revision, which is the server's own."""
    assert answer.keys() == {"decision", "context"}
    assert answer["context"].keys() == {"reasons", "obligations", "ttl", "policy"}
    return answer["decision"], answer["context"]["reasons"], answer["context"]["obligations"]


@pytest.mark.parametrize("kind", [type_preserving, wild])
def test_wasm_and_opa_agree(oracle: Callable[[object], Any], kind: Callable[[random.Random], Any]) -> None:
    """Decision, reasons and obligations are the same, in the same order, alone and in batches."""
    rng = random.Random(20251124)
    pdp = WasmPDP(pool_size=1)
    outcomes: Counter[bool] = Counter()
    codes: set[str] = set()
    pending: list[tuple[bytes, Any]] = []
    try:
        for _ in range(REQUESTS):
            document = kind(rng)
            body = json.dumps(document).encode()
            expected = comparable(oracle(document))
            assert expected == comparable(pdp.document(body)), document
            outcomes[expected[0]] += 1
            codes.update(reason["code"] for reason in expected[1])  # type: ignore[index]
            pending.append((body, expected))
            if len(pending) == 8:
                together = pdp.evaluate_batch([b for b, _ in pending])
                assert [d.permit for d in together] == [e[0] for _, e in pending]  # type: ignore[attr-defined]
                pending.clear()
    finally:
        pdp.close()
    print(f"{kind.__name__}: {REQUESTS} requests, {outcomes[True]} permitted, codes {sorted(codes)}")
    assert min(outcomes[True], outcomes[False]) > REQUESTS / 50  # else the comparison would say little
    assert len(codes) >= 14


def test_wasm_and_opa_agree_on_garbage(oracle: Callable[[object], Any]) -> None:
    """What is no request gets the same answer too."""
    pdp = WasmPDP(pool_size=1)
    for document in ANYTHING:
        answer = comparable(pdp.document(json.dumps(document).encode()))
        assert answer == comparable(oracle(document)) and answer[0] is False
    pdp.close()


def requests(kind: Callable[[random.Random], Any], n: int) -> Iterator[EvaluationRequest]:
    """Generated requests that this package would send."""
    rng = random.Random(20251125)
    for _ in range(n):
        try:
            yield EvaluationRequest.model_validate_json(json.dumps(kind(rng)))
        except ValidationError:
            continue


def readable(request: EvaluationRequest) -> bool:
    """Whether its grant is one. Rego looks at the parts that it needs; for Cedar all of it is read before."""
    try:
        return request.context.lease.grant is None or Grant.model_validate(request.context.lease.grant) is not None
    except ValidationError:
        return False


@pytest.mark.parametrize("kind", [type_preserving, wild])
def test_every_engine_decides_alike(server: OpaServer, kind: Callable[[random.Random], Any]) -> None:
    """Wasm and the OPA client give equal decisions; Cedar permits nothing that Rego denies, and nearly all it permits."""
    wasm, opa, cedar = WasmPDP(pool_size=1), OpaPDP(server.url, timeout=10), CedarPDP()
    proof = {"attested": ["write", "pay"]}
    strict = WasmPDP(data=proof, pool_size=1), CedarPDP(entities=[policy_data(proof)])
    asked = list(requests(kind, REQUESTS))
    permitted = both = alike = proven = 0
    blank = {"decision_id": "", "pdp_decision_id": "", "policy_revision": ""}
    for first in range(0, len(asked), 8):
        batch = asked[first : first + 8]
        ours, theirs, rust = (Evaluator(p, deadline=20).evaluate([r.to_json() for r in batch]) for p in (wasm, opa, cedar))
        assert [replace(d, **blank) for d in ours] == [replace(d, **blank) for d in theirs]
        ours, rust = [*ours], [*rust]
        for pdp, given in zip(strict, (ours, rust), strict=True):
            given += Evaluator(pdp, deadline=20).evaluate([r.to_json() for r in batch])
        for request, rego, other in zip([*batch, *batch], ours, rust, strict=True):
            assert rego.permit or not other.permit, request
            # A question where Rego denies would let a human lift what nobody may.
            assert other.outcome != "approval_required" or rego.outcome in ("approval_required", "permit"), request
            matching = rego.permit and readable(request)
            permitted += matching
            both += matching and other.permit
            alike += (rego.outcome, rego.reasons) == (other.outcome, other.reasons)
            proven |= (other.reasons == ("not_attested",)) and rego.reasons == other.reasons
    for pdp in (wasm, opa, strict[0]):
        pdp.close()
    assert proven
    print(f"{kind.__name__}: {len(asked)} requests, Rego permits {permitted}, Cedar {both} of them; {alike} alike to the code")
    assert permitted > len(asked) / 50 and both >= 0.9 * permitted
    assert len(asked) > REQUESTS / 50


def test_the_check_finds_a_difference(tmp_path: Path) -> None:
    """`--check` fails where the Rego and the Wasm are not of one build."""
    shutil.copytree(POLICIES, tmp_path / "langchain_runtime_authz" / "policies")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    rego = tmp_path / "langchain_runtime_authz" / "policies" / "rego" / "runtime_authz.rego"
    rego.write_text(rego.read_text().replace('== "anonymous"', '== "nobody"').replace('!= "anonymous"', '!= "nobody"'))
    command = [str(tmp_path / ".ci" / "build-policy"), "--check"]
    environment = {**os.environ, "OPA": opa_binary()}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "run .ci/build-policy" in run.stderr
