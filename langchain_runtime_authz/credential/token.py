"""Name a token's claims, and define `TokenRequest` and `Credential`.

Evolution rule: a claim may be added. A claim is never renamed or removed, and never changes its type or meaning.
Verifiers ignore unknown claims. The JOSE header holds exactly `typ`, `alg` and `kid`. Any other change needs another
`typ`. `tests/unit_tests/credential/test_token.py` pins the list.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import reduce
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Self, final

from pydantic import Field, JsonValue, ValidationError

from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import Code, CredentialError
from langchain_runtime_authz.evaluation import MAX_DEPTH, Model, Subject
from langchain_runtime_authz.grant import Grant

TYP: Final = "runtime-authz+jwt"  # explicit typing (RFC 8725 §3.11): a JWT of another `typ` is refused
# RFC 9396 §2: `type` of authorization_details
GRANT_TYPE: Final = "urn:langchain-runtime-authz:grant"
CALL_TYPE: Final = "urn:langchain-runtime-authz:call"  # see `credential.authorization_details`

APPROVAL_TYP: Final = "runtime-authz-approval+jwt"  # see `credential.approval_statement`

# RFC 7519 §4.1
ISSUER: Final = "iss"
SUBJECT: Final = "sub"  # the user or service, never the agent
AUDIENCE: Final = "aud"  # always one string: the resource of this call
EXPIRES_AT: Final = "exp"
NOT_BEFORE: Final = "nbf"  # this package never sets it, but checks it
ISSUED_AT: Final = "iat"
TOKEN_ID: Final = "jti"  # noqa: S105  (a name)
# RFC 8693 §4.1, §4.3: the acting agent; nested delegators are information, never authority
ACTOR: Final = "act"
CLIENT_ID: Final = "client_id"
# RFC 9396 §9.1: the attenuated grant; RFC 7800 §3.1 with RFC 9449 §6.1: the holder's key
AUTHORIZATION_DETAILS: Final = "authorization_details"
CONFIRMATION: Final = "cnf"
JKT: Final = "jkt"
# draft-ietf-oauth-transaction-tokens: the id of the run
TRANSACTION: Final = "txn"
# Ours
TENANT: Final = "tenant"
SUBJECT_TYPE: Final = "sub_type"
TASK: Final = "task"  # {id, epoch, digest, mandate}; the mandate's digest, if the task has one
APPROVAL: Final = "approval"  # in a statement: {id, decision, graph, thread, epoch, tool, args_digest}
# Members of the detail of type `CALL_TYPE`, next to RFC 9396's `actions` and `identifier`
STEP: Final = "step"  # id of the mandate's step that covers the call, or null
STANDING: Final = "standing"  # as in `context.call.mandate`
SOURCE: Final = "source"  # who compiled the mandate, or null
MANDATE: Final = "mandate"  # its digest, or null
APPROVED: Final = "approved"  # true if an approver approved the call; absent otherwise
REACHES: Final = "reaches"  # audiences for which the token may be exchanged; absent if none
SALT: Final = "salt"  # of the digests
# A detail has exactly one of these three.
ARGUMENTS: Final = "arguments"  # values by name
ARGUMENT_DIGESTS: Final = "argument_digests"  # digests by name
ARGUMENTS_DIGEST: Final = "arguments_digest"  # one digest over all arguments
OPEN_ARGUMENTS: Final = "open_arguments"  # names of all other arguments that the call may have; absent for a read

MAX_DELEGATORS: Final = 32  # agents in an `act` chain, in addition to the acting one
MAX_TTL: Final = 60  # seconds from `iat` to `exp`
LEEWAY: Final = 5  # seconds by which clocks may differ
MARGIN: Final = 5  # seconds before its expiry in which a token is not reused
MAX_TOKEN: Final = 16 * 1024  # characters
REDACTED: Final = "[credential]"

Name = Annotated[str, Field(min_length=1, max_length=2048)]


class TaskClaim(Model):
    """The user's task at the moment of the call. `mandate` is a digest."""

    id: Name
    epoch: Annotated[int, Field(ge=0)]
    digest: Name
    mandate: Name | None = None


