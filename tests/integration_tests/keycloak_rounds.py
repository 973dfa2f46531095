"""A user of a real Keycloak, an agent, a service of Keycloak's and one of ours: who accepts what, until the logout.

`python -m tests.integration_tests.keycloak_rounds` prints the table and fails if a row is not as expected.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
from fastapi import Depends, FastAPI, Request
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import AuthzDenied, AuthzHalt, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.downstream.exchange import ACCESS_TOKEN, ExchangeAuth, TokenExchange, private_key_jwt
from langchain_runtime_authz.downstream.httpx_auth import CallAuth
from langchain_runtime_authz.errors import AuthzError, CredentialError
from langchain_runtime_authz.identity.oidc import Caller, LoggedOut, OidcVerifier
from langchain_runtime_authz.identity.subjects import BearerSubject
from langchain_runtime_authz.resource_server.introspection import Introspection
from langchain_runtime_authz.resource_server.logout import BackchannelLogout
from langchain_runtime_authz.resource_server.metadata import ResourceMetadata
from langchain_runtime_authz.resource_server.server import ProviderServer
from langchain_runtime_authz.testing import StaticPDP

from ..attack._graphs import call, hand_written, human, replying
from .downstream_services import bank_app, issuer_app, resource_server, serving
from .keycloak import AGENT_API, SECRETS, Keycloak
from .services import free_port


def seen_by(keycloak: Keycloak, token: str, provider: str, **options: Any) -> str:
    """What a verifier with a profile makes of a token: a kind of subject, or the refusal."""
    verifier = OidcVerifier(keycloak.issuer, provider=provider, timeout=30, **options)
    try:
        return verifier.verify(token).type
    except AuthzError as exc:
        return f"{exc.code}: {exc.detail}"


class Rounds:
    """A user, an agent and two services. `rows` holds what was expected and what was found."""

    def __init__(self, keycloak: Keycloak, crm: str, bank: str) -> None:
        self.kc, self.crm, self.bank = keycloak, crm, bank
        self.rows: dict[str, tuple[Any, Any]] = {}
        self.verifier = OidcVerifier(keycloak.issuer, provider="keycloak", audience=AGENT_API, timeout=30)
        self.caller = BearerSubject(self.verifier)
        profiles = {
            "customers": ToolProfile(effect="read", sink="none", audience=("crm",)),
            "pay": ToolProfile(effect="pay", sink="external", audience=(bank, "crm")),
            "sign_out": ToolProfile(effect="read", sink="none"),
        }
        self.authz = RuntimeAuthz(
            pdp=StaticPDP(True), subject_from=self.caller, profiles=profiles, issuer=LocalIssuer(issuer="https://issuer.example")
        )  # fmt: skip
        self.answers: list[tuple[Any, str]] = []
        self.exchanges: list[str] = []
        self.shown_to_crm: list[str] = []
        self.ended: list[LoggedOut] = []

    def row(self, what: str, expected: Any, found: Any) -> None:
        self.rows[what] = (expected, found)
        same = found == expected or (isinstance(found, str) and isinstance(expected, str) and found.startswith(expected))
        print(f"{'   ' if same else 'NOT'} {what:66} {found}", flush=True)
        assert same, (what, expected, found)

    def crm_app(self) -> FastAPI:
        """Takes Keycloak's tokens, and asks Keycloak of each whether its session lives."""
        verifier = OidcVerifier(self.kc.issuer, provider="keycloak", audience="crm", timeout=30)
        asks = Introspection(self.kc.introspection_url, client_id="crm", client_secret=SECRETS["crm"], timeout=30)
        metadata = ResourceMetadata(self.crm, authorization_servers=[self.kc.issuer], scopes=["crm.read"])
        server = ProviderServer(verifier, status=asks, metadata=metadata)
        app = FastAPI()
        app.add_route(metadata.path, metadata)

        @app.get("/customers")
        async def customers(request: Request, caller: Caller = Depends(server.for_scopes("crm.read"))) -> Any:
            self.shown_to_crm.append(request.headers["authorization"])
            return f"{caller.subject.type} {caller.subject.id == self.kc.user}, by {caller.subject.properties['client_id']}"

        @app.delete("/customers")
        async def delete(caller: Caller = Depends(server.for_scopes("crm.admin"))) -> Any:
            return "deleted"

        return app

    def logout_app(self) -> FastAPI:
        """The agent's endpoint for logouts: they revoke the thread of the session."""

        async def ended(out: LoggedOut) -> None:
            self.ended.append(out)
            await self.authz.arevoke("thread-c", graph="agent")

        app = FastAPI()
        verifier = OidcVerifier(self.kc.issuer, provider="keycloak", client_id="agent", timeout=30)
        app.add_route("/logout", BackchannelLogout(verifier, ended), methods=["POST"])
        return app

    def asked(self, request: Callable[[], httpx.Response]) -> str:
        try:
            answer = request()
            self.answers.append((answer.status_code, str(answer.headers.get("www-authenticate") or answer.json())))
        except CredentialError as exc:
            self.answers.append((exc.code, ""))
        return "asked"

    def play(self) -> None:
        signed_in = self.kc.sign_in()
        self._profiles(signed_in)
        self._exchange(signed_in["access_token"])
        self._correction(signed_in["access_token"])
        self._elsewhere(signed_in["access_token"])
        self._rotation(signed_in["access_token"])
        self._logout(signed_in)

    def _profiles(self, signed_in: dict[str, Any]) -> None:
        token, here = signed_in["access_token"], {"audience": AGENT_API}
        self.row("user's access token, `keycloak`", "user", seen_by(self.kc, token, "keycloak", **here))
        wanted = "identity_invalid: provider `rfc9068`: expected the header's `typ` at+jwt, found `JWT`"
        self.row("user's access token, `rfc9068`", wanted, seen_by(self.kc, token, "rfc9068", **here))
        for other in ("entra", "okta"):
            self.row(f"user's access token, `{other}`", "identity_invalid", seen_by(self.kc, token, other, **here))
        strict = self.kc.sign_in("strict")["access_token"]
        wanted = "identity_invalid: provider `rfc9068`: expected `client_id` to name the client, found `azp`"
        self.row("with Keycloak's switch for RFC 9068, `rfc9068`", wanted, seen_by(self.kc, strict, "rfc9068", **here))
        self.row("with Keycloak's switch for RFC 9068, `keycloak`", "user", seen_by(self.kc, strict, "keycloak", **here))
        self.row("ID token as access token", "identity_invalid", seen_by(self.kc, signed_in["id_token"], "keycloak", **here))
        self.row("ID token, asked for", "user", seen_by(self.kc, signed_in["id_token"], "keycloak", client_id="agent"))
        self.row("access token as ID token", "identity_invalid", seen_by(self.kc, token, "keycloak", client_id="agent"))
        self.row("refresh token", "identity_invalid", seen_by(self.kc, signed_in["refresh_token"], "keycloak", **here))
        cron = self.kc.tokens("cron", grant_type="client_credentials")["access_token"]
        self.row("a cron job's token", "service", seen_by(self.kc, cron, "keycloak", **here))

    def _tools(self) -> dict[str, Any]:
        exchange = TokenExchange(self.kc.token_url, client_id="agent", client_secret=SECRETS["agent"], timeout=60)
        send = exchange.exchange
        exchange.exchange = lambda *given, **options: (self.exchanges.append(given[0]), send(*given, **options))[1]  # type: ignore[method-assign]
        options = {"resource": self.crm, "audience": "crm", "scope": "crm.read", "subject_token": self.caller.token}
        crm = httpx.Client(base_url=self.crm, auth=ExchangeAuth(exchange, **options), timeout=60, trust_env=False)
        bank = httpx.Client(base_url=self.bank, auth=CallAuth(), timeout=60, trust_env=False)

        @tool
        def customers() -> str:
            """Read customers."""
            self.asked(lambda: crm.get("/customers"))
            self.asked(lambda: crm.get("/customers"))
            return self.asked(lambda: crm.delete("/customers"))

        @tool
        def pay() -> str:
            """Pay, while the user corrects the task."""
            self.asked(lambda: bank.get("/payments"))
            self.asked(lambda: crm.get("/customers"))
            kept = current_call().credential(self.bank).headers("GET", f"{self.bank}/payments")
            self.authz.correct("thread-b", "Stop: pay nothing.", graph="agent")
            self.asked(lambda: httpx.get(f"{self.bank}/payments", headers=kept, timeout=60, trust_env=False))
            self.asked(lambda: bank.get("/payments"))
            return self.asked(lambda: crm.get("/customers"))

        @tool
        def sign_out() -> str:
            """Work, while the user signs out."""
            self.asked(lambda: crm.get("/customers"))
            began = time.monotonic()
            status = self.kc.sign_out(self.refresh)
            self.row("the user signs out at Keycloak (HTTP status)", 204, status)
            while not self.ended and time.monotonic() - began < 60:
                time.sleep(0.05)
            print(f"    back-channel logout arrived after {time.monotonic() - began:.2f} s")
            return "worked"

        return {each.name: each for each in (customers, pay, sign_out)}

    def _run(self, thread: str, token: str, *names: str) -> str:
        self.answers.clear()
        tools = self._tools()
        turns = [[call(name, {}, f"c{i}")] for i, name in enumerate(names)]
        used = [tools["customers"]] if thread == "thread-a" else list(tools.values())
        graph = hand_written(replying(*turns), used, checkpointer=InMemorySaver(), name="agent")
        self.authz.protect(graph)
        try:
            with self.caller.presented(f"Bearer {token}"):
                state = graph.invoke(human(), {"configurable": {"thread_id": thread}})
        except (AuthzDenied, AuthzHalt) as exc:
            return str(exc.code)
        last = [m for m in state["messages"] if m.type == "tool"][-1]
        return str(last.status)

    def _exchange(self, token: str) -> None:
        self.row("the agent runs on the user's behalf", "success", self._run("thread-a", token, "customers", "customers"))
        served = (200, "user True, by agent")
        self.row("the service, with the exchanged token", [served, served], self.answers[:2])
        status, challenge = self.answers[2]
        self.row("the service, for a scope that was not asked for", 403, status)
        self.row("its challenge", "Bearer realm", challenge)
        assert 'scope="crm.read crm.admin"' not in challenge
        assert 'scope="crm.admin"' in challenge and f'resource_metadata="{self.crm}/.well-known' in challenge
        self.row("requests to the service, exchanges", (6, 1), (len(self.answers), len(self.exchanges)))

    def _correction(self, token: str) -> None:
        self.row("the user corrects during a call: the run", "stale_epoch", self._run("thread-b", token, "pay", "pay"))
        found = [status for status, _ in self.answers]
        self.row("our token at the bank, before and after", (200, 401), (found[0], found[2]))
        self.row("a new one for the bank", "credential_revoked", found[3])
        self.row("Keycloak's token for the CRM, before and after", (200, "credential_revoked"), (found[1], found[4]))

    def _elsewhere(self, token: str) -> None:
        options = {"subject_token_type": ACCESS_TOKEN}
        exchange = TokenExchange(self.kc.token_url, client_id="agent", client_secret=SECRETS["agent"], timeout=60)
        self.row("exchange for a service that Keycloak does not allow", "exchange_refused", self._code(exchange, token, audience="admin-api", **options))
        self.row("exchange of a token that is not Keycloak's", "exchange_refused", self._code(exchange, "eyJhIjoxfQ.e30.x", audience="crm", **options))
        wrong = TokenExchange(self.kc.token_url, client_id="agent", client_secret="another", timeout=60)
        self.row("exchange by a client with a wrong secret", "exchange_refused", self._code(wrong, token, audience="crm", **options))
        assertion = private_key_jwt(self.kc.key, "own-key", self.kc.issuer)
        own = TokenExchange(self.kc.token_url, client_id="own-key", client_assertion=assertion, timeout=60)
        mine = self.kc.sign_in_by_assertion(assertion())
        self.row("a client with a key of its own (RFC 7523) exchanges", "issued", self._code(own, mine, audience="crm", scope="crm.read", **options))
        forged = private_key_jwt(SigningKey.generate(), "own-key", self.kc.issuer)
        other = TokenExchange(self.kc.token_url, client_id="own-key", client_assertion=forged, timeout=60)
        self.row("another key in its name", "exchange_refused", self._code(other, mine, audience="crm", **options))

    def _code(self, exchange: TokenExchange, token: str, **options: Any) -> str:
        try:
            exchange.exchange(token, **options)
        except CredentialError as exc:
            return f"{exc.code}: {exc.detail}"
        return "issued"

    def _rotation(self, token: str) -> None:
        self.verifier.verify(token)  # its keys are kept now
        self.kc.rotate_keys()
        time.sleep(1.1)  # between two fetches of the keys
        newer = self.kc.sign_in()["access_token"]
        old, new = (self.verifier.verify(t).type for t in (token, newer))
        self.row("Keycloak signs with a new key: the old and the new token", ("user", "user"), (old, new))

    def _logout(self, signed_in: dict[str, Any]) -> None:
        self.refresh = signed_in["refresh_token"]
        self.row("logout during a run: its next step", "revoked", self._run("thread-c", signed_in["access_token"], "sign_out", "customers"))
        self.row("requests of that step", 1, len(self.answers))  # the one before the logout
        self.row("the logout names the user and a session", (self.kc.user, True), (self.ended[0].subject, bool(self.ended[0].session)))
        raw = httpx.get(f"{self.crm}/customers", headers={"Authorization": self.shown_to_crm[-1]}, timeout=60, trust_env=False)
        self.row("the exchanged token at the service, after the logout", 401, raw.status_code)
        self.row("a new run in the thread", "revoked", self._run("thread-c", signed_in["access_token"], "customers"))
        offline = seen_by(self.kc, signed_in["access_token"], "keycloak", audience=AGENT_API)
        self.row("the user's own token where nobody asks Keycloak, until it expires", "user", offline)


def play() -> dict[str, tuple[Any, Any]]:
    crm, bank, issuer, logout = (free_port() for _ in range(4))
    began = time.monotonic()
    with Keycloak(f"http://127.0.0.1:{logout}/logout") as keycloak, ExitStack() as stack:
        print(f"    Keycloak ready after {time.monotonic() - began:.0f} s")
        rounds = Rounds(keycloak, f"http://127.0.0.1:{crm}", f"http://127.0.0.1:{bank}")
        stack.enter_context(serving(issuer_app(rounds.authz, (rounds.bank,)), issuer))
        stack.enter_context(serving(rounds.crm_app(), crm))
        stack.enter_context(serving(rounds.logout_app(), logout))
        stack.enter_context(serving(bank_app(resource_server(rounds.authz, f"http://127.0.0.1:{issuer}", rounds.bank)), bank))
        rounds.play()
        print(f"    {len(rounds.rows)} rows as expected, {time.monotonic() - began:.0f} s")
    return rounds.rows


if __name__ == "__main__":
    play()
