"""Whether a token still lives: asked of the ledger, asked over HTTP, or not asked at all.

| | a correction, the end of a call or run, a revocation or a withdrawn key reaches the service |
|---|---|
| `LedgerStatus` | at once |
| `introspection.Introspection` | at once |
| `Offline` | when the token expires: `exp` and the leeway, at most 65 seconds; keys: `jwks.JwksClient` |
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from langchain_runtime_authz.credential.token import MAX_TTL, Credential
from langchain_runtime_authz.credential.verifier import LEEWAY
from langchain_runtime_authz.ledger.base import Ledger, Query
from langchain_runtime_authz.pep.credentials import key_scope
from langchain_runtime_authz.pep.kill_switch import KillSwitch

__all__ = ["LedgerStatus", "Offline", "Status"]


@runtime_checkable
class Status(Protocol):
    """Who knows whether a token lives."""

    @property
    def window(self) -> int:
        """Seconds for which a token may be accepted after its end."""
        ...

    async def status(self, credential: Credential) -> str:
        """`live`, or any other word. Raising counts as not knowing, and the token is refused."""
        ...


class LedgerStatus:
    """Asks the ledger: call, run, task's epoch, revocation, and whether the key was withdrawn.

    Args:
        ledger: the one in which the calls are claimed.
        kill_switch: while it is engaged no token lives.
    """

    window: Final = 0

    def __init__(self, ledger: Ledger, kill_switch: KillSwitch | None = None) -> None:
        self._ledger, self._kill_switch = ledger, kill_switch

    async def status(self, credential: Credential) -> str:
        """See `Status.status`."""
        if self._kill_switch is not None and self._kill_switch.engaged:
            return "revoked"
        scope = key_scope(credential.tenant, credential.issuer, credential.kid)
        if (await self._ledger.aload(scope, Query())).revoked:
            return "revoked"
        return await self._ledger.astatus(credential.tenant, credential.jti)

    def __repr__(self) -> str:
        return "<LedgerStatus>"


class Offline:
    """Asks nobody. A token lives until it expires: what happens to its call meanwhile is not seen."""

    window: Final = MAX_TTL + LEEWAY

    async def status(self, credential: Credential) -> str:
        """See `Status.status`."""
        return "live"

    def __repr__(self) -> str:
        return f"<Offline window={self.window}>"
