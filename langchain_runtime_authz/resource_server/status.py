"""Check if a token is live: its call and run go on, its task and key are valid.

| status | asks | refuses a token that has ended |
|---|---|---|
| `LedgerStatus` | the ledger | at once |
| `introspection.Introspection` | the issuer, over HTTP | at once |
| `Offline` | nobody | when it expires, after at most 65 seconds; if its key was withdrawn, see `jwks.JwksClient` |
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.ledger.base import Ledger, Query
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.mint_tokens import key_scopes


@runtime_checkable
class Status(Protocol):
    """Tells if a token is live."""

    async def status(self, credential: Credential) -> str:
        """Return `live`; any other text, or an exception, refuses the token."""


class LedgerStatus:
    """Asks the ledger if a token's call, lease, epoch and signing key are still valid.

    Args:
        ledger: the ledger that holds the claims of the calls.
        kill_switch: while it is engaged, no token is live.
    """

    def __init__(self, ledger: Ledger, kill_switch: KillSwitch | None = None) -> None:
        self._ledger, self._kill_switch = ledger, kill_switch

    async def status(self, credential: Credential) -> str:
        if self._kill_switch is not None and self._kill_switch.engaged:
            return "revoked"
        for scope in key_scopes(credential.tenant, credential.issuer, credential.kid):
            if (await self._ledger.aload(scope, Query())).revoked:
                return "revoked"
        return await self._ledger.astatus(credential.tenant, credential.jti)


class Offline:
    """Asks nobody: a token is accepted until it expires, even if its call has ended."""

    async def status(self, credential: Credential) -> str:
        return "live"
