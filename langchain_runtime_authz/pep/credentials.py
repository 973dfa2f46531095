"""The credential of one call: minted at its permit, when the tool asks, dead when the call ends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from langchain_runtime_authz.audit.record import mint_record, refused_mint_record
from langchain_runtime_authz.credential.token import Credential, Task, TokenRequest
from langchain_runtime_authz.errors import Code, CredentialError
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.pep.engine import Engine, Flow, Record, adrive, drive

if TYPE_CHECKING:
    from langchain_runtime_authz.pep.call import DecidedCall
    from langchain_runtime_authz.pep.engine import Run

__all__ = ["Mint", "Minter", "RefusedMints", "audiences_of", "key_scope", "minter"]

TOKEN_TTL: Final = 60  # seconds
KEYS: Final = "urn:langchain-runtime-authz:keys"
NO_TASK: Final = "none"  # a claim may not be empty; a run without a human text has no task


@dataclass(frozen=True, slots=True)
class Mint:
    """Effect: have one request signed."""

    request: TokenRequest

    def run(self, engine: Engine) -> Credential:
        """Perform it, blocking."""
        _check_killed(engine)
        from langchain_runtime_authz.credential.issuer import mint  # loads the signing library

        return mint(engine.issuer, self.request, verifier=engine.verifier)

    async def arun(self, engine: Engine) -> Credential:
        """Perform it."""
        _check_killed(engine)
        from langchain_runtime_authz.credential.issuer import amint

        return await amint(engine.issuer, self.request, verifier=engine.verifier)


def _check_killed(engine: Engine) -> None:
    if engine.killed:
        raise CredentialError(Code.KILLED)


class Minter(NamedTuple):
    """What mints the tokens of one call: for an audience, bound to a key's thumbprint or to none."""

    mint: Callable[[str, str | None], Credential]
    amint: Callable[[str, str | None], Awaitable[Credential]]


class Asking(Protocol):
    """Whose code asks for a token: an agent's place (`Run`), or a run beside every agent."""

    @property
    def engine(self) -> Engine: ...
    @property
    def run_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def agent(self) -> tuple[str, ...]: ...


class RefusedMints:
    """Puts on record what was asked for and not minted, by a call or, without one, by whatever else runs.

    `claimed_at` is ledger time of the call's claim, as in `minter`.
    """

    __slots__ = ("_call", "_declared", "_offset", "_run")

    def __init__(self, run: Asking, judged: DecidedCall | None = None, claimed_at: float | None = None) -> None:
        self._run = run
        self._offset = None if claimed_at is None else claimed_at - time.monotonic()
        self._call = (judged.call.tool, judged.decision.decision_id) if judged is not None else ("", "")
        self._declared = judged.call.profile.audience if judged is not None else ()

    def refused(self, code: str, audience: str | None) -> None:
        """See `credential.ticket.Refusals`."""
        drive(self._run.engine, self._flow(code, audience))

    async def arefused(self, code: str, audience: str | None) -> None:
        """See `credential.ticket.Refusals`."""
        await adrive(self._run.engine, self._flow(code, audience))

    def _flow(self, code: str, audience: str | None) -> Flow[None]:
        tool, decision_id = self._call
        named = audience if audience in self._declared else None
        if code == Code.AUDIENCE:
            reason = "outside_grant" if named is not None or audience is None else "outside_profile"
        else:
            reason = code
        # What a tool asks for is its own text: by digest, where it is none of the profile's.
        digest = None if named is not None or audience is None else content_digest(audience)
        yield Record(
            refused_mint_record,
            now=time.time() if self._offset is None else self._offset + time.monotonic(),
            decision_id=decision_id,
            reason=reason,
            audience=named,
            asked_digest=digest,
            tool=tool,
            epoch=self._run.epoch,
            run_id=self._run.run_id,
            agent=self._run.agent,
        )


def audiences_of(run: Run, declared: tuple[str, ...]) -> tuple[str, ...]:
    """The audiences of a profile that the run's grant holds too."""
    # INVARIANT: no token for an audience outside the grant, whatever the policy permits.
    allowed = run.grant.audiences if run.grant is not None else None
    return declared if allowed is None else tuple(a for a in declared if a in allowed)


def key_scope(tenant: str, issuer: str, kid: str) -> Scope:
    """Where a ledger keeps what is known of an issuer's key: a revoked scope is a compromised key."""
    return Scope(tenant, issuer, KEYS, kid)


def minter(run: Run, judged: DecidedCall, jtis: Mapping[str, str], claimed_at: float) -> Minter:
    """What mints the tokens of one claimed call; `jtis` by audience.

    `claimed_at` is ledger time of the claim; what passed since is measured here, so that minting
    needs no other look at the ledger.
    """
    since = time.monotonic()
    engine = run.engine
    agent = engine.identity.agent_id(run.agent)
    delegators = tuple(engine.identity.agent_id(run.agent[:i]) for i in range(len(run.agent) - 1, 0, -1))

    def flow(audience: str, jkt: str | None) -> Flow[Credential]:
        if run.over:  # the call never came back, and the run went on without it
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
        now = int(claimed_at + (time.monotonic() - since))
        credential: Credential = yield Mint(
            TokenRequest(
                subject=run.subject,
                tenant=run.scope.tenant,
                agent=agent,
                delegators=delegators,
                audience=audience,
                txn=run.run_id,
                task=Task(id=judged.task.id or NO_TASK, epoch=run.epoch, digest=judged.task.digest or NO_TASK),
                tool=judged.call.tool,
                grant=run.grant,
                jti=jtis[audience],
                issued_at=now,
                expires_at=now + TOKEN_TTL,
                cnf_jkt=jkt,
            ),
        )
        # A mint that is not recorded is not handed out.
        yield Record(
            mint_record,
            now=now,
            decision_id=judged.decision.decision_id,
            jti=credential.jti,
            audience=audience,
            expires_at=credential.expires_at,
            epoch=run.epoch,
            run_id=run.run_id,
            agent_id=agent,
            kid=credential.kid,
            jkt=jkt,
        )
        return credential

    return Minter(
        lambda audience, jkt: drive(engine, flow(audience, jkt)),
        lambda audience, jkt: adrive(engine, flow(audience, jkt)),
    )
