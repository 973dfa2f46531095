"""A service's own token for the user's: exchanged once in a run, for one service, and void with the task."""

import base64
import contextlib
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import jwt as pyjwt
import pytest
from jwt import PyJWK
from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.downstream.exchange import (
    ACCESS_TOKEN,
    ID_JAG,
    ID_TOKEN,
    JWT_SPIFFE,
    ExchangeAuth,
    private_key_jwt,
)
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.subjects import BearerSubject
from langchain_runtime_authz.ledger.base import HumanText
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, Revoke
from langchain_runtime_authz.pep.corrections import _rotate
from langchain_runtime_authz.pep.run import drive
from langchain_runtime_authz.testing import StaticPDP
from tests.unit_tests.downstream.test_httpx_auth import CRM, ISSUED, ROADS, STS, Service, exchange_with


class SignedIn:
    """Says who a token is for; the token is the name."""

    def verify(self, token: str) -> Subject:
        return Subject(type="user", id=token.partition("-")[0])

    async def averify(self, token: str) -> Subject:
        return self.verify(token)


def issued(count: int = 9, **changes: Any) -> Service:
    return Service(*(httpx.Response(200, json={**ISSUED, "access_token": f"t{i}-{'x' * 40}", **changes}) for i in range(count)))


def jwt(**claims: Any) -> str:
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({"alg": "ES256"}, claims, "signature"))


class OnBehalf:
    """A tool that calls the CRM with the user's token, exchanged; `ask` makes it do so."""

    def __init__(self, sts: Service, named: str = CRM, kill_switch: Path | None = None, **options: Any) -> None:
        self.sts, self.crm, self.caller = sts, Service(), BearerSubject(SignedIn())
        auth = ExchangeAuth(exchange_with(sts), **{"resource": CRM, "audience": "crm", "subject_token": self.caller.token, **options})
        self.during: Any = None

        @profile(effect="read", sink="none", audience=(named,))
        @tool
        def customers(count: int = 1) -> str:
            """Read customers."""
            with httpx.Client(transport=httpx.MockTransport(self.crm), auth=auth) as client:
                for _ in range(count):
                    client.get(CRM + "/customers")
                    if self.during is not None:
                        self.during()
            return "read"

        self.authz = RuntimeAuthz(pdp=StaticPDP(True), subject_from=self.caller, kill_switch=kill_switch)
        self.tool = self.authz.guard(customers)

    def ask(self, count: int = 1) -> None:
        self.tool.invoke({"count": count})

    @property
    def sent(self) -> list[str]:
        return [r.headers["Authorization"].removeprefix("Bearer ")[:2] for r in self.crm.got]


def test_the_users_token_is_exchanged_once_in_a_run() -> None:
    """For its life and audience; the next run exchanges anew, and nobody shares."""
    made = OnBehalf(issued())
    for user in ("alice", "bob"):
        with made.caller.presented(f"Bearer {user}-token"), made.authz.run(subject=user):
            made.ask(2)
            made.ask()
    assert made.sent == ["t0"] * 3 + ["t1"] * 3
    forms = [dict(parse_qsl(r.content.decode())) for r in made.sts.got]
    assert [f["subject_token"] for f in forms] == ["alice-token", "bob-token"]
    assert {(f["subject_token_type"], f["audience"], f["resource"]) for f in forms} == {(ACCESS_TOKEN, "crm", CRM)}


def test_a_token_near_its_end_is_exchanged_again() -> None:
    made = OnBehalf(issued(expires_in=5))
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
        made.ask(2)
    assert made.sent == ["t0", "t1"]


