"""`AuthzenPDP` against a conforming server over our engines, with AuthZEN's published vectors."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import ActionName, Decision
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.pdp_suite import PDPContract
from tests.integration_tests.authzen_certification import (
    DATA,
    ROWS,
    SCHEMAS,
    TODO_POLICY,
    USERS,
    fixture,
    merged,
    passes,
    play,
)
from tests.integration_tests.authzen_server import AuthzenServer
from tests.integration_tests.fault_server import FaultServer
from tests.integration_tests.services import Authority, OpaServer, free_port

REQUEST = example_request()
DENIED = example_request({"context.lease.exp": 1})
# Of three resources: only such are sent as one batch.
THREE = [example_request({"resource.id": "read_file", "context.lease.exp": 1}), REQUEST, example_request({"resource.id": "send_mail"})]


@pytest.fixture(scope="module")
def wasm() -> Iterator[WasmPDP]:
    engine = WasmPDP()
    yield engine
    engine.close()


@pytest.fixture
def server(wasm: WasmPDP) -> Iterator[AuthzenServer]:
    """A conforming PDP over the shipped policy."""
    with AuthzenServer(lambda request: wasm.document(json.dumps(request).encode())) as running:  # type: ignore[return-value,arg-type]
        yield running


def decisions(pdp: AuthzenPDP, requests=(REQUEST,)) -> list[Decision]:
    evaluator = Evaluator(pdp, deadline=10)
    given = evaluator.evaluate([r.to_json() for r in requests])
    other = asyncio.run(evaluator.aevaluate([r.to_json() for r in requests]))
    blank = {"decision_id": "", "pdp_decision_id": ""}
    assert [replace(d, **blank) for d in given] == [replace(d, **blank) for d in other]
    return given


class TestAuthzenContract(PDPContract):
    """A conforming server over the default engine keeps the contract of every PDP."""

    @pytest.fixture(autouse=True)
    def _servers(self) -> Iterator[None]:
        engines = {True: WasmPDP(), False: WasmPDP(data={"effects": {"write": "deny"}})}
        answer = {p: lambda r, e=e: e.document(json.dumps(r).encode()) for p, e in engines.items()}
        with AuthzenServer(answer[True]) as permitting, AuthzenServer(answer[False]) as denying:  # type: ignore[arg-type]
            self._url = {True: permitting.url, False: denying.url}
            yield
        for engine in engines.values():
            engine.close()

    def make_pdp(self, permit: bool) -> PDP:
        """The shipped policy behind AuthZEN."""
        return AuthzenPDP(self._url[permit], timeout=5)


@pytest.fixture(scope="module")
def todo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthzenServer]:
    """The interop scenario's PDP: its policy in a real OPA, behind AuthZEN."""
    folder = tmp_path_factory.mktemp("todo")
    (folder / "todo.rego").write_text(TODO_POLICY)
    (folder / "data.json").write_text(json.dumps({"users": USERS}))
    with OpaServer(folder / "todo.rego", folder / "data.json") as opa:
        engine = OpaPDP(opa.url, path="todo/decision", timeout=5)

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            decision = engine.evaluate(json.dumps(request).encode())
            assert isinstance(decision, Decision)
            return {"decision": decision.permit}

        with AuthzenServer(answer) as running:
            yield running
        engine.close()


def test_the_published_vectors(todo: AuthzenServer) -> None:
    """Forty single requests and three batches are decided as published."""
    with closing(AuthzenPDP(todo.url, timeout=5)) as pdp:
        for row in DATA["todo"]["evaluation"]:
            decision = pdp.evaluate(json.dumps(row["request"]).encode())
            assert isinstance(decision, Decision)
            assert decision.permit is row["expected"], row
        for row in DATA["todo"]["evaluations"]:
            expected = [e["decision"] for e in row["expected"]]
            bodies = [json.dumps(merged(item, row["request"])).encode() for item in row["request"]["evaluations"]]
            assert [d.permit for d in pdp.evaluate_batch(bodies)] == expected  # type: ignore[attr-defined]
            path, _, sent = todo.asked[-1]
            assert (path, len(sent["evaluations"])) == ("/access/v1/evaluations", 2)


