"""An issuer in another process: asked over its own road, verified, and never waited for by the event loop."""

import asyncio
import json
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_runtime_authz import RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.credential.issuer import LocalIssuer, mint
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.token import TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import AuthzDenied, CredentialError, LedgerError
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.mandate.mandate_file import load_mandate
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import call, hand_written, human, replying
from tests.unit_tests.credential.tokens import a_request

BANK = "https://bank.example"


class Remote:
    """Receives JSON, signs elsewhere, and notes on which road it was asked."""

    def __init__(self) -> None:
        self._there = LocalIssuer(KeyRing(), issuer="https://issuer.example")
        self.issuer = self._there.issuer
        self.roads: list[str] = []
        self.lie: dict[str, Any] = {}

    def issue(self, request: TokenRequest) -> str:
        self.roads.append(f"sync in {'main' if threading.current_thread() is threading.main_thread() else 'thread'}")
        return self._sign(request.to_json())

    async def aissue(self, request: TokenRequest) -> str:
        self.roads.append("async")
        await asyncio.sleep(0)
        return self._sign(request.to_json())

    def jwks(self) -> Mapping[str, Any]:
        return json.loads(json.dumps(self._there.jwks()))  # type: ignore[no-any-return]

    def _sign(self, body: bytes) -> str:
        return self._there.issue(TokenRequest.from_json(body).model_copy(update=self.lie))


def played(issuer: Remote, road: str, ledger: MemoryLedger | None = None, **options: Any) -> tuple[list[Any], RuntimeAuthz]:
    profiles = {"pay": ToolProfile(effect="pay", sink="external", audience=(BANK,))}
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles, issuer=issuer, ledger=ledger or MemoryLedger())
    got: list[Any] = []

    @tool
    def pay() -> str:
        """Pay."""
        try:
            got.append(current_call().credential(**options))
        except CredentialError as exc:
            got.append(exc)
        return "paid"

    @tool("pay")
    async def apay() -> str:
        """Pay."""
        try:
            got.append(await current_call().acredential(**options))
        except CredentialError as exc:
            got.append(exc)
        return "paid"

    graph = authz.protect(hand_written(replying([call("pay", {}, "c1")]), [pay if road == "sync" else apay]))

    async def play() -> None:
        async with authz.run(subject="alice", task="Pay"):
            await graph.ainvoke(human())

    if road == "sync":
        with authz.run(subject="alice", task="Pay"):
            graph.invoke(human())
    else:
        asyncio.run(play())
    return got, authz


@pytest.mark.parametrize("road", ["sync", "async"])
@pytest.mark.parametrize("dpop", [False, True])
def test_a_remote_issuer_signs_the_tokens_of_calls(road: str, dpop: bool) -> None:
    """On its own road, once; the mint is recorded with the key that signed and the key it is bound to."""
    issuer = Remote()
    (got,), authz = played(issuer, road, dpop=dpop)
    assert got.claims["iss"] == "https://issuer.example"
    assert issuer.roads == (["async"] if road == "async" else ["sync in thread"])
    (minted,) = [r for r in authz.audit.records if r["kind"] == "mint"]  # type: ignore[attr-defined]
    assert minted["jti"] == got.claims["jti"] and minted["audience"] == BANK
    assert minted["kid"] == issuer._there.ring.active.kid  # type: ignore[union-attr]
    assert minted["jkt"] == (got.claims["cnf"]["jkt"] if dpop else None)
    assert authz.ledger.status("default", minted["jti"]) == "ended" and got.token not in json.dumps(minted)


@pytest.mark.parametrize("road", ["sync", "async"])
@pytest.mark.parametrize("lie", [{"jti": "x"}, {"cnf_jkt": "theirs"}, {"agent": "other"}, {"tenant": "umbrella"}, {"details": ()}], ids=str)
def test_a_remote_issuer_that_answers_something_else_is_not_believed(road: str, lie: dict[str, Any]) -> None:
    """The tool gets no token, nothing is recorded as minted, and no traceback holds one."""
    issuer = Remote()
    issuer.lie = lie
    (got,), authz = played(issuer, road)
    assert isinstance(got, CredentialError)
    assert "mint" not in [r["kind"] for r in authz.audit.records]  # type: ignore[attr-defined]
    assert "eyJ" not in "".join(traceback.format_exception(got))


