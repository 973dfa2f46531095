"""A JWK set (RFC 7517 §5) fetched over HTTP, with a bounded cache.

What is believed is at most `max_age` seconds old: a key that was withdrawn is refused by then, also
where the endpoint does not answer any more. What is asked for is bounded too: nobody can make this
process fetch by sending tokens with keys that do not exist.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import httpx

from langchain_runtime_authz.credential.fetch import Answer, Fetcher, checked_url
from langchain_runtime_authz.credential.jws import KEY_TYPES, public_key
from langchain_runtime_authz.credential.keyring import CACHE_AGE
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["JwksClient", "usable_keys"]

MAX_KEYS: Final = 64  # in one set; a longer one is a lie
OK: Final = 200

Keys = Mapping[str, Mapping[str, Any]]


class _Copy(NamedTuple):
    keys: Keys
    at: float  # monotonic


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
        self._max_age, self._min_refresh = max_age, min_refresh
        self._fetcher = Fetcher(timeout=timeout, max_bytes=max_bytes, client=client, async_client=async_client)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._copy: _Copy | None = None
        self._asked = float("-inf")
        self._pending: Future[None] | None = None

    def get(self, kid: str) -> Mapping[str, Any] | None:
        """The key of that name, `None` where the issuer has none.

        Raises:
            CredentialError: `keys_unavailable`: there is no copy that may still be believed.
        """
        known, pending, mine = self._look(kid)
        if mine is not None:
            try:
                self._keep(self._fetcher.send("GET", self._url, headers=_HEADERS))
            finally:
                self._done(mine)
        elif pending is not None and known is None:
            pending.result()
        return self._found(kid)

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        """Like `get`."""
        known, pending, mine = self._look(kid)
        if mine is not None:
            try:
                self._keep(await self._fetcher.asend("GET", self._url, headers=_HEADERS))
            finally:
                self._done(mine)
        elif pending is not None and known is None:
            # Shielded: who gives up waiting does not end the fetch for the others.
            await asyncio.shield(asyncio.wrap_future(pending))
        return self._found(kid)

    def _look(self, kid: str) -> tuple[Mapping[str, Any] | None, Future[None] | None, Future[None] | None]:
        """The key where it is known; the fetch under way; the fetch that the caller has to make."""
        with self._lock:
            now = self._monotonic()
            copy = self._copy
            fresh = copy is not None and now - copy.at < self._max_age
            known = copy.keys.get(kid) if copy is not None and fresh else None
            due = known is None or copy is None or now - copy.at >= self._max_age / 2
            if self._pending is not None:
                return known, self._pending, None
            if not due or now - self._asked < self._min_refresh:
                return known, None, None
            self._asked = now
            self._pending = Future()
            return known, None, self._pending

    def _keep(self, answer: Answer | None) -> None:
        keys = usable_keys(answer.body) if answer is not None and answer.status == OK else None
        if keys is not None:
            with self._lock:
                # Its age counts from when it was asked for: what is old by then was old at its source.
                self._copy = _Copy(keys, self._asked)

    def _done(self, mine: Future[None]) -> None:
        with self._lock:
            self._pending = None
        mine.set_result(None)

    def _found(self, kid: str) -> Mapping[str, Any] | None:
        with self._lock:
            copy = self._copy
            if copy is None or not self._monotonic() - copy.at < self._max_age:
                raise CredentialError(Code.KEYS_UNAVAILABLE)
            return copy.keys.get(kid)

    def __repr__(self) -> str:
        return f"<JwksClient {self._url}>"


_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json"}


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
