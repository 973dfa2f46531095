"""The compiled policy answers what a real OPA answers on its source."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.requests import NOW, example_request

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "langchain_runtime_authz" / "policies"
DIGEST = "sha256:" + "5e" * 32
BASE = json.loads(example_request().to_json())


@pytest.fixture(scope="module")
def opa() -> str:
    """The OPA binary; without one these tests fail."""
    binary = os.environ.get("LRA_OPA") or shutil.which("opa")
    assert binary, "no OPA: set LRA_OPA to the binary or put `opa` on the PATH"
    return binary


@pytest.fixture(scope="module")
def server(opa: str) -> Iterator[http.client.HTTPConnection]:
    """A real OPA server on loopback with the shipped Rego and data."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [str(POLICIES / "rego" / "runtime_authz.rego"), str(POLICIES / "data.json")]
    command = [opa, "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level", "error", *files]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        for _ in range(100):
            assert process.poll() is None, "OPA ended at once"
            try:
                connection.request("GET", "/health")
                if connection.getresponse().read() is not None:
                    break
            except OSError:
                connection.close()
                time.sleep(0.1)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(10)


def by_server(connection: http.client.HTTPConnection, document: object) -> Any:
    """OPA's own answer."""
    connection.request("POST", "/v1/data/runtime_authz/decision", json.dumps({"input": document}))
    response = connection.getresponse()
    body = json.loads(response.read())
    assert response.status == 200, body
    return body["result"]


def comparable(answer: Any) -> tuple[bool, list[object], list[object]]:
    """Everything but the revision, which is the server's own."""
    assert answer.keys() == {"decision", "context"}
    assert answer["context"].keys() == {"reasons", "obligations", "ttl", "policy"}
    return answer["decision"], answer["context"]["reasons"], answer["context"]["obligations"]


APPROVAL = {"source": "interrupt", "approver": "bob", "authenticated": True, "args_digest": DIGEST}
# Values that are plausible where they are put, so that every rule has its say.
PLAUSIBLE: dict[str, list[object]] = {
    "subject.type": ["anonymous", "service", ""],
    "action.name": ["run/start", "agent/invoke", "model/call", "tools/list"],
    "resource.type": ["run", "agent", "model"],
    "resource.id": ["read_file", "delete_all"],
    "resource.properties.effect": ["read", "fetch", "send", "pay", "delete", "admin", "smite"],
    "resource.properties.sink": ["none", "external", "elsewhere"],
    "resource.properties.data_class": ["public", "internal", "secret"],
    "resource.properties.profiled": [False, None],
    "context.schema_version": [2, 1.0, "1"],
    "context.now": [NOW + 59.5, NOW + 60, str(NOW), 0],
    "context.task.epoch": [1, 2.0, "2"],
    "context.delegation.depth": [0, 2, 3, "1"],
    "context.plan": [None],
    "context.plan.planned": [False, "true"],
    "context.plan.stale": [True, None],
    "context.call.args.amount": [100, 100.0, 1e2, 100.1, -1, 2**60, 1e300, "1", True, None, [1]],
    "context.call.args.account": ["UK13", "", 1, None],
    "context.call.args_digest": ["", "sha256:other"],
    "context.history.denials": [24, 25, 1e9, "25"],
    "context.history.classes_read": [
        [],
        ["secret"],
        ["public"],
        ["internal", "x"],
        [["public"]],
        [1],
        "secret",
    ],
    "context.lease.exp": [NOW, 2**60, "zz"],
    "context.lease.epoch": [1, 2.0, None],
    "context.lease.grant": [None, {}, {"tools": None}, {"tool": []}, []],
    "context.lease.grant.tools": [[], ["delete_all"], {"x": "book_invoice"}, "book_invoice"],
    "context.lease.grant.args": [
        {"book_invoice": {"amount": {"ge": 0, "le": "x"}}},
        {"book_invoice": {"amount": {"one_of": [100.0, 98.7, "1", True]}}},
        {"book_invoice": []},
        {"book_invoice": {"absent": {}}},
        None,
    ],
    "context.lease.grant.sinks": [["external"], None],
    "context.lease.grant.max_depth": [0, 1, "1"],
    "context.lease.grant.expires_at": [NOW, None, "zz"],
    "context.approval": [
        APPROVAL,
        APPROVAL | {"authenticated": False},
        APPROVAL | {"source": "hitl"},
        APPROVAL | {"args_digest": "sha256:other"},
        "yes",
    ],
}
ANYTHING: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**60,
    "",
    "zz",
    "permit",
    "*",
    [],
    [[]],
    {},
    {"a": [None]},
]


def mutate(document: Any, rng: random.Random) -> None:
    """Replace, or now and then delete, one to four members."""
    for path in rng.sample(sorted(PLAUSIBLE), rng.randint(1, 4)):
        *parents, last = path.split(".")
        at = document
        for name in parents:
            at = at.get(name) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            continue
        choice = rng.random()
        if choice < 0.1:
            at.pop(last, None)
        else:
            at[last] = rng.choice(ANYTHING if choice < 0.25 else PLAUSIBLE[path])


def test_wasm_and_opa_agree(server: http.client.HTTPConnection) -> None:
    """On 600 mutated requests decision, reasons and obligations are the same, in the same order."""
    rng = random.Random(20251124)
    pdp = WasmPDP(pool_size=1)
    outcomes: Counter[bool] = Counter()
    codes: set[str] = set()
    try:
        for _ in range(600):
            document = json.loads(json.dumps(BASE))
            mutate(document, rng)
            expected = comparable(by_server(server, document))
            assert expected == comparable(pdp.document(json.dumps(document).encode())), document
            outcomes[expected[0]] += 1
            codes.update(reason["code"] for reason in expected[1])  # type: ignore[index]
    finally:
        pdp.close()
    assert min(outcomes[True], outcomes[False]) > 50  # else the comparison would say little
    assert len(codes) == 16  # every code of the policy was among the answers


def test_wasm_and_opa_agree_on_garbage(server: http.client.HTTPConnection) -> None:
    """What is no request gets the same answer too."""
    pdp = WasmPDP(pool_size=1)
    for document in ANYTHING:
        answer = comparable(pdp.document(json.dumps(document).encode()))
        assert answer == comparable(by_server(server, document))
        assert answer[0] is False
    pdp.close()


def test_the_rego_tests_pass(opa: str) -> None:
    """`opa test` on the shipped folder."""
    run = subprocess.run([opa, "test", str(POLICIES)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PASS: " in run.stdout


def test_the_committed_wasm_is_what_the_rego_gives(opa: str) -> None:
    """Rebuilding gives the same bytes."""
    command = [str(ROOT / ".ci" / "build-policy"), "--check"]
    run = subprocess.run(command, env={**os.environ, "OPA": opa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_check_finds_a_difference(opa: str, tmp_path: Path) -> None:
    """`--check` fails where the Rego and the Wasm are not of one build."""
    shutil.copytree(POLICIES, tmp_path / "langchain_runtime_authz" / "policies")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    rego = tmp_path / "langchain_runtime_authz" / "policies" / "rego" / "runtime_authz.rego"
    rego.write_text(
        rego.read_text().replace('== "anonymous"', '== "nobody"').replace('!= "anonymous"', '!= "nobody"'),
    )
    command = [str(tmp_path / ".ci" / "build-policy"), "--check"]
    run = subprocess.run(command, env={**os.environ, "OPA": opa}, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "run .ci/build-policy" in run.stderr
