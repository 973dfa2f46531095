"""Accept an identity provider's tokens in a service: those that an exchange gives, or a user's own. Extra: `fastapi`.

The provider's token names the user and the client. It says nothing about the task, the step and its arguments, so such a
service cannot demand them: prefer `ResourceServer` and the call's own token if the service can verify it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.identity.oidc import Caller, OidcVerifier
from langchain_runtime_authz.resource_server.dependency import BearerServer, bearer_token
from langchain_runtime_authz.resource_server.introspection import Introspection
from langchain_runtime_authz.resource_server.metadata import ResourceMetadata, checked_scopes


class ProviderServer(BearerServer[Caller]):
    """Decides which callers of an identity provider may use this service. A FastAPI dependency: `Depends(server)`.

    Args:
        verifier: verifies the provider's access tokens for this service; without `client_id`, so no ID tokens.
        scopes: that a token must have. A refusal names them (RFC 6750 §3.1).
        status: the provider's introspection endpoint, asked for each request: it knows of a logout at once. Without it,
            a token is accepted until it expires.
        metadata: of this service (RFC 9728).
        realm: of the challenge.
    """

    def __init__(
        self,
        verifier: OidcVerifier,
        *,
        scopes: Iterable[str] = (),
        status: Introspection | None = None,
        metadata: ResourceMetadata | None = None,
        realm: str = "api",
    ) -> None:
        if not isinstance(verifier, OidcVerifier):
            raise ConfigError("`verifier` is an `OidcVerifier`")
        if verifier.client_id is not None:
            raise ConfigError("a service takes no ID tokens: its verifier has an `audience` and no `client_id`")
        super().__init__(realm=realm, metadata=metadata)
        self._verifier, self._status, self._scopes = verifier, status, checked_scopes(scopes)

    def for_scopes(self, *scopes: str) -> ProviderServer:
        """Return the same server, which demands these scopes too."""
        narrowed = copy.copy(self)
        narrowed._scopes = checked_scopes((*self._scopes, *scopes))  # noqa: SLF001  (its own class)
        return narrowed

    async def authenticate(self, *, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Caller:
        scheme, token = bearer_token([value for name, value in headers if name == "authorization"])
        if scheme != "bearer":
            raise CredentialError(Code.CREDENTIAL_MISSING)
        caller = await self._verifier.acaller(token)
        if self._status is not None and await self._status.ask(token, caller.token_id) != "live":
            raise CredentialError(Code.CREDENTIAL_REVOKED)
        if not caller.scopes.issuperset(self._scopes):
            raise CredentialError(Code.INSUFFICIENT_SCOPE)
        return caller

    def _demanded(self) -> tuple[str, ...]:
        return self._scopes
