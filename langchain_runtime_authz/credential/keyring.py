"""The keys of one issuer over time: next, active, retired, compromised.

Rotation without downtime: the next key is published before it signs, and a retired key stays published
until its last token has expired; so a verifier whose copy of the key set is at most `cache_age`
seconds old knows every key that signs. A compromised key leaves the set at once and never comes back.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NoReturn, Self, get_args

from langchain_runtime_authz.credential.jws import public_key
from langchain_runtime_authz.credential.keys import ALGORITHMS, Alg, Signer, SigningKey, thumbprint
from langchain_runtime_authz.credential.token import MAX_TTL, parse_object
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

try:
    import fcntl
except ImportError:  # no file locks here: rotate from one process only
    fcntl = None  # type: ignore[assignment]

__all__ = ["KeyDirectory", "KeyInfo", "KeyRing", "KeyState", "Withdrawal"]

KeyState = Literal["next", "active", "retired", "compromised"]

CACHE_AGE: Final = 60  # seconds for which a verifier may keep a copy of the key set (`jwks.JwksClient`)
KEEP_RETIRED: Final = 2 * MAX_TTL  # seconds: the last token's life, with room for clocks
LOOK_AGAIN: Final = 1.0  # seconds between looks at a key directory
MAX_KEPT: Final = 64  # keys of the past that a ring remembers
VERSION: Final = 1
RING: Final = "ring.json"


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
class _Held:
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
        self._held: tuple[_Held, ...] = (_hold(first, "active", now), _hold(following or _like(first), "next", now))

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
                fresh = self._fresh(following or _like(self._one("active").signer), now)
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

    def _advance(self, now: float, left: KeyState, following: Signer | None) -> _Held:
        active, upcoming = self._one("active"), self._one("next")
        fresh = self._fresh(following or _like(active.signer), now)
        self._held = self._as(active, left, now)
        promoted = replace(upcoming, info=upcoming.info._replace(state="active", since=now))
        self._held = (*(promoted if h is upcoming else h for h in self._held), fresh)
        self._save()
        return promoted

    def _fresh(self, signer: Signer, now: float) -> _Held:
        if any(h.info.kid == signer.kid for h in self._held):
            msg = f"the key `{signer.kid}` is or was one of the ring's"
            raise ConfigError(msg)
        return _hold(signer, "next", now)

    def _as(self, held: _Held, state: KeyState, now: float) -> tuple[_Held, ...]:
        changed = replace(held, info=held.info._replace(state=state, since=now), signer=None)
        kept = [changed if h is held else h for h in self._held]
        past = [h for h in kept if h.info.state == "retired" and not _is_published(h, now)]
        # What was compromised is remembered longest: it must never come back.
        for old in sorted(past, key=lambda h: h.info.since)[: max(len(kept) - MAX_KEPT, 0)]:
            kept.remove(old)
        return tuple(kept)

    def _one(self, state: KeyState) -> _Held:
        return next(h for h in self._held if h.info.state == state)

    def _current(self) -> tuple[_Held, ...]:
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


class KeyDirectory(KeyRing):
    """Keys in a directory: one PEM file (PKCS #8) for each key that may sign, and `ring.json`.

    Processes that hold the same directory see a rotation, and a compromise, within a second. A
    directory that can not be read any more signs nothing and publishes nothing.

    Evolution rule of `ring.json` (version 1): members may be added, none is renamed or removed.

    Args:
        path: the directory.
        password: of the PEM files.
        cache_age: seconds for which verifiers may keep a copy of the key set: a key is published for as
            long before it signs.
        clock: epoch seconds.

    Raises:
        ConfigError: no ring is there, or it can not be read, or others may read the keys.
    """

    _lag = LOOK_AGAIN

    def __init__(
        self,
        path: str | Path,
        password: bytes | None = None,
        *,
        cache_age: float = CACHE_AGE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._cache_age = clock, cache_age
        self._lock = threading.RLock()
        self._told = []
        self._path, self._password = Path(path), password
        self._held = ()
        self._stamp: tuple[int, int, int] | None = None
        self._looked = float("-inf")
        self._load()

    @classmethod
    def create(cls, path: str | Path, alg: Alg = "ES256", password: bytes | None = None) -> Self:
        """A new ring with an active and a next key.

        Raises:
            ConfigError: there is a ring already, or the algorithm is unknown.
        """
        path = Path(path)
        if alg not in ALGORITHMS:
            msg = f"the algorithm is one of {', '.join(ALGORITHMS)}"
            raise ConfigError(msg)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            if (path / RING).exists():
                msg = f"{path.name} holds a key ring already; rotate it"
                raise ConfigError(msg)
            now = time.time()
            active = SigningKey.generate(alg)
            _write(path, (_hold(active, "active", now), _hold(_like(active), "next", now)), password)
        return cls(path, password)

    def _current(self) -> tuple[_Held, ...]:
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            with self._lock:
                if time.monotonic() - self._looked >= LOOK_AGAIN:
                    self._look()
        return self._held

    def _look(self) -> None:
        before = self._compromised()
        try:
            self._load()
        except ConfigError:
            # What can not be read may hold a compromise: nothing is believed until it can.
            self._held, self._stamp = (), None
        self._looked = time.monotonic()
        if (gone := self._compromised() - before) and self._told:
            # In a thread: whoever signs or looks a key up does not wait for a ledger.
            threading.Thread(target=self._tell, args=(gone,), daemon=True).start()

    def _compromised(self) -> frozenset[str]:
        return frozenset(held.info.kid for held in self._held if held.info.state == "compromised")

    def _tell(self, kids: frozenset[str]) -> None:
        for kid in kids:
            for tell in tuple(self._told):
                tell(kid)

    def _load(self) -> None:
        try:
            stat = (self._path / RING).stat()
        except OSError as exc:
            msg = (
                f"{self._path.name}: no key ring is there ({exc.strerror}); make one with `runtime-authz keys generate`"
            )
            raise ConfigError(msg) from None
        stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if stamp != self._stamp:
            self._held = _read(self._path, self._password)
            self._stamp = stamp

    @contextmanager
    def _changing(self) -> Iterator[float]:
        with self._lock, _locked(self._path):
            self._load()
            with super()._changing() as now:
                yield now

    def _save(self) -> None:
        _write(self._path, self._held, self._password)
        stat = (self._path / RING).stat()
        self._stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)


def _hold(signer: Signer, state: KeyState, now: float) -> _Held:
    if not isinstance(signer, Signer):
        msg = "a key is a `Signer`: alg, kid, sign and public_jwk"
        raise ConfigError(msg)
    jwk = {**signer.public_jwk(), "kid": signer.kid, "alg": signer.alg, "use": "sig"}
    if public_key(jwk, signer.alg) is None or thumbprint(jwk) != signer.kid:
        msg = f"`public_jwk` of the key `{signer.kid}` must be its public key, and `kid` its RFC 7638 thumbprint"
        raise ConfigError(msg)
    return _Held(KeyInfo(signer.kid, signer.alg, state, now), MappingProxyType(jwk), signer)


def _like(signer: Signer | None) -> Signer:
    if not isinstance(signer, SigningKey):
        msg = "a signer outside this process needs the next one given: `following=`"
        raise ConfigError(msg)
    return SigningKey.generate(signer.alg)


def _is_published(held: _Held, now: float) -> bool:
    state, since = held.info.state, held.info.since
    return state in ("next", "active") or (state == "retired" and now < since + KEEP_RETIRED)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path / "ring.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: tuple[_Held, ...], password: bytes | None) -> None:
    for held in keys:
        file = path / f"{held.info.kid}.pem"
        if isinstance(held.signer, SigningKey) and not file.exists():
            _replace(file, held.signer.to_pem(password))
    rows = [{**held.info._asdict(), "jwk": dict(held.jwk)} for held in keys]
    _replace(path / RING, json.dumps({"v": VERSION, "keys": rows}, indent=1).encode())
    # Only what may sign keeps its private key, and only after the ring says so.
    signing = {f"{held.info.kid}.pem" for held in keys if held.signer is not None}
    for file in path.glob("*.pem"):
        if file.name not in signing:
            file.unlink(missing_ok=True)


def _replace(file: Path, data: bytes) -> None:
    # Whole or not at all, and never readable by others, not even for a moment.
    temporary = file.with_name(f".{file.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def _read(path: Path, password: bytes | None) -> tuple[_Held, ...]:
    rows = _rows(path)
    if rows is None:
        msg = f"{path.name}/{RING} can not be read as a key ring; restore it"
        raise ConfigError(msg)
    held = tuple(_Held(info, jwk, _signer(path, info, password)) for info, jwk in rows)
    states = [h.info.state for h in held]
    if states.count("active") != 1 or states.count("next") != 1 or len({h.info.kid for h in held}) != len(held):
        msg = f"{path.name}/{RING} must hold one active and one next key; restore it"
        raise ConfigError(msg)
    return held


def _rows(path: Path) -> list[tuple[KeyInfo, Mapping[str, str]]] | None:
    try:
        document = parse_object((path / RING).read_bytes())
        if document["v"] != VERSION:
            return None
        rows: list[tuple[KeyInfo, Mapping[str, str]]] = []
        for row in document["keys"]:
            info = KeyInfo(str(row["kid"]), str(row["alg"]), row["state"], float(row["since"]))
            if info.state not in get_args(KeyState) or not info.kid.replace("-", "").replace("_", "").isalnum():
                return None
            rows.append((info, MappingProxyType({str(k): str(v) for k, v in row["jwk"].items()})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return rows


def _signer(path: Path, info: KeyInfo, password: bytes | None) -> SigningKey | None:
    if info.state not in ("next", "active"):
        return None
    file = path / f"{info.kid}.pem"
    try:
        pem, mode = file.read_bytes(), file.stat().st_mode
    except OSError:
        pem, mode = b"", 0
    if os.name == "posix" and mode & 0o077:
        msg = f"{path.name}/{file.name} may be read by others; `chmod 600` it, and rotate"
        raise ConfigError(msg)
    key = SigningKey.from_pem(pem, password)
    if key.kid != info.kid:
        msg = f"{path.name}/{file.name} is another key than its name says"
        raise ConfigError(msg)
    return key