@pytest.mark.parametrize("road", ["sync", "async"])
@pytest.mark.parametrize(("answer", "code"), [
    ("ended", None),  # the lease of a slow tool
    ("stale", "credential_revoked"), (LedgerError("ledger_timeout"), "ledger_timeout"), (OSError("disk"), "ledger_unavailable"),
], ids=str)
def test_the_ledger_is_asked_before_a_mint(road: str, answer: Any, code: str | None) -> None:
    """A failed ledger refuses with its own code, which is recorded; an ended lease refuses nothing."""

    class Answering(MemoryLedger):
        def status(self, tenant: str, jti: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    (got,), authz = played(Remote(), road, Answering())
    assert getattr(got, "code", None) == code
    records = authz.audit.records  # type: ignore[attr-defined]
    assert [r["reason"] for r in records if r["kind"] == "mint_refused"] == ([code] if code else [])


@pytest.mark.parametrize(("stop", "code"), [("with a token", "killed"), ("at the mint", "killed"), ("without proof", "workload_unproven"), ("token without proof", "workload_unproven")])
def test_a_running_call_gets_no_token_after_a_stop(stop: str, code: str, tmp_path: Path) -> None:
    """The kill switch, and the end of the workload's proof, count for the calls that run."""
    got, kill = list[Any](), tmp_path / "kill"

    class Own:
        attested, expires_at = True, None

        def agent_id(self, path: tuple[str, ...]) -> str:
            return ["/".join(path), kill.touch() if got and stop == "at the mint" else None][0]  # type: ignore[return-value]

    @tool
    def pay() -> str:
        """Pay."""
        got.append(current_call().credential() if "token" in stop else stop)
        own.expires_at = [1.0 if "without proof" in stop else None, kill.touch() if stop == "with a token" else None][0]  # type: ignore[assignment]
        with pytest.raises(CredentialError) as refused:
            current_call().credential()
        got.append(refused.value.code)
        return "paid"

    profiles = {"pay": ToolProfile(effect="pay", audience=(BANK,))}
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles, identity=(own := Own()), kill_switch=kill)
    with authz.run(subject="alice", task="Pay"), suppress(AuthzHalt, AuthzDenied):
        authz.protect(hand_written(replying([call("pay", {}, "c1")]), [pay])).invoke(human())
    assert got[1:] == [code]


