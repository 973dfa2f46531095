"""Requests for tokens, and tokens that a key really signed, whatever they say."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_runtime_authz.credential.authorization_details import authorization_details
from langchain_runtime_authz.credential.issuer import claims_of
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.ticket import CodeScope, Ticket, current_scope
from langchain_runtime_authz.credential.token import TYP, TaskClaim, TokenRequest
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.tool_profile import ToolProfile

NOW = 1_764_000_000
BANK = "https://bank.example"
PAYMENT = {"recipient": "DE21500105170123456789", "amount": 98.7, "note": "December"}
PAYS = ToolProfile(
    effect="pay", critical={"recipient": "principal", "amount": "amount", "account.id": "object"}, when=("on",),
    text=("note",), free=("size",),
)


@contextmanager
def ticket_scope(ticket: Ticket | None, refusals: Any = None) -> Iterator[Any]:
    """Make `ticket` the current one, as the execution of its tool does."""
    before = current_scope.get()
    current_scope.set(CodeScope(ticket, refusals, before.run, before.counts, before.task))
    try:
        yield ticket
    finally:
        current_scope.set(before)


def a_request(**changes: Any) -> TokenRequest:
    """One call of `send_money` by a payer that a supervisor delegated to."""
    fields: dict[str, Any] = {
        "subject": Subject(type="user", id="alice"), "tenant": "acme",
        "agent": "urn:langchain-runtime-authz:agent:supervisor/payer",
        "delegators": ("urn:langchain-runtime-authz:agent:supervisor",), "audience": BANK, "txn": "run-1",
        "task": TaskClaim(id="t", epoch=2, digest="sha256:00"), "tool": "send_money", "jti": "j-1", "issued_at": NOW,
        "expires_at": NOW + 60,
    }
    return TokenRequest(**{**fields, **changes})


def call_details(args: Any = PAYMENT, profile: ToolProfile = PAYS, tool: str = "send_money", **facts: Any) -> Any:
    """What a token says of a payment that step `pay` covers."""
    said = {"step": "pay", "standing": "covered", "source": "words", "mandate": "sha256:01", "salt": "salt", **facts}
    return tuple(authorization_details(profile, tool, args, **said))


def b64(data: bytes | str) -> str:
    """Base64url without padding."""
    data = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(key: SigningKey, issuer: str, claims: object = None, header: object = None) -> str:
    """A token that `key` really signed."""
    head = {"alg": key.alg, "kid": key.kid, "typ": TYP} if header is None else header
    body = claims_of(a_request(), issuer) if claims is None else claims
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (head, body)]
    signing_input = ".".join(map(b64, texts)).encode()
    return f"{signing_input.decode()}.{b64(key.sign(signing_input))}"