ENDS = {
    "correct": lambda epoch: [AdvanceEpoch(epoch, (HumanText("d", "no", "k"),))], "revoke": lambda _: [Revoke(())],
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_correction_drops_what_was_exchanged(end: str) -> None:
    """Also within the call that runs: the provider's token knows nothing of the task, so it is not sent any more."""
    made = OnBehalf(issued())
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):

        def elsewhere() -> None:  # as another process does
            run = current_scope.get().run
            made.authz.ledger.commit(run.scope, None, ENDS[end](run.epoch))

        made.during = elsewhere
        with pytest.raises(CredentialError) as refused:
            made.ask(2)
    assert refused.value.code == "credential_revoked" and made.sent == ["t0"]


def test_the_kill_switch_holds_back_what_was_exchanged(tmp_path: Path) -> None:
    """The provider's service cannot ask for it, and the twin without it is served."""
    for kill_switch, sent in ((tmp_path / "kill", ["t0"]), (None, ["t0", "t0"])):
        made = OnBehalf(issued(), kill_switch=kill_switch)
        made.during = (tmp_path / "kill").touch
        with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
            with pytest.raises(CredentialError, match="killed: ") if kill_switch else contextlib.nullcontext():
                made.ask(2)
        assert made.sent == sent


@pytest.mark.parametrize(("ends", "sent"), [(1.0, ["t0"]), (None, ["t0", "t0"])], ids=["unproven", "twin"])
def test_what_was_exchanged_does_not_outlive_the_workloads_proof(ends: Any, sent: list[str]) -> None:
    """Also if the proof is refused at once, before the lease that it bounded has lapsed."""
    made = OnBehalf(issued())
    made.during = lambda: setattr(made.authz.identity, "expires_at", ends)
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
        with pytest.raises(CredentialError, match="workload_unproven: ") if ends else contextlib.nullcontext():
            made.ask(2)
    assert made.sent == sent


def test_a_call_of_the_task_before_gets_nothing_by_the_new_lease() -> None:
    """An answer in words moves the run itself to another lease (`on_ask`), while the call of a parallel branch runs."""
    made = OnBehalf(issued())

    def moved() -> None:
        run, said = current_scope.get().run, (HumanText("d", "no", "k"),)
        drive(run.pep, _rotate(run, [AdvanceEpoch(run.epoch, said)], said))

    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
        made.during = moved
        with pytest.raises(CredentialError) as refused:
            made.ask(2)
        made.during = None
        made.ask()
    assert refused.value.code == "credential_revoked" and made.sent == ["t0", "t1"]


@pytest.mark.parametrize("end", ENDS)
def test_a_correction_while_the_endpoint_answers_sends_nothing(end: str) -> None:
    """The endpoint may take seconds, and the task may change in them."""
    sts = issued()
    made = OnBehalf(sts)

    def subject_token() -> str:
        run = current_scope.get().run  # as another process does, after the status was asked
        made.authz.ledger.commit(run.scope, None, ENDS[end](run.epoch))
        return made.caller.token()

    made = OnBehalf(sts, subject_token=subject_token)
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"), pytest.raises(CredentialError) as refused:
        made.ask()
    assert refused.value.code == "credential_revoked" and (len(sts.got), made.crm.got) == (1, [])


@pytest.mark.parametrize("end", [*ENDS, "twin: nothing ends"])
def test_a_call_that_is_stopped_while_its_own_token_is_exchanged_sends_nothing(end: str) -> None:
    def stopping(_: httpx.Request) -> httpx.Response:
        if end in ENDS:
            authz.ledger.commit(scopes[0], None, ENDS[end](1))
        return httpx.Response(200, json=ISSUED)

    crm, scopes = Service(), list[Any]()
    auth = ExchangeAuth(exchange_with(stopping), resource=CRM)

    @profile(effect="read", sink="none", audience=(STS, CRM))
    @tool
    def customers() -> str:
        """Read customers."""
        scopes.append(current_scope.get().run.scope)
        with httpx.Client(transport=httpx.MockTransport(crm), auth=auth) as client:
            client.get(CRM)
        return "read"

    authz = RuntimeAuthz(pdp=StaticPDP(True))
    with authz.run(subject="alice"), contextlib.nullcontext() if end not in ENDS else pytest.raises(CredentialError, match="credential_revoked"):
        authz.guard(customers).invoke({})
    assert len(crm.got) == (end not in ENDS)