def test_a_long_call_gets_a_token_that_has_not_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's status covers it too, and each mint is recorded. Within the first token's life there is one."""
    passed = [0.0]
    clock = time.monotonic
    monkeypatch.setattr("time.monotonic", lambda: clock() + passed[0])
    ledger = MemoryLedger(clock=lambda: time.time() + passed[0])  # the lease would lapse, so a mint renews it
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"pay": ToolProfile(effect="pay", audience=(BANK,))}, ledger=ledger)
    got: list[Any] = []

    @tool
    def pay() -> str:
        """Pay."""
        for seconds in (0, 50, 20):
            passed[0] += seconds
            got.append(current_call().credential())
            assert authz.ledger.status("default", got[-1].claims["jti"]) == "live"
        return "paid"

    graph = authz.protect(hand_written(replying([call("pay", {}, "c1")]), [pay]))
    with authz.run(subject="alice", task="Pay"):
        graph.invoke(human())
    first, second, third = got
    assert first is second and third.claims["iat"] >= first.claims["iat"] + 70
    assert third.expires_at > first.expires_at
    records = [r for r in authz.audit.records if r["kind"] == "mint"]  # type: ignore[attr-defined]
    assert [r["expires_at"] for r in records] == [first.expires_at, third.expires_at]


def test_a_key_of_a_remote_issuer_is_withdrawn_in_the_ledger() -> None:
    """Its ring is its own affair; services that ask the ledger refuse what the key signed."""
    from langchain_runtime_authz.ledger.base import Query
    from langchain_runtime_authz.pep.mint_tokens import key_scopes

    issuer = Remote()
    _, authz = played(issuer, "sync")
    kid = issuer._there.ring.active.kid  # type: ignore[union-attr]
    scopes = key_scopes("default", issuer.issuer, kid)
    assert not any(authz.ledger.load(scope, Query()).revoked for scope in scopes)
    authz.compromise_key(kid)
    assert all(authz.ledger.load(scope, Query()).revoked for scope in scopes)
    revoked = [r for r in authz.audit.records if r["kind"] == "run" and r["event"] == "revoked"]  # type: ignore[attr-defined]
    assert revoked[-1]["scope"]["thread"] == kid


@pytest.mark.parametrize(("more", "believed"), [(0, True), (5, True), (6, False), (30, False)])
def test_a_remote_issuers_token_lives_no_longer_than_asked(more: int, believed: bool) -> None:
    """A token ends with the workload's proof, so its end is asked for. The issuer's clock may be five seconds ahead."""
    issuer, now = Remote(), int(time.time())
    asked = a_request(issued_at=now, expires_at=now + 30)
    issuer.lie = {"expires_at": now + 30 + more}
    with nullcontext() if believed else pytest.raises(CredentialError, match="another credential"):
        assert mint(issuer, asked, verifier=Verifier(issuer=issuer.issuer, jwks=issuer.jwks)).expires_at == now + 30 + more


BOB = {"steps": [{"id": "rent", "tool": "pay", "args": {"recipient": "bob", "amount": 45}}]}


def paid(amount: float, *, mandate: Any = None, ask: bool = False) -> list[Any]:
    """The claims of the tokens of a payment to bob for two audiences, permitted by policy or approved."""
    critical: Any = {"recipient": "principal", "amount": "amount"}
    profiles = {"pay": ToolProfile(effect="pay", critical=critical, audience=(BANK, "https://mail.example"))}
    authz = RuntimeAuthz(profiles=profiles, **({} if ask else {"pdp": StaticPDP(True)}))
    got: list[Any] = []

    @tool
    def pay(recipient: str, amount: float) -> str:
        """Pay."""
        got.extend(current_call().credential(audience).claims for audience in (BANK, "https://mail.example"))
        return "paid"

    turns = replying([call("pay", {"recipient": "bob", "amount": amount}, "c1")])
    graph = authz.protect(hand_written(turns, [pay], checkpointer=InMemorySaver()))
    config: Any = {"configurable": {"thread_id": "t"}}
    with authz.run(subject="alice", task="Pay the rent", mandate=mandate):
        graph.invoke(human("Pay the rent"), config)
    if ask:
        assert got == []
        with authz.run(subject="alice", mandate=mandate):
            graph.invoke(Command(resume=[{"type": "approve"}]), config)
    return got


@pytest.mark.parametrize(("amount", "mandate", "ask", "standing", "step"), [
    (45, BOB, False, "covered", "rent"), (99, BOB, False, "deviates", None),
    (45, {"steps": []}, False, "outside", None), (99, BOB, True, "deviates", None),
])
def test_a_token_says_how_its_call_stands_to_the_mandate(
    amount: float, mandate: Any, ask: bool, standing: str, step: str | None
) -> None:
    """A step only if it covers the call; an approval if there was one; the mandate in the task; and its own salt."""
    first, second = paid(amount, mandate=mandate, ask=ask)
    detail, other = (claims["authorization_details"][1] for claims in (first, second))
    assert (detail["standing"], detail["step"], detail["source"]) == (standing, step, "application")
    assert detail.get("approved") == (True if ask else None)
    assert detail["mandate"] == first["task"]["mandate"] == load_mandate(mandate).digest
    assert set(detail["argument_digests"]) == {"recipient", "amount"}
    assert detail["salt"] != other["salt"] and len(detail["salt"]) == 22
