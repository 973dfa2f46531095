"""The shipped policy as users get it, and a `WasmPDP` that refuses what it can not run."""

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.facts.history import TIMES
from langchain_runtime_authz.pdp.base import Evaluator, PolicyFailed
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from tests.ids import shown

POLICIES = resources.files("langchain_runtime_authz") / "policies"
SHIPPED = (POLICIES / "policy.wasm").read_bytes()
DATA = json.loads((POLICIES / "data.json").read_bytes())[DATA_ROOT]

EFFECT = "resource.properties.effect"
SINK = "resource.properties.sink"
CALL_SINK = "context.call.sink"
GRANT = "context.lease.grant"


@pytest.fixture(scope="module")
def pdp() -> Iterator[WasmPDP]:
    """The shipped policy with the shipped data."""
    shipped = WasmPDP()
    yield shipped
    shipped.close()


def ask(pdp: WasmPDP, overrides: Mapping[str, object] | None = None) -> Decision:
    (decision,) = Evaluator(pdp).evaluate([example_request(overrides).to_json()])
    assert decision.failure is None
    return decision


def steered(data: Mapping[str, object], overrides: Mapping[str, object] | None = None) -> Decision:
    """The same, by the shipped policy with data of the test's own."""
    pdp = WasmPDP(data=data, pool_size=1)
    try:
        return ask(pdp, overrides)
    finally:
        pdp.close()


def test_the_example_is_permitted(pdp: WasmPDP) -> None:
    """The answer is literally a permit, and carries the PDP's revision."""
    request = example_request()
    assert pdp.document(request.to_json()) == {
        "decision": True, "context": {"reasons": [], "obligations": [], "ttl": None, "policy": {"revision": pdp.revision}},
    }


def test_a_rate_is_an_obligation(pdp: WasmPDP) -> None:
    """A permitted payment obliges the PEP to count."""
    approval = {"source": "application", "approver": "bob", "authenticated": True, "args_digest": "sha256:" + "5e" * 32}
    (obligation,) = ask(pdp, {EFFECT: "pay", "context.approval": approval}).obligations
    assert asdict(obligation) == {
        "id": "rate:pay", "type": "rate_limit", "properties": {"counter": "effect:pay", "window": 60, "max": 5},
    }


def test_text_of_the_request_is_never_echoed(pdp: WasmPDP) -> None:
    nasty = 'x" \\ \u2028 %v'
    request = example_request({"resource.id": nasty, "resource.properties.effect": nasty, GRANT: None})
    assert nasty not in str(pdp.document(request.to_json()))


@pytest.mark.parametrize("body", [b"", b"{", b"\x00", b"null", b"[]", b'"input"', b"\xff", b"[" * 50])
def test_garbage_denies(pdp: WasmPDP, body: bytes) -> None:
    """Bytes that are no request, or no JSON, get the same one answer: no."""
    answer = pdp.document(body)
    assert isinstance(answer, dict) and answer["decision"] is False
    assert answer["context"]["reasons"]


def test_too_deep_an_input_stops_that_evaluation_only(pdp: WasmPDP) -> None:
    """A trap of the engine is an exception, hence a deny, and the next request is answered."""
    with pytest.raises(PolicyFailed):
        pdp.document(b"[" * 100_000)
    assert ask(pdp).permit


def test_data_steers_the_policy() -> None:
    """Each given member takes the shipped one's place."""
    assert steered({"effects": {"write": "ask"}}).outcome == "approval_required"
    assert steered({"effects": {"read": "deny"}}).permit
    assert steered({"effects": {"write": None}}).reasons == (Code.EFFECT,)
    assert steered({"effects": {"write": {"covered": None}}}).reasons == (Code.EFFECT,)
    assert steered({"data_flow": {"confidential": {"internal": "deny"}}}).reasons == (Code.DATA_FLOW,)
    entering = {"action.name": "node/enter", "resource.type": "node"}
    assert [steered({"ttl": {"node/enter": n}}, entering).ttl for n in (0, 30)] == [0, 30]
    (obligation,) = steered({"redact": {"book_invoice": ["iban"]}}).obligations
    assert (obligation.type, obligation.properties) == ("redact", {"fields": ["iban"]})
    (obligation,) = steered({"rates": {"write": {"window": 1, "max": 2}}}).obligations
    assert obligation.properties == {"counter": "effect:write", "window": 1, "max": 2}
    (obligation,) = steered({"budget": {"tools": {"book_invoice": {"max": 2}}}}).obligations
    assert (obligation.type, obligation.properties) == ("budget", {"counter": "tool:book_invoice", "max": 2})
    (obligation,) = steered({"notify": {"effects": {"write": {"permit": "desk", "deny": "x"}}}}).obligations
    assert (obligation.type, obligation.properties) == ("notify", {"channel": "desk"})
    assert steered({"anomaly": {"max_denials": 0}}).outcome == "halt"


