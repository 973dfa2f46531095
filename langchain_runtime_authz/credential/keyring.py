"""The keys of one issuer over time: next, active, retired and compromised.

Rotation needs no downtime. The next key is published before it signs; a retired key stays published
until its last token has expired. So a verifier whose copy of the key set is at most `cache_age` seconds
old knows every key that signs. A compromised key leaves the set at once and never comes back.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from langchain_runtime_authz._locks import file_lock
from langchain_runtime_authz._renewed_files import file_stamp, replace_file
from langchain_runtime_authz.credential.signer import Alg, Secret, SigningKey
from langchain_runtime_authz.credential.token import MAX_TTL
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

KeyState = Literal["next", "active", "retired", "compromised"]

CACHE_AGE: Final = 60  # seconds for which a verifier may keep a copy of the key set (`jwks.JwksClient`)
KEEP_RETIRED: Final = 2 * MAX_TTL  # seconds: a token's life, doubled because clocks differ
MAX_KEPT: Final = 64  # past keys that a ring remembers
LOOK_AGAIN: Final = 1.0  # seconds between two checks of a `KeyDirectory` for changes
VERSION: Final = 1
RING: Final = "ring.json"
LOCK: Final = "ring.lock"
_STORED: Final = ("kid", "alg", "state", "since")
_KID: Final = re.compile(r"[A-Za-z0-9_-]+")  # a `kid` is part of a file name


class Withdrawal(NamedTuple):
    """The withdrawal of a compromised key `kid`. The key `active` signs now.

    From `refused_by` (epoch seconds), every verifier whose copy of the key set is at most `cache_age` seconds old
    refuses the withdrawn key. A service that asks the ledger or the issuer refuses it at once.
    """

    kid: str
    active: str
    refused_by: float


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a ring: RFC 7638 thumbprint, JWS algorithm, state and since when.

    Only the active and the next key have a `signer`.
    """

    kid: str
    alg: str
    state: KeyState
    since: float
    jwk: Mapping[str, str]
    signer: SigningKey | None = None

    @classmethod
    def new(cls, alg: str, state: KeyState, now: float) -> Key:
        """Generate a key that is in `state` since `now`."""
        signer = SigningKey.generate(alg)  # type: ignore[arg-type]  # checked there
        return cls(signer.kid, alg, state, now, MappingProxyType(signer.public_jwk()), signer)

    def moved(self, state: KeyState, now: float) -> Key:
        """Return the key in `state` since `now`. Only the active key keeps its signer."""
        return replace(self, state=state, since=now, signer=self.signer if state == "active" else None)

    def is_published(self, now: float) -> bool:
        """Return True if the key set holds the key: next, active, or lately retired."""
        retired = self.state == "retired" and now < self.since + KEEP_RETIRED
        return retired or self.state in ("next", "active")


