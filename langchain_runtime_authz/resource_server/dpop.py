"""Verify DPoP proofs (RFC 9449), with or without server nonces. Accept each once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from langchain_runtime_authz._url import normal_target
from langchain_runtime_authz.credential.dpop_proof import MAX_AGE, read_proof
from langchain_runtime_authz.credential.token import LEEWAY
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

MAX_REPLAYS: Final = 100_000
NONCE_AGE: Final = 300  # seconds


class Replays(Protocol):
    """Remembers used proofs. All processes of a service must share one store of them."""

    def first(self, key: str, proof_id: str, until: float, now: float) -> bool:
        """Return True if `proof_id` is new; remember it through `until` (epoch seconds).

        Of two calls with one id, only one may return True. Raise an error if the store fails, and `proof_limit` if
        `key` (the thumbprint of the holder's key) has too many proofs. Compare proofs by `proof_id` alone.
        """
        ...


class MemoryReplays:
    """Remembers used proofs in this process.

    Args:
        max_entries: proofs remembered at the same time. While all of them are valid, a new proof is refused.
        max_per_key: proofs of one holder's key; by default a hundredth of `max_entries`. `CallAuth` makes a key for
            each call, so this bounds one call's requests in `MAX_AGE` seconds. To fill the memory for everybody, an
            attacker needs a hundred permitted calls, each of them on record.
    """

    def __init__(self, max_entries: int = MAX_REPLAYS, max_per_key: int | None = None) -> None:
        each = max(1, max_entries // 100) if max_per_key is None else max_per_key
        if max_entries < 1 or not 1 <= each <= max_entries:
            raise ConfigError("`max_entries` must be positive, and `max_per_key` between 1 and that")
        self._max, self._max_per_key = max_entries, each
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, str]] = {}
        self._of_key: dict[str, int] = {}

    def first(self, key: str, proof_id: str, until: float, now: float) -> bool:
        with self._lock:
            known = self._seen.get(proof_id)
            if known is not None and now <= known[0]:
                return False
            # All entries live equally long, so the oldest come first.
            while self._seen and next(iter(self._seen.values()))[0] < now:
                self._forget(next(iter(self._seen)))
            # Check the bound of this key first, so that one holder cannot cause refusals of other holders.
            if self._of_key.get(key, 0) >= self._max_per_key:
                raise CredentialError(Code.PROOF_LIMIT)
            if len(self._seen) >= self._max:
                raise CredentialError(Code.STATUS_UNAVAILABLE, "the replay cache is full")
            if proof_id in self._seen:
                self._forget(proof_id)
            self._seen[proof_id] = (until, key)
            self._of_key[key] = self._of_key.get(key, 0) + 1
            return True

    def _forget(self, proof_id: str) -> None:
        _, key = self._seen.pop(proof_id)
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]


class Nonces:
    """Makes server nonces (§8, §9), each a time and its HMAC, so that none is stored.

    `secret` has 32 bytes or more and is the same in all processes of a service; random by default.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        if len(self._secret) < hashlib.sha256().digest_size:
            raise ConfigError("`secret` must have 32 bytes or more")

    def issue(self, now: float) -> str:
        """Return the nonce to send as `DPoP-Nonce`."""
        stamp = struct.pack(">q", int(now))
        return base64.urlsafe_b64encode(stamp + hmac.digest(self._secret, stamp, "sha256")[:16]).decode()

    def accepts(self, nonce: str | None, now: float) -> bool:
        """Return True if `nonce` was issued here in the last `NONCE_AGE` seconds."""
        if nonce is None:
            return False
        try:
            (made,) = struct.unpack(">q", base64.urlsafe_b64decode(nonce)[:8])
        except (ValueError, struct.error):
            return False
        genuine = hmac.compare_digest(self.issue(made).encode(), nonce.encode("utf-8", "surrogatepass"))
        return genuine and now - NONCE_AGE < made <= now + LEEWAY


class ProofVerifier:
    """Accepts each DPoP proof once.

    Args:
        public_url: the URL that clients use for this process's `/`: `https://bank.example`, or with the prefix that a
            proxy removes from the path. A proof must name this URL followed by the path that arrives here. Headers
            like `Host` are not read, because the sender chooses them. Leave out the prefix of a `Mount` or of
            `uvicorn --root-path`, because the path that arrives here contains it.
        nonces: makes server nonces. If given, a proof must hold a current nonce; else only `iat` bounds a proof's age.
        replays: remembers used proofs; by default `MemoryReplays`, which serves only one process.
        clock: epoch seconds.
    """

    def __init__(
        self,
        *,
        public_url: str,
        nonces: Nonces | None = None,
        replays: Replays | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        target = normal_target(public_url)
        if target is None or any(mark in public_url for mark in "?#"):
            raise ConfigError("`public_url` must be an absolute URL without a query, such as https://bank.example")
        self._url = target.rstrip("/")
        self._nonces, self._clock = nonces, clock
        self._replays: Replays = replays if replays is not None else MemoryReplays()

    def verify(self, proof: str, *, method: str, path: str, token: str, jkt: str) -> None:
        """Check that a request's proof is valid and unused, or raise `CredentialError`."""
        # A request target may be anything (RFC 9112 §3.2). Without the slash it could extend the host's name.
        if not path.startswith("/"):
            raise CredentialError(Code.PROOF_INVALID, "the request is for no path of this service")
        now, nonces = self._clock(), self._nonces
        request: Any = {"htm": method, "htu": self._url + path, "token": token, "jkt": jkt}
        if nonces is not None:
            request["is_nonce"] = lambda nonce: nonces.accepts(nonce, now)
        jti = read_proof(proof, now=now, **request)
        # Ask the store last, so that only the holder of the key can fill it. The key is part of the id, so that nobody
        # can use up the id of another holder's proof.
        proof_id = hashlib.sha256(f"{jkt} {jti}".encode("utf-8", "surrogatepass")).hexdigest()
        try:
            first = self._replays.first(jkt, proof_id, now + MAX_AGE + LEEWAY, now)
        except CredentialError:
            raise
        except Exception as exc:
            raise CredentialError(Code.STATUS_UNAVAILABLE, f"used proofs: {type(exc).__name__}") from exc
        if not first:
            raise CredentialError(Code.PROOF_REPLAYED)

    def nonce(self) -> str | None:
        """Return a new server nonce, or `None` if proofs need none."""
        return None if self._nonces is None else self._nonces.issue(self._clock())
