"""Names that this process gives its own agents; nobody vouches for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import quote

from langchain_runtime_authz.errors import ConfigError

__all__ = ["StaticIdentity"]

BASE: Final = "urn:langchain-runtime-authz:agent"


class StaticIdentity:
    """Ids `<base>:<path joined by />`, percent-encoded (RFC 3986 §2.1), so that no two paths share one.

    Args:
        base: what the ids begin with: a URN (RFC 8141) of your own.

    Raises:
        ConfigError: `base` is empty or a SPIFFE id: those come from an attestation.
    """

    attested = False

    def __init__(self, base: str = BASE) -> None:
        if not isinstance(base, str) or not base or base.lower().startswith("spiffe:"):
            msg = "`base` must be a URN of your own; a SPIFFE id needs an attested identity"
            raise ConfigError(msg)
        self.base = base

    def agent_id(self, path: tuple[str, ...]) -> str:
        """The id of the agent at `path`, root first."""
        return f"{self.base}:{_joined(path)}" if path else self.base


@lru_cache(maxsize=1024)
def _joined(path: tuple[str, ...]) -> str:
    return "/".join(quote(name, safe="", errors="surrogatepass") for name in path)
