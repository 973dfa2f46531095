"""Tickets: one call, one run of it, one token per audience, nothing afterwards."""

import asyncio
import copy
import json
import pickle
import threading
from functools import partial
from typing import Any

import orjson
import pytest

from langchain_runtime_authz._flow import Perform
from langchain_runtime_authz.credential.issuer import LocalIssuer, mint
from langchain_runtime_authz.credential.ticket import Ticket, current_call
from langchain_runtime_authz.credential.token import Credential, TaskClaim, TokenRequest
from langchain_runtime_authz.errors import AuthzError, CredentialError
from langchain_runtime_authz.evaluation import Subject
from tests.threads import together
from tests.unit_tests.credential.tokens import ticket_scope

BANK, MAIL = "https://bank.example", "https://mail.example"
ISSUER = LocalIssuer()


def minted(audience: str, jkt: str | None = None, lives: int = 60) -> Credential:
    return mint(
        ISSUER,
        TokenRequest(
            subject=Subject(type="user", id="alice"), tenant="acme", agent="payer", audience=audience, txn="run",
            task=TaskClaim(id="t", epoch=1, digest="d"), tool="send_money", jti="j", issued_at=1_764_000_000,
            expires_at=1_764_000_000 + lives, cnf_jkt=jkt,
        ),
    )


def a_ticket(mint: Any = minted, amint: Any = None, **changes: Any) -> Ticket:
    amint = amint or partial(asyncio.to_thread, mint)
    fields: dict[str, Any] = {
        "tool": "send_money", "call_id": "call_1", "call_key": "key", "agent": ("root",), "epoch": 1,
        "decision_id": "d-1", "jti": "j", "idempotency_key": "key", "audiences": (BANK,), "raw": {"recipient": "RAW-SECRET"},
        "mint": None if mint is None else (lambda *asked: Perform(mint, amint, *asked)),
    }
    return Ticket(**{**fields, **changes})


def refusal(audience: str | None = None) -> str:
    with pytest.raises(CredentialError) as caught:
        current_call().credential(audience)
    return caught.value.code


def test_a_ticket_is_redeemed_once() -> None:
    """A permit runs its tool one time; a second try, or one after the end, is refused."""
    ticket = a_ticket()
    ticket.redeem()
    assert (ticket.redeemed, ticket.concluded) == (True, False)
    for used in (ticket, a_ticket()):
        used.conclude()
        with pytest.raises(AuthzError) as caught:
            used.redeem()
        assert caught.value.code == "call_in_progress"


def test_one_of_many_threads_redeems() -> None:
    ticket, won, start = a_ticket(), [], threading.Barrier(8)

    def race() -> None:
        start.wait()
        try:
            ticket.redeem()
        except AuthzError:
            return
        won.append(1)

    together(race)
    assert won == [1]


def test_an_audience_is_the_profiles() -> None:
    """Only audiences of the profile; left out only where there is exactly one."""
    with ticket_scope(a_ticket(audiences=(BANK, MAIL))) as ticket:
        ticket.redeem()
        assert refusal() == "audience" and refusal("https://evil.example") == "audience"
        assert {current_call().credential(a).audience for a in (BANK, MAIL)} == {BANK, MAIL}
        assert len(ticket.minted_tokens()) == 2
    with ticket_scope(a_ticket(audiences=(), mint=None)) as ticket:
        ticket.redeem()
        assert refusal() == refusal(BANK) == "audience"
    with ticket_scope(a_ticket(mint=None)) as ticket:
        ticket.redeem()
        assert refusal() == "credential_unavailable"


def test_a_failed_mint_mints_nothing() -> None:
    """The issuer's refusal reaches the tool, and a second try may succeed."""
    answers: list[Any] = [CredentialError("credential_unavailable"), None]

    def flaky(audience: str, jkt: str | None) -> Credential:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return minted(audience)

    with ticket_scope(a_ticket(mint=flaky)) as ticket:
        ticket.redeem()
        assert refusal() == "credential_unavailable" and ticket.minted_tokens() == ()
        assert current_call().credential().audience == BANK


@pytest.mark.parametrize(("lives", "mints"), [(5, 2), (6, 1), (60, 1)])
@pytest.mark.parametrize("dpop", [False, True])
def test_a_token_near_its_end_is_minted_again(lives: int, mints: int, dpop: bool) -> None:
    """As bound as the first one. The old token still counts for seconds, so the output is searched for both."""
    with ticket_scope(a_ticket(mint=partial(minted, lives=lives))) as ticket:
        ticket.redeem()
        got = {current_call().credential(dpop=dpop) for _ in range(2)}
        assert len(got) == mints
        assert set(ticket.minted_tokens()) == {credential.token for credential in got}
        with pytest.raises(CredentialError, match="as DPoP" if dpop else "as Bearer"):
            current_call().credential(dpop=not dpop)