def test_a_token_that_outlives_its_lifetime_or_has_ended_is_not_sent() -> None:
    """It is a bearer token, so its own `exp` counts and not only what the endpoint says about it."""
    now = time.time()
    for ends, sent in ((now + 86_400, 0), (now + 300, 1), (now - 1, 0), (now + 1, 0), (0, 0), (True, 0), (str(now + 60), 0), (None, 0)):
        made = OnBehalf(issued(access_token=jwt(aud="crm", exp=ends)))
        with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
            with contextlib.nullcontext() if sent else pytest.raises(CredentialError, match="exchange_failed"):
                made.ask()
        assert len(made.crm.got) == sent


def test_a_token_is_kept_no_longer_than_it_says_itself() -> None:
    """The endpoint's `expires_in` may be the longer one."""
    ends = int(time.time()) + 30
    assert exchange_with(issued(access_token=jwt(exp=ends))).exchange("mine").expires_at == ends


@pytest.mark.parametrize(("asked", "got", "sent"), [
    ("read", "read write", False), ("read", "admin", False), ("read", ["read"], False), ("read", {"read": 1}, False),
    ("read", "Read", False), ("read", "read offline_access", False),
    ("read", "profile read email", True),  # as Keycloak does
    ("read", "read", True), ("read write", "write", True), ("read", None, True), (None, "read write", True),
])
def test_a_wider_scope_than_was_requested_is_refused(asked: str | None, got: Any, sent: bool) -> None:
    """A narrower one is sent, and so is the endpoint's own choice where no scope was requested."""
    made = OnBehalf(issued(scope=got), scope=asked)
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
        with contextlib.nullcontext() if sent else pytest.raises(CredentialError, match="`scope` is wider"):
            made.ask()
    assert len(made.crm.got) == sent


def test_another_users_token_is_not_exchanged() -> None:
    """Whatever the context: a run of one user never takes the token of another, and none outside a request."""
    made = OnBehalf(issued())
    with made.caller.presented("Bearer bob-token"), made.authz.run(subject="alice"), pytest.raises(CredentialError) as refused:
        made.ask()
    assert refused.value.code == "credential_unavailable"
    with made.authz.run(subject="alice"), pytest.raises(CredentialError):
        made.ask()
    with made.caller.presented("Bearer bob-token"), pytest.raises(CredentialError):
        made.caller.token()
    assert (made.sts.got, made.crm.got) == ([], []) and "bob" not in repr(made.caller.__dict__)


@pytest.mark.parametrize(
    ("audience", "options"), [("https://else.example", {}), (STS, {}), (CRM + "/v1", {}), ("crm", {"audience": "admin"})]
)
def test_a_service_outside_the_profile_gets_nothing(audience: str, options: dict[str, Any]) -> None:
    """The user's token opens each service; the tool's profile and the grant say which one."""
    made = OnBehalf(issued(), audience, **options)
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"), pytest.raises(CredentialError, match="audience: "):
        made.ask()
    assert (made.sts.got, made.crm.got) == ([], [])


@pytest.mark.parametrize("aud", ["admin", ["admin"], ["crm", "admin"], [CRM, "crm", 7], [], "", {"crm": 1}, None], ids=str)
def test_a_token_for_another_audience_is_not_sent(aud: Any) -> None:
    made = OnBehalf(issued(access_token=jwt(**({} if aud is None else {"aud": aud}))))
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"), pytest.raises(CredentialError) as refused:
        made.ask()
    assert refused.value.code == "exchange_failed" and made.crm.got == []
    for good in ("crm", CRM, ["crm", CRM]):
        made = OnBehalf(issued(access_token=jwt(aud=good)))
        with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
            made.ask()
        assert len(made.crm.got) == 1


