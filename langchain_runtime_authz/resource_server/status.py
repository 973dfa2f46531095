"""Find out if a token is still live, from the ledger, over HTTP, or not at all.

| status | when a correction, the end of a call or run, a revocation or a withdrawn key reaches the service |
|---|---|
| `LedgerStatus` | at once |
| `introspection.Introspection` | at once |
| `Offline` | when the token expires: `exp` and the leeway, at most 65 seconds; keys: see `jwks.JwksClient` |
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.ledger.base import Ledger, Query
from langchain_runtime_authz.pep.call_credential import key_scope
from langchain_runtime_authz.pep.kill_switch import KillSwitch


@runtime_checkable
class Status(Protocol):
    """Tells if a token is live."""

    async def status(self, credential: Credential) -> str:
        """Return `live`; any other text, or an exception, refuses the token."""


class LedgerStatus:
    """Asks the ledger about call, run, epoch, revocation and withdrawn keys.

    Args:
        ledger: the ledger that holds the claims of the calls.
        kill_switch: while it is engaged, no token is live.
    """

    def __init__(self, ledger: Ledger, kill_switch: KillSwitch | None = None) -> None:
        self._ledger, self._kill_switch = ledger, kill_switch

    async def status(self, credential: Credential) -> str:
        scope = key_scope(credential.tenant, credential.issuer, credential.kid)
        killed = self._kill_switch is not None and self._kill_switch.engaged
        if killed or (await self._ledger.aload(scope, Query())).revoked:
            return "revoked"
        return await self._ledger.astatus(credential.tenant, credential.jti)


class Offline:
    """Asks nobody. A token is accepted until it expires, even if its call ends before."""

    async def status(self, credential: Credential) -> str:
        return "live"
