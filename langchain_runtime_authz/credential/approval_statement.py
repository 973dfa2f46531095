"""An approval as a person's signed statement: a JWT of its own `typ`, about one question alone.

The person signs (their own key), or a service that authenticated them signs for them (`Approvers`). It
names the question, the tenant, the thread, the epoch and the exact arguments, so that it is worth
nothing for another call, after a correction, for another tenant, or a second time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from jwt.utils import base64url_encode

from langchain_runtime_authz.credential.jws import Jws, is_signed, public_key, read, refuse
from langchain_runtime_authz.credential.keys import ALGORITHMS, Signer, SigningKey
from langchain_runtime_authz.credential.token import (
    APPROVAL,
    APPROVAL_TYP,
    AUDIENCE,
    EXPIRES_AT,
    ISSUED_AT,
    ISSUER,
    SUBJECT,
    TENANT,
    TOKEN_ID,
)
from langchain_runtime_authz.credential.verifier import HEADER, MAX_LEEWAY, KeySource
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["Approvers", "Question", "Statement", "sign_statement"]

MAX_LIFE: Final = 300  # seconds for which a statement may be presented
HERE: Final = "urn:langchain-runtime-authz:approvals"  # `iss` of what `Approvers` itself signs

Verdict = Literal["approve", "deny"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a statement is about; every field is in it and must be the ledger's."""

    id: str
    issuer: str
    tenant: str
    graph: str
    thread: str
    epoch: int
    tool: str
    args_digest: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was verified: who (`type:id`) says what, by whose word, and its own id."""

    approver: str
    verdict: Verdict
    issuer: str
    jti: str


def sign_statement(
    signer: Signer,
    *,
    approver: str,
    verdict: Verdict,
    question: Question,
    jti: str,
    issuer: str | None = None,
    now: float | None = None,
    expires_in: int = MAX_LIFE,
) -> str:
    """A statement as a compact JWS (RFC 7515 §7.1).

    Args:
        signer: the approver's key, or that of the service that authenticated them.
        approver: `type:id`, like `user:bob`.
        verdict: what they say.
        question: on what.
        jti: unique.
        issuer: of a service; the approver by default.
        now: epoch seconds.
        expires_in: seconds, at most 300.
    """
    at = int(time.time() if now is None else now)
    claims = {
        ISSUER: approver if issuer is None else issuer,
        SUBJECT: approver,
        AUDIENCE: question.issuer,
        ISSUED_AT: at,
        EXPIRES_AT: at + expires_in,
        TOKEN_ID: jti,
        TENANT: question.tenant,
        APPROVAL: _about(question, verdict),
    }
    head = base64url_encode(_compact({"typ": APPROVAL_TYP, "alg": signer.alg, "kid": signer.kid}))
    body = head + b"." + base64url_encode(_compact(claims))
    return (body + b"." + base64url_encode(signer.sign(body))).decode()


class Approvers:
    """Whose statements are believed.

    Args:
        people: `type:id` → that person's public keys: a JWK set (RFC 7517 §5) or a `KeySource`. A key
            speaks for its person alone.
        services: `iss` → keys of a service that authenticates people and signs what they say.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        people: Mapping[str, Mapping[str, Any] | KeySource] | None = None,
        *,
        services: Mapping[str, Mapping[str, Any] | KeySource] | None = None,
    ) -> None:
        self._people, self._services = dict(people or {}), dict(services or {})
        if not all(p.startswith("user:") and p != "user:" for p in self._people):
            msg = "approvers are people: name each as `user:<id>`"
            raise ConfigError(msg)
        if self._people.keys() & self._services.keys() or HERE in self._services:
            msg = "a service may not bear the name of a person, nor ours"
            raise ConfigError(msg)
        # Signs for people whom the application, or an identity provider, authenticated in this process.
        self._own = SigningKey.generate()

    def state(self, approver: str, verdict: Verdict, question: Question, jti: str, *, now: float) -> str:
        """A statement for somebody who was authenticated here."""
        return sign_statement(
            self._own,
            approver=approver,
            verdict=verdict,
            question=question,
            jti=jti,
            issuer=HERE,
            now=now,
        )

    def verify(self, statement: str, question: Question, *, now: float | None = None) -> Statement:
        """What a statement says on `question`.

        Raises:
            CredentialError: `approval_statement`: not one of a known approver, altered, expired, or about
                something else; `approval_approver`: of no person; `keys_unavailable`. Never quotes it.
        """
        jws = _read(statement)
        return self._believed(jws, self._key(jws), question, now)

    async def averify(self, statement: str, question: Question, *, now: float | None = None) -> Statement:
        """Like `verify`, without blocking the event loop."""
        jws = _read(statement)
        source = self._source(jws)
        jwk = await source.aget(jws.header["kid"]) if isinstance(source, KeySource) else self._key(jws)
        return self._believed(jws, jwk, question, now)

    def _source(self, jws: Jws) -> Mapping[str, Any] | KeySource:
        issuer = jws.claims.get(ISSUER)
        if not isinstance(issuer, str):
            refuse("its `iss` is no string", _CODE)
        if issuer == HERE:
            return {"keys": [self._own.public_jwk()]}
        found = self._services.get(issuer)
        if found is None:
            found = self._people.get(issuer)
            if found is None or jws.claims.get(SUBJECT) != issuer:
                refuse("its approver is not known", _CODE)
        return found

    def _key(self, jws: Jws) -> Mapping[str, Any] | None:
        source, kid = self._source(jws), jws.header["kid"]
        if not isinstance(source, Mapping):
            return source.get(kid)
        keys = source.get("keys")
        found = [k for k in keys if isinstance(k, Mapping) and k.get("kid") == kid] if isinstance(keys, list) else []
        return found[0] if len(found) == 1 else None

    def _believed(self, jws: Jws, jwk: Mapping[str, Any] | None, question: Question, now: float | None) -> Statement:
        key = public_key(jwk, jws.alg) if jwk is not None else None
        if key is None or not is_signed(jws, key):
            refuse("it is not signed with a key of its approver", _CODE)
        claims, at = jws.claims, time.time() if now is None else now
        issued, expires = claims.get(ISSUED_AT), claims.get(EXPIRES_AT)
        if type(issued) is not int or type(expires) is not int or not 0 < expires - issued <= MAX_LIFE:
            refuse(f"it must live at most {MAX_LIFE} seconds", _CODE)
        if not issued - MAX_LEEWAY <= at < expires + MAX_LEEWAY:
            refuse("it is not valid now", _CODE)
        about = claims.get(APPROVAL)
        verdict: Verdict = "deny" if isinstance(about, dict) and about.get("decision") == "deny" else "approve"
        same = about == _about(question, verdict) and claims.get(TENANT) == question.tenant
        if not same or claims.get(AUDIENCE) != question.issuer:
            refuse("it is about another question", _CODE)
        approver, jti = claims.get(SUBJECT), claims.get(TOKEN_ID)
        if not isinstance(jti, str) or not jti:
            refuse("it has no `jti`", _CODE)
        if not isinstance(approver, str) or not approver.startswith("user:") or approver == "user:":
            raise CredentialError(Code.APPROVAL_APPROVER, "only a person approves")
        return Statement(approver, verdict, str(claims[ISSUER]), jti)

    def __repr__(self) -> str:
        return f"<Approvers {len(self._people)} people, {len(self._services)} services>"


_CODE: Final = Code.APPROVAL_STATEMENT


def _read(statement: object) -> Jws:
    jws = read(statement, typ=APPROVAL_TYP, members=HEADER, algorithms=ALGORITHMS, code=_CODE)
    if not isinstance(jws.header["kid"], str):
        refuse("its `kid` is not a string", _CODE)
    return jws


def _about(question: Question, verdict: Verdict) -> dict[str, Any]:
    return {
        "id": question.id,
        "decision": verdict,
        "graph": question.graph,
        "thread": question.thread,
        "epoch": question.epoch,
        "tool": question.tool,
        "args_digest": question.args_digest,
    }


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
