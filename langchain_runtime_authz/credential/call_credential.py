"""The credential that a tool gets for its call, and the minting of its token."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from langchain_runtime_authz.credential.token import ISSUED_AT, MARGIN, Credential, Sealed
from langchain_runtime_authz.errors import Code, CredentialError

if TYPE_CHECKING:  # `dpop_proof` loads the signing library
    from langchain_runtime_authz.credential.dpop_proof import ProofKey


class CallCredential(Sealed):
    """The credential of one call, and the call's idempotency key.

    Text forms and pickles hold neither the token nor its key. `copy` and `deepcopy` return the same object.

    Attributes:
        token: the compact JWT. Send it to `audience`; never return or log it.
        claims: the claims, read-only.
        audience: the one resource that may accept the token.
        expires_at: epoch seconds.
        idempotency_key: stable over retry, replay, fork and thread copy of this call.
        scheme: `Bearer` (RFC 6750), or `DPoP` (RFC 9449) if the token is bound to a key.
    """

    __slots__ = ("_key", "audience", "claims", "expires_at", "idempotency_key", "kept_until", "scheme", "token")

    def __init__(self, credential: Credential, idempotency_key: str, since: float, key: ProofKey | None = None) -> None:
        self.token, self.claims = credential.token, credential.claims
        self.audience, self.expires_at = credential.audience, credential.expires_at
        self.idempotency_key, self._key = idempotency_key, key
        self.scheme = "Bearer" if key is None else "DPoP"
        # In this process's monotonic time: `expires_at` is by the ledger's clock, which may differ from the local one.
        self.kept_until = since + self.expires_at - credential.claims[ISSUED_AT] - MARGIN

    def headers(self, method: str, url: str, nonce: str | None = None) -> dict[str, str]:
        """Return the headers that authorize one request: the token and, for DPoP, a proof.

        `url` is absolute, and `nonce` is the server's last `DPoP-Nonce`.
        """
        headers = {"Authorization": f"{self.scheme} {self.token}"}
        if self._key is not None:
            headers["DPoP"] = self._key.proof(method, url, token=self.token, nonce=nonce)
        return headers

    def __repr__(self) -> str:
        return f"<CallCredential audience={self.audience!r}>"


class Minting:
    """A token being minted. Concurrent requests for the same audience wait for it."""

    __slots__ = ("_loop", "key", "over", "since")

    def __init__(self, *, dpop: bool) -> None:
        self.over: Future[None] = Future()
        self.since = time.monotonic()
        self.key: ProofKey | None = None
        self._loop = _running_loop()
        if dpop:
            from langchain_runtime_authz.credential.dpop_proof import ProofKey

            self.key = ProofKey()

    @property
    def jkt(self) -> str | None:
        return None if self.key is None else self.key.jkt

    def wait(self) -> None:
        """Wait for the token. Raises `CredentialError` in the event loop that mints it."""
        if self._loop is not None and self._loop is _running_loop():
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, "another task is minting it; await `acredential`")
        self.over.result()

    async def await_(self) -> None:
        """Wait for the token without blocking the event loop."""
        # Shielded: a cancelled caller must not cancel the minting for others.
        await asyncio.shield(asyncio.wrap_future(self.over))


def _running_loop() -> object:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