@pytest.mark.parametrize("payload", ["", "e30A", "e30~", "W10", "eyJhdWQiOiAiY3JtIiwgImF1ZCI6ICJldmlsIn0", "bm90IEpTT04"])
def test_a_jwt_whose_claims_cannot_be_read_is_not_sent(payload: str) -> None:
    """The service could read another audience in it. A text that only has two dots is an opaque token."""
    header, _, signature = jwt(aud="crm").split(".")
    for token, sent in ((f"{header}.{payload}.{signature}", 0), ("v1.local.opaque", 1)):
        made = OnBehalf(issued(access_token=token))
        with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
            with contextlib.nullcontext() if sent else pytest.raises(CredentialError, match="exchange_failed"):
                made.ask()
        assert len(made.crm.got) == sent


def test_an_id_jag_is_granted_by_the_services_own_endpoint() -> None:
    """draft-ietf-oauth-identity-assertion-authz-grant: an ID token for an ID-JAG, and that for an access token."""
    jag, issuer = jwt(aud="https://as.crm.example"), "https://as.crm.example"
    idp = issued(access_token=jag, issued_token_type=ID_JAG, token_type="N_A")
    own = issued(access_token=jwt(aud=CRM))
    made = OnBehalf(idp, CRM, audience=issuer, subject_token_type=ID_TOKEN, granting=exchange_with(own))
    with made.caller.presented("Bearer alice-token"), made.authz.run(subject="alice"):
        made.ask(2)
    asked, granted = (dict(parse_qsl(s.got[0].content.decode())) for s in (idp, own))
    assert (asked["requested_token_type"], asked["audience"], asked["subject_token_type"]) == (ID_JAG, issuer, ID_TOKEN)
    assert (granted["assertion"], granted["resource"]) == (jag, CRM)
    assert (len(idp.got), len(own.got), len(made.crm.got)) == (1, 1, 2)
    assert {r.headers["Authorization"] for r in made.crm.got} == {f"Bearer {jwt(aud=CRM)}"}


@ROADS
async def test_a_client_is_authenticated_by_an_assertion(road: str) -> None:
    """RFC 7523 §2.2: signed by the client's own key, or a workload's token; no secret is sent."""
    key, sts = SigningKey.generate(), issued()
    made = exchange_with(sts, client_secret=None, client_assertion=private_key_jwt(key, "agents", STS))
    for _ in range(2):
        made.exchange("mine") if road == "sync" else await made.aexchange("mine")
    first, second = (dict(parse_qsl(r.content.decode())) for r in sts.got)
    assert "authorization" not in sts.got[0].headers
    assert first["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    claims = pyjwt.decode(first["client_assertion"], PyJWK(key.public_jwk()).key, ["ES256"], audience=STS)
    assert (claims["iss"], claims["sub"], claims["exp"] - claims["iat"]) == ("agents", "agents", 60)
    assert first["client_assertion"] != second["client_assertion"]
    workload = exchange_with(sts, client_id=None, client_secret=None, client_assertion=lambda: "svid", client_assertion_type=JWT_SPIFFE)
    workload.exchange("mine") if road == "sync" else await workload.aexchange("mine")
    form = dict(parse_qsl(sts.got[2].content.decode()))
    assert (form["client_assertion"], form["client_assertion_type"]) == ("svid", JWT_SPIFFE)
    assert "client_id" not in form


@ROADS
async def test_an_assertion_is_granted(road: str) -> None:
    """RFC 7523 §2.1, whose answer names no `issued_token_type`."""
    service = Service(httpx.Response(200, json={k: v for k, v in ISSUED.items() if k != "issued_token_type"}))
    made = exchange_with(service)
    got = made.grant("assertion", scope="read") if road == "sync" else await made.agrant("assertion", scope="read")
    assert dict(parse_qsl(service.got[0].content.decode())) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "assertion", "scope": "read",
    }  # fmt: skip
    assert got.token == ISSUED["access_token"]
