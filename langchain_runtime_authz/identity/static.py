"""Name agents by their path in this process, without an attestation."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol, runtime_checkable
from urllib.parse import quote

from langchain_runtime_authz.errors import ConfigError

BASE: Final = "urn:langchain-runtime-authz:agent"


@runtime_checkable
class Identity(Protocol):
    """Names agents. It is asked on the hot path, so it is pure unless it is attested."""

    @property
    def attested(self) -> bool:
        """True if a party outside this process vouches for the name."""

    @property
    def expires_at(self) -> float | None:
        """Epoch seconds at which the identity ends, 0 if it is unproven; `None` if it does not end.

        No lease and no token outlives it.
        """

    def agent_id(self, path: tuple[str, ...]) -> str:
        """Return the id of the agent at `path`, root first. Two paths never share one."""


class StaticIdentity:
    """Ids `<base>:<path joined by />`, percent-encoded (RFC 3986 §2.1) so that no two paths share one.

    Args:
        base: the start of each id: a URN (RFC 8141) of your own.

    Raises:
        ConfigError: `base` is empty or a SPIFFE id, which needs an attestation.
    """

    attested = False
    expires_at = None

    def __init__(self, base: str = BASE) -> None:
        if not isinstance(base, str) or not base or base.lower().startswith("spiffe:"):
            raise ConfigError("`base` must be a URN of your own; a SPIFFE id needs an attested identity")
        self.base = base

    def agent_id(self, path: tuple[str, ...]) -> str:
        return f"{self.base}:{joined(path)}" if path else self.base


@lru_cache(maxsize=1024)
def joined(path: tuple[str, ...]) -> str:
    """Return a path as text, such that no two paths share one."""
    return "/".join(quote(name, safe="", errors="surrogatepass") for name in path)
