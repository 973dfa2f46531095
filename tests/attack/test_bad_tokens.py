"""ASI03 Identity and Privilege Abuse: bad tokens and bad key sets at a service.

Each has a stable code, and the service goes on serving. The twin believes what a token says without asking
whose it is: there every token that can be read at all is served.
"""

import httpx
import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of
from langchain_runtime_authz.credential.jwks import JwksClient
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.resource_server.server import ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus, Offline

from ..endpoints import answered
from ..unit_tests.credential.tokens import BANK, a_request, b64, forged
from ._kit import *

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
ISSUER = LocalIssuer(KEY)


def now() -> int:
    return int(time.time())


def claims(**changes: Any) -> dict[str, Any]:
    return {**claims_of(a_request(issued_at=now(), expires_at=now() + 60), ISSUER.issuer), **changes}


def good(**changes: Any) -> str:
    return ISSUER.issue(a_request(**{"issued_at": now(), "expires_at": now() + 60, **changes}))


def signed(body: Any = None, header: Any = None, key: SigningKey = KEY) -> str:
    return forged(key, ISSUER.issuer, claims() if body is None else body, header)


def encoded(body: str, header: str = "utf-8") -> str:
    """A token that the key really signed, in another encoding than RFC 7515 §3 allows."""
    parts = [json.dumps({"alg": "ES256", "kid": KEY.kid, "typ": TYP}).encode(header), json.dumps(claims()).encode(body)]
    signing_input = ".".join(map(b64, parts))
    return f"{signing_input}.{b64(KEY.sign(signing_input.encode()))}"


def _twice() -> str:
    return signed(json.dumps(claims())[:-1] + ', "sub": "mallory"}')


# `tests/token_vectors.py` has the others: of another algorithm, key, type or issuer, or living too long.
BAD: dict[str, tuple[Any, str]] = {
    "forged": (lambda: good()[:-8] + "AAAAAAAA", "credential_invalid"),
    "truncated": (lambda: good()[:-42], "credential_invalid"),
    "oversized": (lambda: signed(claims(x="x" * 20_000)), "credential_invalid"),
    "unknown key": (lambda: signed(key=STRANGER), "credential_key"),
    "wrong audience": (lambda: good(audience="https://mail.example"), "audience"),
    "wrong tenant": (lambda: good(tenant="umbrella"), "credential_tenant"),
    "expired": (lambda: signed(claims(iat=now() - 90, exp=now() - 30)), "credential_expired"),
    "not yet valid": (lambda: signed(claims(iat=now() + 30, exp=now() + 60)), "credential_not_yet_valid"),
    "duplicate claim": (_twice, "credential_invalid"),
    "in utf-16": (lambda: encoded("utf-16"), "credential_invalid"),
    "in utf-32": (lambda: encoded("utf-32-le"), "credential_invalid"),
    "with a byte order mark": (lambda: encoded("utf-8-sig"), "credential_invalid"),
    "its header in utf-16": (lambda: encoded("utf-8", "utf-16-be"), "credential_invalid"),
    "a number too large": (lambda: signed(json.dumps(claims())[:-1] + ', "x": 1e999}'), "credential_invalid"),
    "nested bomb": (lambda: signed('{"a":' * 2000 + "1" + "}" * 2000), "credential_invalid"),
    "deep claims": (lambda: signed(claims(x=json.loads("[" * 60 + "]" * 60))), "credential_invalid"),
    "lone surrogate": (lambda: signed(json.dumps(claims(jti="\ud800"))), "credential_revoked"),
    "of a call that is over": (lambda: good(jti="j-over"), "credential_revoked"),
}


class Calls(MemoryLedger):
    """One call is under way."""

    def status(self, tenant: str, jti: str) -> Any:
        return "live" if jti == "j-1" else "ended"


class Service:
    """A service, its health page and the last code of a refusal."""

    def __init__(self, verifier: Verifier | None = None, status: Any = None) -> None:
        self.codes: list[str] = []
        self.server = ResourceServer(
            verifier=verifier or Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks()), audience=BANK, tenant="acme",
            status=status or LedgerStatus(Calls()),
        )
        self.app = Starlette(routes=[Route("/pay", self._pay, methods=["POST"]), Route("/health", self._health)])

    async def _pay(self, request: Request) -> JSONResponse:
        try:
            credential = await self.server.of(request)
        except CredentialError as exc:
            self.codes.append(exc.code)
            refused = self.server.refusal(exc.code)
            return JSONResponse({"error": exc.code}, refused.status)
        # What the claims name is looked up, as a service would.
        return JSONResponse({"for": credential.subject})

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse({})

    def asked(self, headers: dict[str, str]) -> str:
        """`200`, or the status and its code; asked from a client of its own."""

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=BANK) as client:
                return await client.post("/pay", headers=headers)

        answer = asyncio.run(ask())
        return "200" if answer.status_code == 200 else f"{answer.status_code} {self.codes.pop()}"


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_has_its_code(name: str) -> None:
    """Refused with 401 and the code of the list; a good one is served before and after. The twin serves it."""
    service = Service()
    make, code = BAD[name]
    assert service.asked(bearing(good())) == "200" and service.asked(bearing(make())) == f"401 {code}"
    assert service.asked(bearing(good())) == "200"
    assert name == "nested bomb" or naive(make()) == "200"


def naive(token: str) -> str:
    """The twin: reads the claims of whatever comes along."""
    try:
        jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return "401"
    return "200"


async def test_a_slow_key_set_holds_up_nobody_else() -> None:
    """While the issuer's endpoint hangs, other requests are served; who needs the keys gets 503 in time."""
    hang = asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        await hang.wait()
        return httpx.Response(200, json=ISSUER.jwks())

    source = JwksClient("https://i.example/jwks", timeout=0.5, min_refresh=0.1, tls=answered(slow))
    service = Service(Verifier(issuer=ISSUER.issuer, jwks=source), Offline())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url=BANK) as client:
        waiting = [asyncio.create_task(client.post("/pay", headers=bearing(good()))) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert (await client.get("/health")).status_code == 200
        assert not any(task.done() for task in waiting)
        assert [(await task).status_code for task in waiting] == [503] * 5
        assert set(service.codes) == {"keys_unavailable"}
        hang.set()
        await asyncio.sleep(0.1)  # the least time between two fetches
        assert (await client.post("/pay", headers=bearing(good()))).status_code == 200