def test_data_may_be_an_edited_copy() -> None:
    """A copy of the whole data.json."""
    edited = WasmPDP(data={DATA_ROOT: {**DATA, "effects": {**DATA["effects"], "write": "deny"}, "revision": "a lie"}}, pool_size=1)
    decision = ask(edited)
    assert (decision.reasons, decision.policy_revision) == ((Code.EFFECT,), edited.revision)
    edited.close()


def test_the_revision_follows_the_data(pdp: WasmPDP) -> None:
    """Equal policy and data have an equal fingerprint, others another."""
    same, other = WasmPDP(data={"rates": {}}, pool_size=1), WasmPDP(data={"rates": {"pay": None}}, pool_size=1)
    assert pdp.revision == same.revision != other.revision
    assert pdp.revision.startswith("sha256:") and len(pdp.revision) == len("sha256:") + 16
    same.close()
    other.close()


def test_later_changes_of_the_mapping_do_nothing() -> None:
    """The data is copied at construction."""
    data: dict[str, dict[str, object]] = {"effects": {"write": "deny"}}
    pdp = WasmPDP(data=data, pool_size=2)
    data["effects"]["write"] = "permit"
    assert [ask(pdp).outcome for _ in range(4)] == ["deny"] * 4
    pdp.close()


def opa_module(
    *,
    entrypoints: str = '{"a/b": 0, "c/d": 1}',
    builtins: str = "{}",
    result: str = '[{"result": {"decision": true}}]',
    loop: bool = False,
) -> bytes:
    """The smallest module with OPA's ABI: it answers `result`, or, to a real request, never."""
    texts = [text.encode() + b"\0" for text in (entrypoints, builtins, result)]
    at = [8, 8 + len(texts[0]), 8 + len(texts[0]) + len(texts[1])]
    escaped = "".join(f"\\{byte:02x}" for byte in b"".join(texts))
    spin = "(if (i32.gt_u (local.get 4) (i32.const 2)) (then (loop (br 0))))" if loop else ""
    return bytes(
        wasmtime.wat2wasm(f"""(module
          (import "env" "memory" (memory 2))
          (global (export "opa_wasm_abi_version") i32 (i32.const 1))
          (global (export "opa_wasm_abi_minor_version") i32 (i32.const 3))
          (global $heap (mut i32) (i32.const 4096))
          (data (i32.const 8) "{escaped}")
          (func (export "opa_malloc") (param i32) (result i32) (i32.const 8192))
          (func (export "opa_free") (param i32))
          (func (export "opa_json_parse") (param i32 i32) (result i32) (local.get 0))
          (func (export "opa_json_dump") (param i32) (result i32) (local.get 0))
          (func (export "opa_heap_ptr_get") (result i32) (global.get $heap))
          (func (export "opa_heap_ptr_set") (param i32) (global.set $heap (local.get 0)))
          (func (export "entrypoints") (result i32) (i32.const {at[0]}))
          (func (export "builtins") (result i32) (i32.const {at[1]}))
          (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32)
            {spin} (i32.const {at[2]})))"""),
    )


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    """Bytes, a path and its text are the same policy; the decision names its revision."""
    file = tmp_path / "own.wasm"
    file.write_bytes(opa_module())
    for source in (file, str(file), file.read_bytes()):
        pdp = WasmPDP(wasm=source, entrypoint="a/b", data={"any": {"key": 1}})
        decision = ask(pdp)
        assert (decision.permit, decision.policy_revision) == (True, pdp.revision)
        pdp.close()


@pytest.mark.parametrize(("result", "code"), [
    ('[{"result": true}]', Code.PDP_MALFORMED), ('[{"result": {}}]', Code.PDP_MALFORMED), ('[{"result": null}]', Code.PDP_MALFORMED),
    ("[]", Code.PDP_UNDEFINED),
])
def test_an_answer_that_is_no_decision_denies(result: str, code: Code) -> None:
    """A bare boolean and an empty answer deny. An undefined rule is not an error at load: it may be defined for other requests."""
    pdp = WasmPDP(wasm=opa_module(result=result), entrypoint="a/b", pool_size=1)
    (decision,) = Evaluator(pdp).evaluate([example_request().to_json()])
    assert (decision.reason, decision.failure) == (code, "pdp")
    pdp.close()


