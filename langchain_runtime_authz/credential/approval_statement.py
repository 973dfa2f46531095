"""An approver's signed statement about one question: a JWT with its own `typ`.

The approver's key signs the statement. The statement names the question, tenant, thread, epoch, exact arguments and
the message of a denial. So it is not valid for any other call, tenant, epoch or message. A question takes one answer,
so a statement counts once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz.credential import token as names
from langchain_runtime_authz.credential.jws import is_signed_by, parse_jws, refuse, sign_compact
from langchain_runtime_authz.credential.signer import ALGORITHMS, Signer
from langchain_runtime_authz.credential.verifier import KeySet, KeySource, key_source
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.facts.task import content_digest

MAX_LIFE: Final = 300  # seconds for which a statement may be presented
HERE: Final = (
    "urn:langchain-runtime-authz:approvals"  # `issuer` of answers that need no signature: `authz.approve(by=)`
)
_CODE: Final = Code.APPROVAL_STATEMENT
_STATED: Final = ("id", "graph", "thread", "epoch", "tool", "args_digest")

Verdict = Literal["approve", "deny"]


@dataclass(frozen=True, slots=True)
class Question:
    """The fields of a question that a statement signs. They must equal the ledger's."""

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
    """An answer that counts: approver (`type:id`), verdict, `iss` and `jti`."""

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
    message: str = "",
    now: float | None = None,
    expires_in: int = MAX_LIFE,
) -> str:
    """Return a statement as a compact JWS.

    `signer`: the key of the approver. `message`: the same text as for `deny_approval`. `expires_in`: seconds, at most
    300.
    """
    at = int(time.time() if now is None else now)
    who = {names.ISSUER: approver, names.SUBJECT: approver, names.TOKEN_ID: jti}
    times = {names.ISSUED_AT: at, names.EXPIRES_AT: at + expires_in}
    about = {names.AUDIENCE: question.issuer, names.TENANT: question.tenant}
    answer = {names.APPROVAL: _about(question, verdict, message)}
    return sign_compact(names.APPROVAL_TYP, {**who, **times, **about, **answer}, signer)


class Approvers:
    """The people whose statements are accepted.

    `people`: public keys by user, as `user:<id>`: a JWK set (RFC 7517 §5) or a `KeySource`. A key signs for its user
    only.
    """

    def __init__(self, people: Mapping[str, KeySet | KeySource] | None = None) -> None:
        self._people = {name: _key_source_or_empty(keys) for name, keys in (people or {}).items()}
        if not all(name.startswith("user:") and name != "user:" for name in self._people):
            raise ConfigError("approvers are people: name each as `user:<id>`")

    def _verify(
        self, statement: str, question: Question, *, message: str = "", now: float | None = None
    ) -> Flow[Statement]:
        """Verify that a statement answers `question`, with `message` as its reason.

        Raises `CredentialError`: `approval_statement` (invalid, or about another question) or `keys_unavailable`. No
        error quotes the statement.
        """
        jws = parse_jws(statement, typ=names.APPROVAL_TYP, algorithms=ALGORITHMS, code=_CODE)
        claims, at = jws.claims, time.time() if now is None else now
        approver = claims.get(names.SUBJECT)
        if not isinstance(approver, str) or claims.get(names.ISSUER) != approver or approver not in self._people:
            refuse("its approver is not known", _CODE)
        keys = self._people[approver]
        if not is_signed_by(jws, (yield Perform(keys.get, keys.aget, jws.header["kid"]))):
            refuse("it is not signed with a key of its approver", _CODE)
        issued, expires = claims.get(names.ISSUED_AT), claims.get(names.EXPIRES_AT)
        if type(issued) is not int or type(expires) is not int or not 0 < expires - issued <= MAX_LIFE:
            refuse(f"it must live at most {MAX_LIFE} seconds", _CODE)
        begins = claims.get(names.NOT_BEFORE, issued)  # optional (RFC 7519 §4.1.5); `sign_statement` leaves it out
        if type(begins) is not int or not max(issued, begins) - names.LEEWAY <= at < expires + names.LEEWAY:
            refuse("it is not valid now", _CODE)
        about = claims.get(names.APPROVAL)
        verdict: Verdict = "deny" if isinstance(about, dict) and about.get("decision") == "deny" else "approve"
        same = about == _about(question, verdict, message) and claims.get(names.TENANT) == question.tenant
        if not same or claims.get(names.AUDIENCE) != question.issuer:
            refuse("it is about another question, or has another message", _CODE)
        jti = claims.get(names.TOKEN_ID)
        if not isinstance(jti, str) or not jti:
            refuse("it has no `jti`", _CODE)
        return Statement(approver, verdict, approver, jti)

    verify, averify = both(_verify)


def _key_source_or_empty(keys: KeySet | KeySource) -> KeySource:
    malformed = isinstance(keys, Mapping) and not isinstance(keys.get("keys"), list)
    return key_source({"keys": []} if malformed else keys)


def _about(question: Question, verdict: Verdict, message: str) -> dict[str, Any]:
    # A denial's message becomes part of the task, in the approver's name. The digest binds it to the signature, so that
    # a service that transmits the statement cannot replace it.
    said = {"message_digest": content_digest(message)} if message else {}
    return {"decision": verdict, **{name: getattr(question, name) for name in _STATED}, **said}