def test_the_rows_of_the_certification_scenario() -> None:
    """The client asks what a PDP must accept, and asking again changes nothing. A refused question is a deny."""
    with AuthzenServer(fixture) as server, closing(AuthzenPDP.discover(server.url, timeout=5)) as pdp:
        for row in ROWS:
            server.asked.clear()
            assert passes(row, play(pdp, row)), row
            assert passes(row, play(pdp, row)), row
            sent = [item for _, _, asked in server.asked for item in asked.get("evaluations", [asked])]
            fits = row["expected"] != 400 and not row["id"].startswith("3.4.1")
            assert all(SCHEMAS["request"].is_valid(item) for item in sent) is fits, row


@pytest.mark.parametrize("action", get_args(ActionName))
def test_our_requests_and_answers_fit_the_published_schemas(wasm: WasmPDP, action: str) -> None:
    """Every request of ours is an AuthZEN request, and every answer of the shipped policy an AuthZEN answer."""
    for changes in ({}, {"context.lease.exp": 1}):
        body = example_request({"action.name": action, **changes}).to_json()
        SCHEMAS["request"].validate(json.loads(body))
        SCHEMAS["response"].validate(wasm.document(body))


def test_the_calls_of_a_message_are_one_request(server: AuthzenServer) -> None:
    """Answers in order, one exchange, all executed."""
    pdp = AuthzenPDP(server.url, timeout=5)
    given = decisions(pdp, THREE)
    assert [d.permit for d in given] == [False, True, False]
    assert [d.reason for d in (given[0], given[2])] == [Code.LEASE_INVALID, Code.GRANT_TOOL]
    assert [path for path, _, _ in server.asked] == ["/access/v1/evaluations"] * 2
    assert server.asked[0][2]["options"] == {"evaluations_semantic": "execute_all"}
    pdp.close()


def test_two_calls_of_one_resource_are_not_one_request(server: AuthzenServer) -> None:
    """A PDP that answers both as the first one (Cerbos 0.55 does) permits no call that it never looked at."""
    pdp = AuthzenPDP(server.url, timeout=5)
    assert [d.permit for d in decisions(pdp, [REQUEST, DENIED, REQUEST])] == [True, False, True]
    assert {path for path, _, _ in server.asked} == {"/access/v1/evaluation"}
    pdp.close()


def test_one_malformed_answer_denies_its_own_request() -> None:
    """The others keep theirs."""
    answers = iter([{"decision": True}, {"decision": "true"}, {"decision": True, "context": 1}, {"decision": True}] * 2)
    with AuthzenServer(lambda _: next(answers)) as server:
        pdp = AuthzenPDP(server.url, timeout=5)
        given = decisions(pdp, [*THREE, example_request({"resource.id": "list_files"})])
        assert [d.reason or d.outcome for d in given] == ["permit", Code.PDP_MALFORMED, Code.PDP_MALFORMED, "permit"]
        pdp.close()


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_another_number_of_answers_denies_all(count: int) -> None:
    """Which answer belongs to which request can not be guessed."""
    body = json.dumps({"evaluations": [{"decision": True}] * count}).encode()
    with FaultServer() as faulty:
        faulty.answer = lambda conn, path, _: conn.sendall(  # type: ignore[method-assign]
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        )
        pdp = AuthzenPDP(faulty.url, timeout=5)
        with pytest.raises(Exception, match="pdp_malformed"):
            pdp.evaluate_batch([r.to_json() for r in THREE[:2]])
        assert {d.reason for d in Evaluator(pdp).evaluate([r.to_json() for r in THREE[:2]])} == {Code.PDP_MALFORMED}
        pdp.close()