WRONG: list[tuple[object, str]] = [
    ({"efects": {}}, "`efects` (did you mean `effects`?); it has: anomaly, anonymous, "),
    ({"whatever": {}}, "`whatever`; it has: "), ({"rates": {"pay": {"max": float("nan")}}}, "no exact JSON form"),
    ({"rates": float("inf")}, "no exact JSON form"), ({"rates": {"pay": {"window": 2**53, "max": 1}}}, "`rates.pay.window`"),
    ({"budget": {"effects": {"pay": {"max": 2**53}}}}, "`budget.effects.pay.max`"),
    ({"anomaly": {"max_per_minute": TIMES + 1}}, f"`max_per_minute` must be at most {TIMES}"),
    ({"rates": {1, 2}}, "no exact JSON form"), ([], "must be an object, not list"),
    ({DATA_ROOT: []}, "must be an object, not list"), ("data.json", "must be an object, not str"),
]
NO_POLICY: list[tuple[str | bytes, str, str]] = [
    ("absent.wasm", "a/b", "`absent.wasm` cannot be read"),
    (b"", "a/b", "not a policy compiled by"),
    (b"package x", "a/b", "not a policy compiled by"),
    (bytes(wasmtime.wat2wasm("(module)")), "a/b", "not a policy compiled by"),
    (opa_module(), "x/y", "no entrypoint `x/y`; it has: a/b, c/d"),
    (SHIPPED, "a/b", "it has: runtime_authz/batch, runtime_authz/decision"),
    (opa_module(builtins='{"sprintf": 0, "http.send": 1}'), "a/b", "calls http.send, sprintf"),
    (opa_module(result="tru"), "a/b", "cannot be evaluated"),
    (opa_module(result="{}"), "a/b", "cannot be evaluated"),
]


@pytest.mark.parametrize(("arguments", "says"), [
    *(({"data": data}, says) for data, says in WRONG),
    *(({"wasm": wasm, "entrypoint": rule}, says) for wasm, rule, says in NO_POLICY),
], ids=shown)  # fmt: skip
def test_what_can_not_be_used_is_refused(arguments: dict[str, Any], says: str) -> None:
    """Data, a file, a format, a rule and host functions are told apart."""
    with pytest.raises(ConfigError) as caught:
        WasmPDP(**arguments)
    assert caught.value.code == Code.POLICY_INVALID and says in str(caught.value)


def test_a_refused_policy_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for arguments in (
        {"wasm": opa_module()}, {"data": {"x": 1}}, {"wasm": opa_module(builtins='{"sprintf": 0}')},
    ):
        with pytest.raises(ConfigError):
            WasmPDP(**arguments)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("arguments", [{"pool_size": 0}, {"timeout": 0}, {"timeout": float("nan")}])
def test_wrong_limits_are_refused(arguments: dict[str, float]) -> None:
    """There is no evaluation without a deadline."""
    with pytest.raises(ConfigError):
        WasmPDP(**arguments)  # type: ignore[arg-type]


def test_a_runaway_policy_is_stopped() -> None:
    """An evaluation that does not end is interrupted, denies, and the next one has an engine."""
    pdp = WasmPDP(wasm=opa_module(loop=True), entrypoint="a/b", pool_size=1, timeout=0.2)
    for _ in range(2):
        (decision,) = Evaluator(pdp).evaluate([example_request().to_json()])
        assert (decision.reason, decision.failure) == (Code.PDP_TIMEOUT, "pdp")
    assert pdp.document(b"{}") == {"decision": True}
    pdp.close()


def test_after_close_everything_denies() -> None:
    """A closed PDP denies; closing twice is no error."""
    pdp = WasmPDP(pool_size=1)
    pdp.close()
    pdp.close()
    (decision,) = Evaluator(pdp).evaluate([example_request().to_json()])
    assert (decision.reason, decision.failure) == (Code.PDP_ERROR, "pdp")


def test_a_policy_is_compiled_once_per_process() -> None:
    """By its content, whoever asks first and at the same time; the data is each one's own."""
    with ThreadPoolExecutor(4) as threads:
        made = [*threads.map(lambda _: WasmPDP(), range(4)), WasmPDP(wasm=SHIPPED, data={DATA_ROOT: {}})]
    assert len({id(pdp.program.module) for pdp in made}) == 1
    assert len({pdp.revision for pdp in made}) == 2
    for pdp in made:
        pdp.close()