def test_a_token_minted_across_the_end_is_listed_and_kept_back() -> None:
    """When the call ends while the issuer signs, the tool gets nothing and the search knows the token."""

    def slow(audience: str, jkt: str | None) -> Credential:
        ticket.conclude()
        return minted(audience)

    with ticket_scope(a_ticket(mint=slow)) as ticket:
        ticket.redeem()
        assert refusal() == "credential_unavailable" and len(ticket.minted_tokens()) == 1


def test_a_ticket_holds_nothing_a_serialiser_could_print() -> None:
    """Text, copies, pickles and dataclass-aware serialisers show neither tokens nor arguments."""
    ticket = a_ticket()
    ticket.redeem()
    got = ticket.credential()
    secrets = (got.token.split(".")[2], "RAW-SECRET")
    for value in (ticket, got):
        texts = [repr(value), str(value), repr(pickle.dumps(value)), json.dumps(value, default=str)]
        texts.append(orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY).decode())
        assert not any(secret in text for text in texts for secret in secrets)
        assert isinstance(pickle.loads(pickle.dumps(value)), str) and copy.copy(value) is value
        assert copy.deepcopy({"a": [value]})["a"][0] is value and not hasattr(value, "__dict__")
        for dump in (json.dumps, orjson.dumps):
            with pytest.raises(TypeError):
                dump(value)
    assert "send_money" in repr(ticket)


@pytest.mark.parametrize("road", ["sync", "async"])
async def test_a_bound_token_is_bound_to_a_key_of_its_call(road: str) -> None:
    """Two calls have two keys; each request has its proof; the form is chosen once for a call and audience."""
    seen = []
    for _ in range(2):
        with ticket_scope(a_ticket()) as ticket:
            ticket.redeem()
            got = current_call().credential(dpop=True) if road == "sync" else await current_call().acredential(dpop=True)
            assert got is current_call().credential(dpop=True)
            headers = [got.headers("POST", BANK + "/pay") for _ in range(2)]
            assert headers[0]["Authorization"] == headers[1]["Authorization"] == f"DPoP {got.token}"
            assert headers[0]["DPoP"] != headers[1]["DPoP"]
            seen.append(got.claims["cnf"]["jkt"])
            with pytest.raises(CredentialError, match="credential_unavailable: "):
                current_call().credential()
            assert got.token not in repr(got) + repr(pickle.dumps(got))
    assert len(set(seen)) == 2


def test_an_unbound_token_is_sent_as_bearer() -> None:
    """And can not be had bound a second time."""
    with ticket_scope(a_ticket()) as ticket:
        ticket.redeem()
        got = current_call().credential()
        assert got.headers("POST", BANK) == {"Authorization": f"Bearer {got.token}"}
        with pytest.raises(CredentialError):
            current_call().credential(dpop=True)


async def test_tasks_and_threads_share_one_mint() -> None:
    """Many tasks and threads that ask at the same time have one token minted, without blocking one another."""
    calls: list[str] = []
    entered, go = asyncio.Event(), asyncio.Event()

    async def slow(audience: str, jkt: str | None) -> Credential:
        calls.append(audience)
        entered.set()
        await go.wait()
        return minted(audience, jkt)

    with ticket_scope(a_ticket(amint=slow)) as ticket:
        ticket.redeem()
        tasks = [asyncio.create_task(current_call().acredential()) for _ in range(8)]
        await entered.wait()
        # A blocking wait inside the loop that mints would never end: it is refused instead.
        assert refusal() == "credential_unavailable"
        thread = asyncio.create_task(asyncio.to_thread(current_call().credential))
        tasks[3].cancel()
        await asyncio.sleep(0.01)
        go.set()
        got = [await task for i, task in enumerate(tasks) if i != 3] + [await thread]
    assert calls == [BANK]
    assert len({id(g) for g in got}) == 1


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_failed_mint_is_tried_again_by_who_waited(cancelled: bool) -> None:
    """One task's failure, or its cancellation, is not the others'."""
    entered, go, tries = asyncio.Event(), asyncio.Event(), []

    async def flaky(audience: str, jkt: str | None) -> Credential:
        tries.append(audience)
        if len(tries) == 1:
            entered.set()
            await go.wait()
            raise CredentialError("credential_unavailable")
        return minted(audience, jkt)

    with ticket_scope(a_ticket(amint=flaky)) as ticket:
        ticket.redeem()
        first, second = (asyncio.create_task(current_call().acredential()) for _ in range(2))
        await entered.wait()
        if cancelled:
            first.cancel()
        go.set()
        assert (await second).audience == BANK
        with pytest.raises(asyncio.CancelledError if cancelled else CredentialError):
            await first
    assert len(tries) == 2
