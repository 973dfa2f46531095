"""What issuing, verifying and minting cost, beside the raw library call that does the same cryptography.

`python -m tests.benchmarks.credential [--calls N]`. Prints medians of CPU time and ratios with the machine
they were measured on; asserts nothing. Ours and the library's run in turn, in one process.
"""

import argparse
import asyncio
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jwt
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.dpop_proof import ProofKey, read_proof
from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of, mint
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TaskClaim, TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.resource_server.dpop import ProofVerifier
from langchain_runtime_authz.resource_server.server import ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus, Offline
from langchain_runtime_authz.testing import StaticPDP
from tests.unit_tests.credential.tokens import ticket_scope

BANK = "https://bank.example"
URL = BANK + "/payments"


def a_request(**changes: Any) -> TokenRequest:
    """A token of usual size."""
    now = int(time.time())
    fields: dict[str, Any] = {
        "subject": Subject(type="user", id="alice"), "tenant": "acme",
        "agent": "urn:langchain-runtime-authz:agent:supervisor/payer",
        "delegators": ("urn:langchain-runtime-authz:agent:supervisor",), "audience": BANK, "txn": "0" * 32,
        "task": TaskClaim(id="t" * 32, epoch=2, digest="sha256:" + "0" * 64), "tool": "send_money",
        "grant": Grant(tools=("send_money",), args={"send_money": {"amount": Constraint(le=100)}}), "jti": "1" * 32,
        "issued_at": now, "expires_at": now + 60,
    }
    return TokenRequest(**{**fields, **changes})


def medians(calls: int, *functions: Callable[[], object]) -> list[float]:
    """Median CPU time (µs) of each, called in turn."""
    spent: list[list[int]] = [[] for _ in functions]
    for function in functions:
        for _ in range(20):
            function()
    gc.collect()
    gc.disable()
    try:
        for _ in range(calls):
            for function, times in zip(functions, spent, strict=True):
                start = time.process_time_ns()
                function()
                times.append(time.process_time_ns() - start)
    finally:
        gc.enable()
    return [statistics.median(times) / 1000 for times in spent]


def rows(calls: int) -> list[tuple[str, float, float | None]]:
    """(what, ours, the raw library call's): µs."""
    out: list[tuple[str, float, float | None]] = []
    for alg in ("ES256", "EdDSA", "RS256"):
        key = SigningKey.generate(alg)  # type: ignore[arg-type]
        issuer = LocalIssuer(key)
        pem, public = key._private, jwt.PyJWK(key.public_jwk()).key
        request, headers = a_request(), {"kid": key.kid, "typ": "runtime-authz+jwt"}
        claims = claims_of(request, issuer.issuer)
        token = issuer.issue(request)
        verifier = Verifier(issuer=issuer.issuer, jwks=issuer.jwks())
        options = {"require": ["exp", "iat", "aud", "iss", "jti", "sub"]}
        raw = lambda: jwt.encode(claims, pem, algorithm=alg, headers=headers)
        out.append((f"issue, {alg}", *medians(calls, lambda: issuer.issue(request), raw)))
        check = lambda: jwt.decode(
            token, public, algorithms=[alg], audience=BANK, issuer=issuer.issuer, options=options, leeway=5
        )
        out.append((f"verify, {alg}", *medians(calls, lambda: verifier.verify(token, audience=BANK), check)))
    ring = KeyRing()
    issuer = LocalIssuer(ring)
    request = a_request()
    claims, pem = claims_of(request, issuer.issuer), ring.active._private  # type: ignore[attr-defined]
    raw = lambda: jwt.encode(claims, pem, algorithm="ES256")
    out.append(("issue from a key ring", *medians(calls, lambda: issuer.issue(request), raw)))
    out.append(("issue and believe (`mint`)", *medians(calls, lambda: mint(issuer, request), raw)))
    out += _per_call(calls, raw)
    out += _proofs(calls, raw)
    out += _served(calls)
    return out


def _per_call(calls: int, raw: Callable[[], object]) -> list[tuple[str, float, float | None]]:
    """A credential of a claimed call: key, signature, audit record."""
    profiles = {"send_money": ToolProfile(effect="pay", sink="external", idempotent=True, audience=(BANK,))}
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles)
    session = authz.session(subject="alice", task="Pay the bill")
    session.decide("send_money", {"n": 1})
    ((_, ticket),) = next(iter(session._open.values()))

    def fresh(dpop: bool) -> None:
        ticket._minted.clear()
        ticket.credential(BANK, dpop=dpop)

    def again() -> None:
        ticket.credential(BANK)

    with ticket_scope(ticket):
        bound, library = medians(calls, lambda: fresh(True), raw)
        plain, library2 = medians(calls, lambda: fresh(False), raw)
        (kept,) = medians(calls, again)
    ticket.conclude()
    return [
        ("mint for a call", plain, library2), ("mint for a call, bound to a new key", bound, library),
        ("the same credential again", kept, None),
    ]


def _proofs(calls: int, raw: Callable[[], object]) -> list[tuple[str, float, float | None]]:
    key = ProofKey()
    proof = key.proof("POST", URL, token="a.b.c")
    header = jwt.get_unverified_header(proof)
    public = jwt.PyJWK(header["jwk"], algorithm="ES256").key
    read = lambda: read_proof(proof, htm="POST", htu=URL, token="a.b.c", jkt=key.jkt, now=time.time())
    check = lambda: jwt.decode(proof, public, algorithms=["ES256"], options={"verify_iat": False})
    return [
        ("make a DPoP proof", *medians(calls, lambda: key.proof("POST", URL, token="a.b.c"), raw)),
        ("read a DPoP proof", *medians(calls, read, check)),
    ]


def _served(calls: int) -> list[tuple[str, float, float | None]]:
    """A service's whole look at one request, without HTTP."""
    profiles = {"send_money": ToolProfile(effect="pay", sink="external", idempotent=True, audience=(BANK,))}
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles)
    session = authz.session(subject="alice", task="Pay the bill")
    session.decide("send_money", {"n": 1})
    ((_, ticket),) = next(iter(session._open.values()))
    credential = ticket.credential(BANK, dpop=True)
    verifier = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks())
    loop = asyncio.new_event_loop()
    out: list[tuple[str, float, float | None]] = []
    for name, status in (("offline", Offline()), ("ledger", LedgerStatus(authz.ledger))):
        server = ResourceServer(
            verifier=verifier, audience=BANK, tenant="default", status=status, proofs=ProofVerifier(public_url=BANK)
        )
        proofs = iter([credential.headers("POST", URL) for _ in range(calls + 20)])

        def look(server: ResourceServer = server, proofs: Any = proofs) -> None:
            headers = [(k.lower(), v) for k, v in next(proofs).items()]
            loop.run_until_complete(server.authenticate(method="POST", path="/payments", headers=headers))

        out.append((f"a service's look at a bound token, {name}", *medians(calls, look), None))
    loop.close()
    ticket.conclude()
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    calls = parser.parse_args().calls
    table = Table(title=f"Credentials: CPU, median of {calls} calls, µs")
    for column in ("what", "ours", "PyJWT alone", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, ours, library in rows(calls):
        ratio = ("–", "–") if library is None else (f"{library:.1f}", f"{ours / library:.2f}")
        table.add_row(what, f"{ours:.1f}", *ratio)
    console = Console(width=110)
    console.print(table)
    console.print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores, PyJWT {jwt.__version__}")


if __name__ == "__main__":
    main()
