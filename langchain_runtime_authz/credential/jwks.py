"""A JWK set (RFC 7517 §5) fetched over HTTP, with a bounded cache.

What is believed is at most `max_age` seconds old: a key that was withdrawn is refused by then, also
where the endpoint does not answer any more. What is asked for is bounded too: nobody can make this
process fetch by sending tokens with keys that do not exist.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import httpx

from langchain_runtime_authz._http import Fetcher, checked_url
from langchain_runtime_authz.credential.jws import KEY_TYPES, public_key
from langchain_runtime_authz.credential.kept import Kept
from langchain_runtime_authz.credential.keyring import CACHE_AGE
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["JwksClient", "usable_keys"]

MAX_KEYS: Final = 64  # in one set; a longer one is a lie

Keys = Mapping[str, Mapping[str, Any]]


class JwksClient:
    """The keys of one issuer, for a `Verifier`. Safe to use from many threads and event loops.

    A copy is fetched anew when half of `max_age` has passed (who asks meanwhile gets the old one), and
    for a key that it does not hold, at most every `min_refresh` seconds.

    Args:
        url: of the key set: https, or of this machine. Redirects are not followed.
        max_age: seconds for which a copy is believed.
        min_refresh: least seconds between two fetches.
        timeout: seconds for one fetch.
        max_bytes: of the document.
        client: for the blocking form.
        async_client: for the other; it belongs to one event loop.
        monotonic: seconds, for tests.

    Raises:
        ConfigError: an argument is wrong. Nothing is fetched yet.
    """

    def __init__(
        self,
        url: str,
        *,
        max_age: float = CACHE_AGE,
        min_refresh: float = 1.0,
        timeout: float = 2.0,
        max_bytes: int = 64 * 1024,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < min_refresh <= max_age:
            msg = "`min_refresh` must be positive and at most `max_age`"
            raise ConfigError(msg)
        self._url = checked_url(url, "url")
        self._keys = Kept(
            Fetcher(timeout=timeout, max_bytes=max_bytes, client=client, async_client=async_client),
            self._url,
            _HEADERS,
            lambda document, _: usable_keys(document),
            max_age=max_age,
            min_refresh=min_refresh,
            monotonic=monotonic,
        )

    def get(self, kid: str) -> Mapping[str, Any] | None:
        """The key of that name, `None` where the issuer has none.

        Raises:
            CredentialError: `keys_unavailable`: there is no copy that may still be believed.
        """
        return _named(self._keys.get(lambda keys: kid in keys), kid)

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        """Like `get`."""
        return _named(await self._keys.aget(lambda keys: kid in keys), kid)

    def __repr__(self) -> str:
        return f"<JwksClient {self._url}>"


_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json"}


def _named(keys: Keys | None, kid: str) -> Mapping[str, Any] | None:
    if keys is None:
        raise CredentialError(Code.KEYS_UNAVAILABLE)
    return keys.get(kid)


def usable_keys(document: Mapping[str, Any] | None) -> Keys | None:
    """The public signing keys of a key set by `kid`; `None` where it is no key set.

    Keys that are private, symmetric, weak, for something else or malformed are left out, as RFC 7517 §5
    asks; so are all of those that share a name.
    """
    keys = document.get("keys") if document is not None else None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS or not all(isinstance(jwk, dict) for jwk in keys):
        return None
    names = Counter(jwk["kid"] for jwk in keys if isinstance(jwk.get("kid"), str))
    return MappingProxyType(
        {
            jwk["kid"]: MappingProxyType(jwk)
            for jwk in keys
            if isinstance(jwk.get("kid"), str) and names[jwk["kid"]] == 1 and _is_usable(jwk)
        },
    )


def _is_usable(jwk: Mapping[str, Any]) -> bool:
    return any(public_key(jwk, alg) is not None for alg in KEY_TYPES)
