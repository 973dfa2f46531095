"""Measure issuing, verifying and minting next to PyJWT, which does the same cryptography: rows of the benchmark page."""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jwt

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.dpop_proof import ProofKey, read_proof
from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of, mint
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.resource_server.dpop import ProofVerifier
from langchain_runtime_authz.resource_server.server import ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus, Offline
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.per_call import Round, between
from tests.unit_tests.credential.tokens import BANK, a_request, ticket_scope

URL = BANK + "/payments"
CALLS = 40  # of each row in a round, by its invokes
Row = tuple[Callable[[], object], Callable[[], object]]  # PyJWT's call that signs or verifies, and ours


def tokens() -> dict[str, Row]:
    """Return rows of a token of usual size: issued and verified with each algorithm, and minted."""
    now, rows = int(time.time()), dict[str, Row]()
    request = a_request(issued_at=now, expires_at=now + 60)
    for alg in ("ES256", "EdDSA", "RS256"):
        key = SigningKey.generate(alg)  # type: ignore[arg-type]
        issuer = LocalIssuer(key)
        token, claims, public = issuer.issue(request), claims_of(request, issuer.issuer), jwt.PyJWK(key.public_jwk()).key
        verifier = Verifier(issuer=issuer.issuer, jwks=issuer.jwks())
        known: dict[str, Any] = {"algorithms": [alg], "audience": BANK, "issuer": issuer.issuer}
        raw = lambda pem=key._private, claims=claims, alg=alg: jwt.encode(claims, pem, algorithm=alg)
        check = lambda token=token, public=public, known=known: jwt.decode(token, public, **known)
        rows[f"issue, {alg}"] = raw, lambda issuer=issuer: issuer.issue(request)
        rows[f"verify, {alg}"] = check, lambda verifier=verifier, token=token: verifier.verify(token, audience=BANK)
        if alg == "ES256":
            rows["issue and believe (`mint`)"] = raw, lambda issuer=issuer: mint(issuer, request)
    return rows


def calls(stack: ExitStack, sign: Callable[[], object], check: Callable[[], object], looks: int) -> dict[str, Row]:
    """Return rows of a call: its credential, its proofs, and so many looks of a service at one request, without HTTP."""
    profiles = {"send_money": ToolProfile(effect="pay", sink="external", idempotent=True, audience=(BANK,))}
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles)
    session = authz.session(subject="alice", task="Pay the bill")
    session.decide("send_money", {"n": 1})
    ((_, ticket),) = next(iter(session._open.values()))
    stack.enter_context(ticket_scope(ticket))
    loop, key = asyncio.new_event_loop(), ProofKey()
    stack.callback(loop.close)
    proof = key.proof("POST", URL, token="a.b.c")
    public = jwt.PyJWK(jwt.get_unverified_header(proof)["jwk"], algorithm="ES256").key

    def fresh(dpop: bool) -> None:
        ticket._minted.clear()
        ticket.credential(BANK, dpop=dpop)

    rows: dict[str, Row] = {
        "mint for a call": (sign, lambda: fresh(False)), "mint for a call, bound to a new key": (sign, lambda: fresh(True)),
        "the same credential again": (sign, lambda: ticket.credential(BANK, dpop=True)),
        "make a DPoP proof": (sign, lambda: key.proof("POST", URL, token="a.b.c")),
        "read a DPoP proof": (
            lambda: jwt.decode(proof, public, algorithms=["ES256"], options={"verify_iat": False}),
            lambda: read_proof(proof, htm="POST", htu=URL, token="a.b.c", jkt=key.jkt, now=time.time()),
        ),
    }
    credential = ticket.credential(BANK, dpop=True)
    for name, status in (("offline", Offline()), ("ledger", LedgerStatus(authz.ledger))):
        verifier = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks())
        server = ResourceServer(verifier=verifier, audience=BANK, tenant="default", status=status, proofs=ProofVerifier(public_url=BANK))
        proofs = iter([credential.headers("POST", URL) for _ in range(looks)])

        def look(server: ResourceServer = server, proofs: Any = proofs) -> None:
            headers = [(k.lower(), v) for k, v in next(proofs).items()]
            loop.run_until_complete(server.authenticate(method="POST", path="/payments", headers=headers))

        rows[f"a service's look at a bound token, {name}"] = check, look
    return rows


def credentials(_: ExitStack, __: Any) -> Callable[[int], Round]:
    """Sample credentials."""

    def sample(rounds: int) -> Round:
        with ExitStack() as stack:  # a call's lease ends soon
            rows = tokens()
            rows |= calls(stack, rows["issue, ES256"][0], rows["verify, ES256"][0], rounds * CALLS)
            return {name: between(list(row), rounds * CALLS) for name, row in rows.items()}

    return sample
