"""Prove a workload by the token that its platform projects into a file, as Kubernetes and CI systems do.

The platform replaces the file before the token expires. A new content is verified within a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote

from langchain_runtime_authz.credential import token as claim
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError
from langchain_runtime_authz.identity.oidc import OidcVerifier
from langchain_runtime_authz.identity.workload import Proof, WorkloadIdentity

EVERY: Final = 1.0  # seconds between two looks at the file


class TokenFileIdentity(WorkloadIdentity):
    """The identity of this process, as a token in a file proves it. The file is read again when it changes.

    Args:
        path: of the file.
        verifier: verifies it: the issuer is the platform, and `client_id` the audience for which the token is
            projected. A token that speaks for an agent proves nothing here.
        wait: seconds for which the constructor waits for the first proof.
        every: seconds between two looks at the file.
    """

    def __init__(self, path: str | Path, verifier: OidcVerifier, *, wait: float = 5.0, every: float = EVERY) -> None:
        if not isinstance(verifier, OidcVerifier) or not every > 0:
            raise ConfigError("`verifier` is an `OidcVerifier`, and `every` a number of seconds")
        self._path, self._verifier, self._every = Path(path), verifier, every
        self._token = ""
        super().__init__(wait=wait)

    def token(self) -> str:
        """Return the token as it was last verified: for `TokenExchange(client_assertion=...)`. Never log it.

        Raises:
            AuthzError: `workload_unproven`.
        """
        if not self.attested:
            self._unproven()
        return self._token

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._look()
            self._closed.wait(self._every)

    def _look(self) -> None:
        try:
            with self._path.open("rb") as file:
                token = file.read(claim.MAX_TOKEN + 1).decode("ascii", "replace").strip()
        except OSError as exc:
            self._miss(f"the token file cannot be read: {exc.strerror}")
            return
        if token == self._token and self.attested:
            return
        try:
            caller = self._verifier.caller(token)
        except AuthzError as exc:
            (self._miss if exc.code == Code.IDENTITY_UNAVAILABLE else self._refuse)(str(exc.detail))
            return
        if caller.subject.type == "agent":
            self._refuse("the token speaks for an agent, not for a workload")
            return
        self._token = token
        self._accept(Proof(f"{self._verifier.issuer}#{quote(caller.subject.id, safe=':')}", caller.expires_at))
