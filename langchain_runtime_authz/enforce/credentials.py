"""The credential of one call: minted at its permit, when the tool asks, dead when the call ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from langchain_runtime_authz.audit.record import mint_record
from langchain_runtime_authz.credential.token import Credential, Task, TokenRequest
from langchain_runtime_authz.errors import Code, CredentialError

if TYPE_CHECKING:
    from langchain_runtime_authz.enforce.engine import Run
    from langchain_runtime_authz.enforce.step import Judged

__all__ = ["minter"]

TOKEN_TTL: Final = 60  # seconds
NO_TASK: Final = "none"  # a claim may not be empty; a run without a human text has no task


def minter(run: Run, judged: Judged, jtis: Mapping[str, str], claimed_at: float) -> Callable[[str], Credential]:
    """What mints the tokens of one claimed call; `jtis` by audience.

    `claimed_at` is ledger time of the claim; what passed since is measured here, so that minting
    needs no other look at the ledger.
    """
    from langchain_runtime_authz.credential.issuer import mint  # loads the signing library

    since = time.monotonic()
    engine = run.engine
    agent = engine.identity.agent_id(run.agent)
    delegators = tuple(engine.identity.agent_id(run.agent[:i]) for i in range(len(run.agent) - 1, 0, -1))

    def issue(audience: str) -> Credential:
        if run.over:  # the call never came back, and the run went on without it
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
        now = int(claimed_at + (time.monotonic() - since))
        request = TokenRequest(
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
        )
        credential = mint(engine.issuer, request, verifier=engine.verifier)
        engine.audit.write(
            mint_record(
                now=now,
                decision_id=judged.decision.decision_id,
                jti=jtis[audience],
                audience=audience,
                expires_at=now + TOKEN_TTL,
                epoch=run.epoch,
                run_id=run.run_id,
                agent_id=agent,
            ),
        )
        return credential

    return issue
