"""A cache of documents fetched over HTTP, and its use for JWK sets (RFC 7517).

A copy is used for at most `max_age` seconds, even if the server stops answering. So a withdrawn key is refused after
`max_age` at the latest. Fetches are at least `min_refresh` seconds apart, even if many tokens name unknown keys.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, Unpack

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz._http import Answer, Connection, Fetcher
from langchain_runtime_authz.credential.jws import KEY_TYPES, public_key
from langchain_runtime_authz.credential.keyring import CACHE_AGE
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

OK: Final = 200
MAX_KEYS: Final = 64  # in one set; a longer one is refused
_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json"}

T = TypeVar("T")
Keys = Mapping[str, Mapping[str, Any]]


class CachedDocument(Generic[T]):
    """A cached document at a URL, fetched again after half of `max_age`. Thread-safe.

    `read` receives the fetched object (`None` if the fetch failed) and the last value. If `read` returns `None`, the
    last value stays. Works on any event loop.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        read: Callable[[Mapping[str, Any] | None, T | None], T | None],
        *,
        max_age: float,
        min_refresh: float,
    ) -> None:
        self._fetcher, self._read = fetcher, read
        self._max_age, self._min_refresh = max_age, min_refresh
        self._lock = threading.Lock()
        self._copy: tuple[T, float] | None = None  # the value, and the time of its request
        self._fetched_at = float("-inf")
        self._pending: Future[None] | None = None

    def wanted(self, holds: Callable[[T], bool] = lambda _: True) -> Flow[T | None]:
        """Return the value, or `None`. Fetch it first if it is old, or `holds` refuses it."""
        known, pending, mine = self._look(holds)
        if mine is not None:
            try:
                self._store((yield Perform(self._fetcher.send, self._fetcher.asend, "GET", _HEADERS)))
            finally:
                with self._lock:
                    self._pending = None
                mine.set_result(None)
        elif pending is not None and not known:
            # Shielded: a cancelled caller must not cancel the fetch for others.
            yield Perform(pending.result, lambda: asyncio.shield(asyncio.wrap_future(pending)))
        copy = self._copy
        return None if copy is None or not monotonic() - copy[1] < self._max_age else copy[0]

    def _look(self, holds: Callable[[T], bool]) -> tuple[bool, Future[None] | None, Future[None] | None]:
        """Return a triple: is the copy usable, the fetch to wait for, the fetch to make."""
        with self._lock:
            now, copy = monotonic(), self._copy
            age = float("inf") if copy is None else now - copy[1]
            known = copy is not None and age < self._max_age and holds(copy[0])
            if self._pending is not None:
                return known, self._pending, None
            if (known and age < self._max_age / 2) or now - self._fetched_at < self._min_refresh:
                return known, None, None
            self._fetched_at, self._pending = now, Future()
            return known, None, self._pending

    def _store(self, answer: Answer | None) -> None:
        copy = self._copy  # only one fetch at a time replaces the copy
        body = answer.body if answer is not None and answer.status == OK else None
        if (value := self._read(body, None if copy is None else copy[0])) is not None:
            # The age counts from the request, because the document may have changed since then.
            self._copy = value, self._fetched_at


class JwksClient:
    """The keys of one issuer, for a `Verifier` in any thread and event loop.

    Args:
        url: URL of the key set: https, or a server on this machine. Redirects are not followed.
        max_age: seconds for which a copy is used.
        min_refresh: minimum seconds between two fetches.
        connection: `timeout` (2.0), `ca_file`, `client_cert`, `tls`, `proxy`: see `_http.Connection`.
    """

    def __init__(
        self, url: str, *, max_age: float = CACHE_AGE, min_refresh: float = 1.0, **connection: Unpack[Connection]
    ) -> None:
        if not 0 < min_refresh <= max_age:
            raise ConfigError("`min_refresh` must be positive and at most `max_age`")
        self.url, fetcher = url, Fetcher(url, **connection)
        self.keys = CachedDocument(
            fetcher, lambda document, _: usable_keys(document), max_age=max_age, min_refresh=min_refresh
        )

    def _get(self, kid: str) -> Flow[Mapping[str, Any] | None]:
        """Return the key `kid`, or `None`. Raises `keys_unavailable` without a key set."""
        keys = yield from self.keys.wanted(lambda keys: kid in keys)
        if keys is None:
            raise CredentialError(Code.KEYS_UNAVAILABLE)
        return keys.get(kid)

    get, aget = both(_get)


def usable_keys(document: Mapping[str, Any] | None) -> Keys | None:
    """Return usable keys by unique `kid`; `None` if `document` is not a JWK set."""
    keys = document.get("keys") if document is not None else None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS or not all(isinstance(jwk, dict) for jwk in keys):
        return None
    named = [jwk for jwk in keys if isinstance(jwk.get("kid"), str)]
    names = Counter(jwk["kid"] for jwk in named)
    usable = [jwk for jwk in named if names[jwk["kid"]] == 1 and any(public_key(jwk, alg) for alg in KEY_TYPES)]
    return MappingProxyType({jwk["kid"]: MappingProxyType(jwk) for jwk in usable})