def test_every_request_has_an_id_of_its_own(server: AuthzenServer) -> None:
    """`X-Request-ID` is sent, fresh each time, and kept with the decision."""
    pdp = AuthzenPDP(server.url, timeout=5)
    given = [d for _ in range(3) for d in Evaluator(pdp).evaluate([REQUEST.to_json()])]
    sent = [ident for _, ident, _ in server.asked]
    assert [d.pdp_decision_id for d in given] == sent
    assert len(set(sent)) == 3
    pdp.close()


def test_an_answer_to_another_request_denies() -> None:
    """An echoed id that is not ours is not believed."""
    head = b"HTTP/1.1 200 OK\r\nX-Request-ID: other\r\nContent-Length: 18\r\n\r\n"
    with FaultServer() as faulty:
        faulty.answer = lambda conn, path, _: conn.sendall(head + b'{"decision": true}')  # type: ignore[method-assign]
        pdp = AuthzenPDP(faulty.url, timeout=5)
        assert decisions(pdp)[0].reason == Code.PDP_MALFORMED
        pdp.close()


def obliged(decision: bool, **obligation: Any) -> dict[str, Any]:
    return {"decision": decision, "context": {"obligations": [obligation]}}


OURS = {"type": "custom", "id": "4", "vendor": "langchain-runtime-authz"}
REDACT = {"action": "redact", "fields": ["x"]}
DENIED_AS = {
    "no_permit": [{"reason": "no words here"}, {"reasons": "text"}, {"error": {"status": 404}}], "policy_denied": [{"reason": "policy_denied"}],
}
MALFORMED: list[Any] = [
    {"decision": "true"}, {"allow": True}, {"decision": True, "context": []}, {"decision": True, "context": None},
    {"decision": True, "obligations": []}, {"decision": True, "context": {"obligation": {}}},
    {"decision": True, "context": {"obligations": {}}}, {"decision": True, "context": {"obligations": ["watermark"]}},
    obliged(True, type="custom"),
]


