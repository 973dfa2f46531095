"""The keys of one issuer over time: next, active, retired, compromised.

Rotation without downtime: the next key is published before it signs, and a retired key stays published
until its last token has expired; so a verifier whose copy of the key set is at most `cache_age`
seconds old knows every key that signs. A compromised key leaves the set at once and never comes back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NoReturn, get_args

from langchain_runtime_authz.credential.jws import public_key
from langchain_runtime_authz.credential.keys import Signer, SigningKey, thumbprint
from langchain_runtime_authz.credential.token import MAX_TTL
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["Held", "KeyInfo", "KeyRing", "KeyState", "Withdrawal", "hold", "like"]

KeyState = Literal["next", "active", "retired", "compromised"]

CACHE_AGE: Final = 60  # seconds for which a verifier may keep a copy of the key set (`jwks.JwksClient`)
KEEP_RETIRED: Final = 2 * MAX_TTL  # seconds: the last token's life, with room for clocks
MAX_KEPT: Final = 64  # keys of the past that a ring remembers


class KeyInfo(NamedTuple):
    """One key of a ring: RFC 7638 thumbprint, JWS algorithm, state, epoch seconds of entering it."""

    kid: str
    alg: str
    state: KeyState
    since: float


class Withdrawal(NamedTuple):
    """What became of a compromised key.

    `active` signs now. From `refused_by` on (epoch seconds) every verifier whose copy of the key set
    is at most `cache_age` old refuses the key; who asks the ledger or the issuer refuses it at once.
    """

    kid: str
    active: str
    refused_by: float


@dataclass(frozen=True, slots=True)
class Held:
    """A key of a ring: what is known of it, its public JWK, and its signer while it may sign."""

    info: KeyInfo
    jwk: Mapping[str, str]
    signer: Signer | None = None  # of the active and the next key

    def __repr__(self) -> str:
        return f"<{self.info.state} key {self.info.kid}>"


class KeyRing:
    """Keys in this process. Safe to use from many threads.

    Args:
        active: what signs now; a new ES256 key by default.
        following: what will sign after the next rotation; by default a new key of the same algorithm.
            A signer outside this process (KMS, PKCS #11) needs to be given one.
        cache_age: seconds for which verifiers may keep a copy of the key set: a key is published for as
            long before it signs.
        clock: epoch seconds.

    Raises:
        ConfigError: an argument is wrong.
    """

    _lag = 0.0  # seconds until every process that publishes the ring has seen a change

    def __init__(
        self,
        active: Signer | None = None,
        following: Signer | None = None,
        *,
        cache_age: float = CACHE_AGE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if cache_age < 0:
            msg = "`cache_age` must not be negative"
            raise ConfigError(msg)
        self._clock = clock
        self._cache_age = cache_age
        self._lock = threading.RLock()
        self._told: list[Callable[[str], None]] = []
        first = active if active is not None else SigningKey.generate()
        now = clock()
        self._held: tuple[Held, ...] = (hold(first, "active", now), hold(following or like(first), "next", now))

    @property
    def active(self) -> Signer:
        """What signs now."""
        for held in self._current():
            if held.info.state == "active" and held.signer is not None:
                return held.signer
        raise CredentialError(Code.KEYS_UNAVAILABLE)

    def infos(self) -> tuple[KeyInfo, ...]:
        """Every key that is remembered, the active one first."""
        order = get_args(KeyState)
        infos = [held.info for held in self._current()]
        return tuple(sorted(infos, key=lambda i: (i.state != "active", order.index(i.state), -i.since)))

    def jwks(self) -> dict[str, Any]:
        """The JWK set (RFC 7517 §5): next, active, and retired keys whose tokens may still live."""
        now = self._clock()
        return {"keys": [dict(held.jwk) for held in self._current() if _is_published(held, now)]}

    def get(self, kid: str) -> Mapping[str, Any] | None:
        """One key of `jwks`, for a verifier in this process."""
        now = self._clock()
        return next((h.jwk for h in self._current() if h.info.kid == kid and _is_published(h, now)), None)

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        """Like `get`."""
        return self.get(kid)

    def rotate(self, following: Signer | None = None) -> KeyInfo:
        """The next key signs from now on, the active one retires, and a new next key is published.

        Args:
            following: the new next key; a new key of the same algorithm by default.

        Raises:
            ConfigError: the next key was published less than `cache_age` seconds ago, so that
                verifiers may not know it yet; or the new key is one of the ring's own.
        """
        with self._changing() as now:
            upcoming = self._one("next")
            if (wait := upcoming.info.since + self._cache_age + self._lag - now) > 0:
                msg = f"verifiers may not know the next key yet; rotate in {wait:.0f} s, or withdraw the active key"
                raise ConfigError(msg)
            return self._advance(now, "retired", following).info

    def compromise(self, kid: str, following: Signer | None = None) -> Withdrawal:
        """Withdraw a key for good: out of the key set at once. Where it was active, the next one signs.

        Args:
            kid: of a key in any state.
            following: as in `rotate`, where the key was active or next.

        Raises:
            ConfigError: no such key.
        """
        with self._changing() as now:
            held = next((h for h in self._held if h.info.kid == kid), None)
            if held is None:
                msg = f"there is no key `{kid}` in the ring"
                raise ConfigError(msg)
            if held.info.state == "active":
                self._advance(now, "compromised", following)
            elif held.info.state == "next":
                fresh = self._fresh(following or like(self._one("active").signer), now)
                self._held = (*self._as(held, "compromised", now), fresh)
            elif held.info.state == "retired":
                self._held = self._as(held, "compromised", now)
            self._save()
            done = Withdrawal(kid, self._one("active").info.kid, now + self._cache_age + self._lag)
        for tell in tuple(self._told):
            tell(kid)
        return done

    def on_compromise(self, tell: Callable[[str], None]) -> None:
        """Call `tell(kid)` when a key was withdrawn, here or (in a thread) by another process."""
        self._told.append(tell)

    def _advance(self, now: float, left: KeyState, following: Signer | None) -> Held:
        active, upcoming = self._one("active"), self._one("next")
        fresh = self._fresh(following or like(active.signer), now)
        self._held = self._as(active, left, now)
        promoted = replace(upcoming, info=upcoming.info._replace(state="active", since=now))
        self._held = (*(promoted if h is upcoming else h for h in self._held), fresh)
        self._save()
        return promoted

    def _fresh(self, signer: Signer, now: float) -> Held:
        if any(h.info.kid == signer.kid for h in self._held):
            msg = f"the key `{signer.kid}` is or was one of the ring's"
            raise ConfigError(msg)
        return hold(signer, "next", now)

    def _as(self, held: Held, state: KeyState, now: float) -> tuple[Held, ...]:
        changed = replace(held, info=held.info._replace(state=state, since=now), signer=None)
        kept = [changed if h is held else h for h in self._held]
        past = [h for h in kept if h.info.state == "retired" and not _is_published(h, now)]
        # What was compromised is remembered longest: it must never come back.
        for old in sorted(past, key=lambda h: h.info.since)[: max(len(kept) - MAX_KEPT, 0)]:
            kept.remove(old)
        return tuple(kept)

    def _one(self, state: KeyState) -> Held:
        return next(h for h in self._held if h.info.state == state)

    def _current(self) -> tuple[Held, ...]:
        return self._held

    @contextmanager
    def _changing(self) -> Iterator[float]:
        with self._lock:
            before = self._held
            try:
                yield self._clock()
            except BaseException:
                self._held = before
                raise

    def _save(self) -> None:
        """Keep the change. For subclasses."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{i.state} {i.kid}' for i in self.infos()[:3])}>"

    def __reduce__(self) -> NoReturn:
        msg = "a KeyRing can not be copied or pickled"
        raise TypeError(msg)


def hold(signer: Signer, state: KeyState, now: float) -> Held:
    """A signer as a key of a ring. Raises `ConfigError` where it would publish something else."""
    if not isinstance(signer, Signer):
        msg = "a key is a `Signer`: alg, kid, sign and public_jwk"
        raise ConfigError(msg)
    jwk = {**signer.public_jwk(), "kid": signer.kid, "alg": signer.alg, "use": "sig"}
    if public_key(jwk, signer.alg) is None or thumbprint(jwk) != signer.kid:
        msg = f"`public_jwk` of the key `{signer.kid}` must be its public key, and `kid` its RFC 7638 thumbprint"
        raise ConfigError(msg)
    return Held(KeyInfo(signer.kid, signer.alg, state, now), MappingProxyType(jwk), signer)


def like(signer: Signer | None) -> SigningKey:
    """A new key of the same algorithm. Raises `ConfigError` for a signer outside this process."""
    if not isinstance(signer, SigningKey):
        msg = "a signer outside this process needs the next one given: `following=`"
        raise ConfigError(msg)
    return SigningKey.generate(signer.alg)


def _is_published(held: Held, now: float) -> bool:
    state, since = held.info.state, held.info.since
    return state in ("next", "active") or (state == "retired" and now < since + KEEP_RETIRED)
