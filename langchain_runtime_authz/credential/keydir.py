"""A key ring in a directory, which several processes and the command line share."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self, get_args

from langchain_runtime_authz.credential.keyring import CACHE_AGE, Held, KeyInfo, KeyRing, KeyState, hold, like
from langchain_runtime_authz.credential.keys import ALGORITHMS, Alg, SigningKey
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.fork import file_lock

__all__ = ["KeyDirectory"]

LOOK_AGAIN: Final = 1.0  # seconds between looks at a directory
VERSION: Final = 1
RING: Final = "ring.json"
LOCK: Final = "ring.lock"


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
        with file_lock(path / LOCK):
            if (path / RING).exists():
                msg = f"{path.name} holds a key ring already; rotate it"
                raise ConfigError(msg)
            now = time.time()
            active = SigningKey.generate(alg)
            _write(path, (hold(active, "active", now), hold(like(active), "next", now)), password)
        return cls(path, password)

    def _current(self) -> tuple[Held, ...]:
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
        with self._lock, file_lock(self._path / LOCK):
            self._load()
            with super()._changing() as now:
                yield now

    def _save(self) -> None:
        _write(self._path, self._held, self._password)
        stat = (self._path / RING).stat()
        self._stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)


def _write(path: Path, keys: tuple[Held, ...], password: bytes | None) -> None:
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


def _read(path: Path, password: bytes | None) -> tuple[Held, ...]:
    rows = _rows(path)
    if rows is None:
        msg = f"{path.name}/{RING} can not be read as a key ring; restore it"
        raise ConfigError(msg)
    held = tuple(Held(info, jwk, _signer(path, info, password)) for info, jwk in rows)
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
