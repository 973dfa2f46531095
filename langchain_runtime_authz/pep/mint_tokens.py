"""Mint and record the tokens of calls and child agents, and record refusals."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from langchain_runtime_authz.audit.record import mint_record, refused_mint_record
from langchain_runtime_authz.credential.authorization_details import authorization_details
from langchain_runtime_authz.credential.token import Credential, TaskClaim, TokenRequest
from langchain_runtime_authz.errors import Code, CredentialError
from langchain_runtime_authz.facts.task import Task as PinnedTask
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.ledger.base import Query, Scope
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.call import DecidedCall
from langchain_runtime_authz.pep.lease import renew_lease
from langchain_runtime_authz.pep.run import LEASE_TTL, Flow, Load, Perform, Run, Write, adrive, agent_id, drive
from langchain_runtime_authz.telemetry.spans import record_event

TOKEN_TTL: Final = 60  # seconds
SALT: Final = 16  # bytes (RFC 9901 §9.3)
KEYS: Final = "urn:langchain-runtime-authz:keys"
Mint = Callable[[str, str | None], tuple[Any, ...]]  # takes audience and key thumbprint; returns the minting effect
NO_TASK: Final = "none"  # claim for a run without user texts, because claims cannot be empty


class RefusedMints(tuple[Any, "DecidedCall | None", "float | None"]):
    """Records in the audit log that a token was refused.

    The tuple holds the run, the call (None outside a call), and ledger time minus monotonic time (None if unknown).
    """

    __slots__ = ()

    def refused(self, code: str, audience: str | None) -> tuple[Any, ...]:
        """Return the effect (`_flow`) that records a refusal with this code."""
        return Perform(drive, adrive, self[0].pep, self._flow(code, audience))

    def _flow(self, code: str, audience: str | None) -> Flow[None]:
        run, decided, offset = self
        known = decided is not None and audience in decided.call.profile.audience
        reason = code
        if code == Code.AUDIENCE:
            reason = "outside_grant" if known or audience is None else "outside_profile"
        decision_id, tool = (decided.decision.decision_id, decided.call.tool) if decided is not None else ("", "")
        detail: dict[str, Any] = {"decision_id": decision_id, "audience": audience if known else None, "tool": tool}
        about: dict[str, Any] = {"reason": reason, "run_id": run.run_id, "epoch": run.epoch or 0, "agent": run.agent}
        whole = run if isinstance(run, Run) else None
        record_event("mint_refused", whole.scope if whole else None, detail, about, run=whole)
        now = time.time() if offset is None else offset + time.monotonic()
        # An audience that the profile does not declare is the tool's own text, so record only its digest.
        asked = None if known or audience is None else content_digest(audience)
        yield (Write, partial(refused_mint_record, now=now, asked_digest=asked, **detail, **about))


def audiences_of(run: Run, declared: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `declared` audiences that the run's grant allows."""
    # INVARIANT: the grant limits audiences, even if the policy permits the call.
    allowed = run.grant.audiences if run.grant is not None else None
    return declared if allowed is None else tuple(a for a in declared if a in allowed)


def key_scopes(tenant: str, issuer: str, kid: str) -> tuple[Scope, Scope]:
    """Return the scopes that revoke a key: of all tenants, and of one."""
    return Scope(KEYS, issuer, KEYS, kid), Scope(tenant, issuer, KEYS, kid)