@pytest.mark.parametrize(("answer", "expected"), [
    ({"decision": True}, ("permit", (), [])), ({"decision": True, "evaluation_id": "7"}, ("permit", (), [])),
    ({"decision": True, "context": {"id": "0", "reason_admin": {"en": "x"}}}, ("permit", (), [])),
    ({"decision": False}, ("deny", ("no_permit",), [])),
    *(({"decision": False, "context": each}, ("deny", (code,), [])) for code, several in DENIED_AS.items() for each in several),
    *((each, ("deny", ("pdp_malformed",), [])) for each in MALFORMED),
    (obliged(True, type="step-up", id="1", acr_value="loa:3"), ("permit", (), [("1", "step-up", {"acr_value": "loa:3"})])),
    (obliged(False, type="notification", id="2", to="a", body="b"), ("deny", ("no_permit",), [("2", "notify", {"channel": "a", "body": "b"})])),
    # `body` is required: what is not a notification is not understood later
    (obliged(True, type="notification", id="2", to="a"), ("permit", (), [("2", "notification", {"to": "a"})])),
    (obliged(True, **OURS, **REDACT), ("permit", (), [("4", "redact", {"fields": ["x"]})])),
    (obliged(False, **OURS, action="require_approval"), ("approval_required", ("no_permit",), [("4", "require_approval", {})])),
    (obliged(True, **{**OURS, "vendor": "other"}, **REDACT), ("permit", (), [("4", "custom", {"vendor": "other", **REDACT})])),
    (obliged(True, type="redact", id="3", properties={"fields": ["x"]}), ("permit", (), [("3", "redact", {"fields": ["x"]})])),
], ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "")
def test_answers_of_other_pdps(answer: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """What is not known is left out, an obligation never; only the literal `true` permits."""
    with AuthzenServer(lambda _: answer) as other:
        pdp = AuthzenPDP(other.url, timeout=5)
        (decision,) = decisions(pdp)
        obliged = [(o.id, o.type, o.properties) for o in decision.obligations]
        assert (decision.outcome, decision.reasons, obliged) == expected
        pdp.close()


@pytest.mark.parametrize(("obligation", "outcome", "heard"), [
    ({"type": "notification", "to": "desk", "topic": "t", "body": "b"}, "permit", [("t", "b")]),
    ({"type": "notification", "to": "desk", "body": "b"}, "permit", [(None, "b")]),
    ({"type": "notification", "to": "desk"}, "deny", []),
    ({"type": "notification", "to": "desk", "body": 1}, "deny", []),
    ({"type": "notification", "to": "elsewhere", "body": "b"}, "deny", []),
    ({"type": "step-up", "acr_value": "loa:3"}, "deny", []),
    ({"type": "session_termination", "subject": "alice"}, "deny", []),
    ({"type": "custom", "vendor": "other", "action": "redact", "fields": ["x"]}, "deny", []),
], ids=lambda v: json.dumps(v)[:70] if isinstance(v, dict) else "")
def test_an_obligation_of_the_profile_is_carried_out_or_denies(
    obligation: dict[str, Any], outcome: str, heard: list[tuple[str | None, str]],
) -> None:
    """The profile's names reach the step: who is to be told hears it, and what is not understood stops the call."""
    told: list[dict[str, Any]] = []

    class Desk:
        def send(self, notification: Mapping[str, Any]) -> None:
            told.append(dict(notification))

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        call = request["action"]["name"] == "tools/call"
        return {"decision": True, "context": {"obligations": [{"id": "1", **obligation}]} if call else {}}

    with AuthzenServer(answer) as other, closing(AuthzenPDP(other.url, timeout=5)) as pdp:
        authz = RuntimeAuthz(pdp=pdp, profiles={"look": ToolProfile(effect="read", sink="none")}, notify={"desk": Desk()})
        with authz.session(subject="alice", task="Look") as session:
            assert session.decide("look", {}).outcome == outcome
    assert [(n.get("topic"), n["body"]) for n in told] == heard


def test_discovery_over_tls(wasm: WasmPDP, tmp_path: Path) -> None:
    """The endpoints are the metadata's."""
    authority = Authority(tmp_path)
    with AuthzenServer(
        lambda request: wasm.document(json.dumps(request).encode()),  # type: ignore[return-value,arg-type]
        certificate=authority.issue("127.0.0.1"),
    ) as server:
        pdp = AuthzenPDP.discover(server.url, ca_file=authority.file, timeout=5)
        assert decisions(pdp)[0].permit
        assert [d.permit for d in decisions(pdp, [REQUEST, DENIED])] == [True, False]
        pdp.close()
        del server.metadata["access_evaluations_endpoint"]
        pdp = AuthzenPDP.discover(server.url, ca_file=authority.file, timeout=5)
        server.asked.clear()
        assert [d.permit for d in decisions(pdp, [REQUEST, DENIED])] == [True, False]
        assert {path for path, _, _ in server.asked} == {"/access/v1/evaluation"}
        pdp.close()


@pytest.mark.parametrize("metadata", [
    {"policy_decision_point": "https://other.example"}, {"policy_decision_point": None},
    {"access_evaluation_endpoint": "https://other.example/access/v1/evaluation"}, {"access_evaluation_endpoint": None},
    {"access_evaluations_endpoint": "http://127.0.0.1.evil.example/x"},
], ids=str)
def test_metadata_of_another_pdp_is_refused(metadata: dict[str, Any]) -> None:
    """The identifier must be the one that was asked, and no endpoint may lie elsewhere."""
    with AuthzenServer(lambda _: {"decision": True}, **metadata) as server, pytest.raises(ConfigError):
        AuthzenPDP.discover(server.url)


def test_no_metadata_is_a_configuration_error() -> None:
    """A PDP that is down, or has none, is told at once."""
    with pytest.raises(ConfigError, match="pdp_unreachable"):
        AuthzenPDP.discover(f"http://127.0.0.1:{free_port()}")
    with FaultServer() as faulty, pytest.raises(ConfigError):
        AuthzenPDP.discover(faulty.url + "/html")