class TokenRequest(Model):
    """A request to an issuer to sign a token for one permitted call. Holds no secret.

    Attributes:
        agent: id of the acting agent: `client_id` and `act.sub`.
        delegators: ids of the agents that delegated to `agent`, nearest first; informational.
        audience: the one resource that may accept the token.
        txn: id of the run.
        tool: the tool whose call was permitted. If `action` is `agent/invoke`: the invoked agent of another server.
        details: further authorization details (`credential.authorization_details`), each with a `type`.
        issued_at: epoch seconds.
        expires_at: epoch seconds, at most 60 after `issued_at` (the issuer enforces it).
        cnf_jkt: RFC 7638 thumbprint of the holder's key, if the token is bound to one.
    """

    subject: Subject
    tenant: Name
    agent: Name
    delegators: Annotated[tuple[Name, ...], Field(max_length=MAX_DELEGATORS)] = ()
    audience: Name
    txn: Name
    task: TaskClaim
    tool: Name
    action: Literal["tools/call", "agent/invoke"] = "tools/call"
    details: Annotated[tuple[dict[str, JsonValue], ...], Field(max_length=1)] = ()
    grant: Grant | None = None
    jti: Name
    issued_at: int
    expires_at: int
    cnf_jkt: Name | None = None

    def to_json(self) -> bytes:
        """Return the request as JSON, for a remote issuer."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_json(cls, data: str | bytes) -> TokenRequest:
        """Parse the JSON of `to_json` strictly, or raise `credential_unavailable`."""
        try:
            parse_object(data)  # refuses duplicate members, of which pydantic keeps the last
            return cls.model_validate_json(data)
        except ValidationError as exc:
            where = ".".join(map(str, exc.errors()[0]["loc"])) or "the document"
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, f"request to the issuer: `{where}`") from None
        except ValueError:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, "request to the issuer: not JSON") from None


class _Text:
    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, credential: Credential, owner: type[Credential]) -> str:
        return str(credential.claims[self._name])


_SEAL: Final = object()


class Sealed:
    """Base of secrets. A copy is the same object; a pickle is read as a fixed text."""

    __slots__ = ()
    _pickled: ClassVar = REDACTED

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, (self._pickled,))


@final
class Credential(Sealed):
    """A token that was verified, or issued to this process.

    Only `Verifier.verify` and `issuer.mint_credential` make one, so an unverified credential cannot exist. Text forms
    and pickles never hold the token: a pickle yields a constant string. A copy is the object itself.

    Attributes:
        token: the compact JWT. Send it to `audience`; never return or log it.
        claims: the claims, read-only: mappings and tuples instead of objects and arrays.
        subject: the user or service on whose behalf the agent acts (`sub`). The user `alice` and the service `alice` are
            two: `subject_type` (`sub_type`) tells them apart, and `principal` has both.
        tenant: the tenant whose data the call concerns (`tenant`).
        audience: the one resource that may accept the token (`aud`).
        issuer: the issuer (`iss`).
        jti: id of the token.
        txn: id of the run.
    """

    __slots__ = ("claims", "token")
    subject = _Text(SUBJECT)
    subject_type = _Text(SUBJECT_TYPE)
    tenant = _Text(TENANT)
    audience = _Text(AUDIENCE)
    issuer = _Text(ISSUER)
    jti = _Text(TOKEN_ID)
    txn = _Text(TRANSACTION)

    def __init__(self, token: str, claims: Mapping[str, Any], *, _seal: object = None) -> None:
        if _seal is not _SEAL:
            raise TypeError("a Credential is made by `Verifier.verify` only")
        self.token, self.claims = token, freeze_claims(claims)

    @property
    def principal(self) -> str:
        """Return the subject's type and id, like `user:alice`."""
        return f"{self.subject_type}:{self.subject}"

    @property
    def actor(self) -> str:
        """Return the id of the acting agent (`act.sub`)."""
        return self.actors[0]

    @property
    def actors(self) -> tuple[str, ...]:
        """Return the `act` chain. Only the first agent, which acts, has authority."""
        found: list[str] = []
        act = self.claims[ACTOR]
        while isinstance(act, Mapping) and len(found) <= MAX_DEPTH:
            found.append(str(act.get(SUBJECT)))
            act = act.get(ACTOR)
        return tuple(found)

    @property
    def tools(self) -> tuple[str, ...]:
        """Return the tools for whose call the token was minted (`authorization_details`)."""
        return self._identifiers("tools/call")

    @property
    def agents(self) -> tuple[str, ...]:
        """Return the agents of this service that the token's holder may invoke."""
        return self._identifiers("agent/invoke")

    def _identifiers(self, action: str) -> tuple[str, ...]:
        details = [d for d in self.claims[AUTHORIZATION_DETAILS] if d.get("type") == GRANT_TYPE]
        named = [d.get("identifier") for d in details if action in d.get("actions", ())]
        return tuple(name for name in named if isinstance(name, str))

    @property
    def grant(self) -> Grant:
        """Return what all grants in the token permit, until the token expires.

        Raises `CredentialError` (`credential_invalid`) if a grant in the token cannot be read.
        """
        details = json.loads(json.dumps(self.claims[AUTHORIZATION_DETAILS], default=dict))
        try:
            grants = [Grant.model_validate(detail["grant"]) for detail in details if "grant" in detail]
        except ValidationError:
            raise CredentialError(Code.CREDENTIAL_INVALID, "its grant cannot be read") from None
        return reduce(Grant.meet, grants, Grant(expires_at=self.expires_at))

    @property
    def kid(self) -> str:
        """Return the RFC 7638 thumbprint of the issuer's key that signed the token."""
        header = self.token.partition(".")[0]
        return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])

    @property
    def jkt(self) -> str | None:
        """Return the holder's key thumbprint (`cnf.jkt`); `None` for an unbound token."""
        cnf = self.claims.get(CONFIRMATION)
        return None if cnf is None else str(cnf[JKT])

    @property
    def epoch(self) -> int:
        """Return the epoch of the task (`task.epoch`)."""
        return int(self.claims[TASK]["epoch"])

    @property
    def expires_at(self) -> int:
        """Return the expiry in epoch seconds (`exp`)."""
        return int(self.claims[EXPIRES_AT])

    def __repr__(self) -> str:
        return f"<Credential jti={self.jti!r} audience={self.audience!r}>"


def seal_credential(token: str, claims: Mapping[str, Any]) -> Credential:
    """Return a `Credential`. Only `Verifier` and `mint_credential` may call this."""
    return Credential(token, claims, _seal=_SEAL)


def freeze_claims(value: Any, depth: int = 0) -> Any:
    """Return `value` as read-only mappings and tuples; `ValueError` beyond 34 levels."""
    if depth > MAX_DELEGATORS + 2:  # a full `act` chain fits
        raise ValueError("nested too deeply")
    if isinstance(value, Mapping):
        return MappingProxyType({k: freeze_claims(v, depth + 1) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze_claims(v, depth + 1) for v in value)
    return value