class KeyRing(Secret):
    """Keys in this process. Safe to use from many threads.

    Args:
        alg: the algorithm of every key.
        cache_age: seconds for which verifiers may keep a copy of the key set. A rotation is refused until the next
            key has been published for `cache_age` seconds.
        clock: epoch seconds.
    """

    _lag = 0.0  # seconds until all processes that publish the ring see a change

    def __init__(
        self, alg: Alg = "ES256", *, cache_age: float = CACHE_AGE, clock: Callable[[], float] = time.time
    ) -> None:
        self._begin(_pair(alg, clock()), cache_age, clock)

    def _begin(self, keys: tuple[Key, ...], cache_age: float, clock: Callable[[], float]) -> None:
        if cache_age < 0:
            raise ConfigError("`cache_age` must not be negative")
        self._clock, self._cache_age = clock, cache_age
        self._lock = threading.RLock()
        self._listeners: list[Callable[[str], None]] = []
        self._keys = keys

    @property
    def active(self) -> SigningKey:
        """Return the key that signs now. Raises `keys_unavailable` without one."""
        for key in self._current():
            if key.state == "active" and key.signer is not None:
                return key.signer
        raise CredentialError(Code.KEYS_UNAVAILABLE)

    def all_keys(self) -> tuple[Key, ...]:
        """Return every key of the ring, the active one first."""
        order = ("active", *get_args(KeyState))
        return tuple(sorted(self._current(), key=lambda key: (order.index(key.state), -key.since)))

    def jwks(self) -> dict[str, Any]:
        """Return the next key, the active key, and retired keys of unexpired tokens."""
        now = self._clock()
        return {"keys": [dict(key.jwk) for key in self._current() if key.is_published(now)]}

    def get(self, kid: str) -> Mapping[str, Any] | None:
        now = self._clock()
        return next((key.jwk for key in self._current() if key.kid == kid and key.is_published(now)), None)

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        return self.get(kid)

    def rotate(self) -> Key:
        """Retire the active key, sign with the next key, and publish a new next key.

        Raises `ConfigError` if the next key was published less than `cache_age` seconds ago.
        """
        with self._changing() as now:
            wait = self._one("next").since + self._cache_age + self._lag - now
            if wait > 0:
                msg = f"verifiers may not know the next key yet; rotate in {wait:.0f} s, or withdraw the active key"
                raise ConfigError(msg)
            self._replace(self._one("active"), "retired", now)
            return self._one("active")

    def compromise(self, kid: str) -> Withdrawal:
        """Withdraw a key for good, at once. Raises `ConfigError` for an unknown key."""
        with self._changing() as now:
            key = next((key for key in self._keys if key.kid == kid), None)
            if key is None:
                raise ConfigError(f"there is no key `{kid}` in the ring")
            if key.state != "compromised":
                self._replace(key, "compromised", now)
            done = Withdrawal(kid, self._one("active").kid, now + self._cache_age + self._lag)
        self._notify((kid,))
        return done

    def on_compromise(self, listener: Callable[[str], None]) -> None:
        """Call `listener(kid)` when a key is withdrawn here or by another process."""
        self._listeners.append(listener)

    def _notify(self, kids: tuple[str, ...]) -> None:
        for kid in kids:
            for listener in tuple(self._listeners):
                listener(kid)

    def _replace(self, key: Key, state: KeyState, now: float) -> None:
        """Move a key to `state`. If it was active, the next key signs. Add a new next key."""
        keys = [other.moved(state, now) if other is key else other for other in self._keys]
        past = [old for old in keys if old.state == "retired" and not old.is_published(now)]
        # Compromised keys are kept longest, because they must never come back.
        for old in sorted(past, key=lambda old: old.since)[: max(len(keys) - MAX_KEPT, 0)]:
            keys.remove(old)
        if key.state in ("active", "next"):
            if key.state == "active":
                keys = [other.moved("active", now) if other.state == "next" else other for other in keys]
            keys.append(Key.new(key.alg, "next", now))
        self._keys = tuple(keys)
        self._save()

    def _one(self, state: KeyState) -> Key:
        return next(key for key in self._keys if key.state == state)

    def _current(self) -> tuple[Key, ...]:
        return self._keys

    @contextmanager
    def _changing(self) -> Iterator[float]:
        with self._lock:
            before = self._keys
            try:
                yield self._clock()
            except BaseException:
                self._keys = before
                raise

    def _save(self) -> None:
        """Store the changed keys; a ring in memory does nothing."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{i.state} {i.kid}' for i in self.all_keys()[:3])}>"


class KeyDirectory(KeyRing):
    """Keys in a directory: a PEM file for each key that may sign, and `ring.json`.

    Processes with the same directory see a rotation or compromise within a second. If the directory becomes unreadable,
    the ring neither signs nor publishes.

    Evolution rule of `ring.json` (version 1): members may be added, never renamed or removed.

    Args:
        path: the directory.
        password: password of the PEM files.
        cache_age: as for `KeyRing`.

    Raises `ConfigError` if there is no readable ring, or if other users may read the keys.
    """

    _lag = LOOK_AGAIN

    def __init__(self, path: str | Path, password: bytes | None = None, *, cache_age: float = CACHE_AGE) -> None:
        self._path, self._password = Path(path).absolute(), password
        self._stamp: tuple[int, ...] | None = None
        self._bad = frozenset[str]()  # every key that this process has ever seen as compromised
        self._looked = float("-inf")
        self._begin((), cache_age, time.time)
        self._load()

    @classmethod
    def create(cls, path: str | Path, alg: Alg = "ES256", password: bytes | None = None) -> Self:
        """Create a ring (active and next key). Raises `ConfigError` if there is one."""
        path, keys = Path(path), _pair(alg, time.time())
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(path / LOCK):
            if (path / RING).exists():
                raise ConfigError(f"{path.name} holds a key ring already; rotate it")
            _write(path, keys, password)
        return cls(path, password)

    def _current(self) -> tuple[Key, ...]:
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            with self._lock:
                if time.monotonic() - self._looked >= LOOK_AGAIN:
                    self._look()
        return self._keys

    def _look(self) -> None:
        try:
            self._load()
        except ConfigError:
            # An unreadable file may list a compromised key, so no key is used until the file can be read.
            self._keys, self._stamp = (), None
        self._looked = time.monotonic()

    def _compromised(self) -> frozenset[str]:
        return frozenset(key.kid for key in self._keys if key.state == "compromised")

    def _stamped(self) -> tuple[int, ...]:
        try:
            return file_stamp(self._path / RING)
        except OSError as exc:
            msg = f"{self._path.name}: no key ring ({exc.strerror}); make one with `runtime-authz keys generate {self._path.name}`"
            raise ConfigError(msg) from None

    def _load(self) -> None:
        seen = self._stamped()
        if seen != self._stamp:
            try:
                keys = _read_keys(self._path, self._password)
                if self._bad & {key.kid for key in keys if key.state != "compromised"}:
                    msg = "is old: it lacks a withdrawal; restore the newest one, or repeat `runtime-authz keys compromise`"
                    raise ConfigError(f"{self._path.name}/{RING} {msg}")
                self._keys, self._stamp = keys, seen
                gone = self._compromised() - self._bad
                self._bad |= gone
                if gone and self._listeners:
                    # Notified in a thread, so that signing and key look-up do not wait for a ledger.
                    threading.Thread(target=self._notify, args=(tuple(gone),), daemon=True).start()
            except ConfigError:
                if self._stamped() == seen:
                    raise
                self._load()  # another process changed the ring during this read, and deleted a key file

    @contextmanager
    def _changing(self) -> Iterator[float]:
        with self._lock, file_lock(self._path / LOCK):
            self._load()
            with super()._changing() as now:
                yield now

    def _save(self) -> None:
        _write(self._path, self._keys, self._password)
        self._stamp = self._stamped()
        self._bad |= self._compromised()


def _pair(alg: str, now: float) -> tuple[Key, ...]:
    return Key.new(alg, "active", now), Key.new(alg, "next", now)


def _write(path: Path, keys: tuple[Key, ...], password: bytes | None) -> None:
    signing = {path / f"{key.kid}.pem": key.signer for key in keys if key.signer is not None}
    for file, signer in signing.items():
        if not file.exists():
            replace_file(file, signer.to_pem(password), 0o600)
    rows = [{**{name: getattr(key, name) for name in _STORED}, "jwk": dict(key.jwk)} for key in keys]
    replace_file(path / RING, json.dumps({"v": VERSION, "keys": rows}, indent=1).encode(), 0o600)
    # A private key is deleted only after the ring says that it does not sign any more.
    for file in path.glob("*.pem"):
        if file not in signing:
            file.unlink(missing_ok=True)


def _read_keys(path: Path, password: bytes | None) -> tuple[Key, ...]:
    keys: list[Key] = []
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        document, found = parse_object((path / RING).read_bytes()), []
        for row in document["keys"]:
            jwk = MappingProxyType({str(k): str(v) for k, v in row["jwk"].items()})
            found.append(Key(str(row["kid"]), str(row["alg"]), row["state"], float(row["since"]), jwk))
        sound = all(key.state in get_args(KeyState) and _KID.fullmatch(key.kid) for key in found)
        keys = found if sound and document.get("v") == VERSION else []
    states = [key.state for key in keys]
    if states.count("active") != 1 or states.count("next") != 1 or len({key.kid for key in keys}) != len(keys):
        raise ConfigError(f"{path.name}/{RING} must be a key ring with one active and one next key; restore it")
    signing = ("next", "active")
    return tuple(replace(key, signer=_signer(path, key, password)) if key.state in signing else key for key in keys)


def _signer(path: Path, key: Key, password: bytes | None) -> SigningKey:
    file = path / f"{key.kid}.pem"
    try:
        pem, mode = file.read_bytes(), file.stat().st_mode
    except OSError:
        pem, mode = b"", 0
    if mode & 0o077:
        raise ConfigError(f"{path.name}/{file.name} may be read by others; `chmod 600` it, and rotate")
    signer = SigningKey.from_pem(pem, password)
    if signer.kid != key.kid:
        raise ConfigError(f"{path.name}/{file.name} does not hold the key of its name; restore it")
    return signer