def mint_for_agent(
    run: Run, now: float, task: PinnedTask, mandate: Mandate | None, decision_id: str, **request: Any
) -> Flow[Credential]:
    """Mint and record a token of the run's agent, or raise `CredentialError`."""
    from langchain_runtime_authz.credential.issuer import mint_credential  # this loads the signing library

    pep, identity, ends = run.pep, run.pep.identity, run.pep.identity.expires_at
    asked = TokenRequest(
        subject=run.subject,
        tenant=run.scope.tenant,
        agent=agent_id(identity, run.agent),
        # Nearest agent first; agents of other servers last.
        delegators=(
            *(agent_id(identity, run.agent[:i]) for i in range(len(run.agent) - 1, 0, -1)),
            *run.entry.upstream,
        ),
        txn=run.run_id,
        task=TaskClaim(
            id=task.id or NO_TASK,
            epoch=run.epoch,
            digest=task.digest or NO_TASK,
            mandate=mandate.digest if mandate is not None else None,
        ),
        issued_at=int(now),
        expires_at=int(now) + TOKEN_TTL if ends is None else min(int(now) + TOKEN_TTL, int(ends)),
        **request,
    )
    pep.refuse_if_stopped(now)
    credential = yield from mint_credential(pep.issuer, asked, verifier=pep.verifier)
    record_event("mint", run.scope, {"decision_id": decision_id, "audience": asked.audience}, {}, run=run)
    ids: dict[str, Any] = {"decision_id": decision_id, "jti": credential.jti, "run_id": run.run_id, "epoch": run.epoch}
    of_token: dict[str, Any] = {"audience": asked.audience, "expires_at": credential.expires_at, "kid": credential.kid}
    yield (Write, partial(mint_record, now=now, agent_id=asked.agent, jkt=asked.cnf_jkt, **ids, **of_token))
    return credential


def status_check(run: Run, jtis: Mapping[str, str], committed_at: float) -> Callable[[str], tuple[Any, ...]]:
    """Return a function: audience → effect (`_flow`) that checks the audience's token.

    The effect raises `CredentialError` if the call was stopped. `jtis`: audience → id of the token.
    """
    since = time.monotonic() - committed_at

    def check_live(jti: str) -> Flow[None]:
        pep = run.pep
        pep.refuse_if_stopped(time.time())
        try:
            status = yield Perform(pep.ledger.status, pep.ledger.astatus, run.scope.tenant, jti)
            # Services that ask the ledger refuse tokens of a lapsed lease. So renew the lease in a long call.
            if status in ("live", "ended") and run.expires_at - time.monotonic() + since < LEASE_TTL / 2:
                yield from renew_lease(run, (yield Load(run.scope, Query(jti=run.jti, agent=run.agent))))
        except Exception as exc:
            raise CredentialError(pep.deny_for_failure(exc, run).reason) from exc
        if status in ("revoked", "stale"):  # `ended` is fine: a tool may outlast its lease
            raise CredentialError(Code.CREDENTIAL_REVOKED)

    return lambda audience: Perform(drive, adrive, run.pep, check_live(jtis[audience]))


def minter_for_call(run: Run, decided: DecidedCall, jtis: Mapping[str, str], committed_at: float) -> Mint:
    """Return the function that mints a token for the call and an audience of `jtis`."""
    since = time.monotonic()

    def mint(audience: str, jkt: str | None) -> Flow[Credential]:
        if run.over:  # the run was closed while the call is still running
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
        now = committed_at + (time.monotonic() - since)
        call, mandate, standing, approval = decided.call, decided.mandate, decided.standing, decided.approval
        asked: dict[str, Any] = {"audience": audience, "tool": call.tool, "grant": run.grant, "jti": jtis[audience]}
        how: dict[str, Any] = {"standing": standing.standing, "salt": secrets.token_urlsafe(SALT)}
        how["step"] = standing.step if standing.standing == "covered" else None
        how["source"], how["mandate"] = (mandate.source, mandate.digest) if mandate is not None else (None, None)
        how["approved"] = approval is not None and approval.state == "approved"
        details = authorization_details(call.profile, call.tool, call.args, **how)
        asked |= {"details": tuple(details), "cnf_jkt": jkt}
        return (yield from mint_for_agent(run, now, decided.task, mandate, decided.decision.decision_id, **asked))

    return lambda audience, jkt: Perform(drive, adrive, run.pep, mint(audience, jkt))
