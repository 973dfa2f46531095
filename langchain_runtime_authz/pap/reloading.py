"""A PDP that reloads its policy from bundles, never from an older one.

A new bundle is verified, compiled and tested on its cases; if this fails, the old policy stays. Then one reference to
an immutable revision is swapped. So each evaluation uses one policy with its data, and the decision names its revision.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from langchain_runtime_authz._display import printable
from langchain_runtime_authz._locks import file_lock, in_child
from langchain_runtime_authz._renewed_files import file_stamp, replace_file
from langchain_runtime_authz._validate import checked_count, checked_path, checked_seconds
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import Decision, deny, strict_json
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.pap.bundle import Bundle, Keys, policy_error, read_bundle, trusted_keys
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, InProcess
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.tool_profile import ToolProfile

_log = logging.getLogger(__name__)
VERSION: Final = 1  # of the file with the highest revision
_REMEMBERED: Final = 60.0  # seconds for which an unchanged refused bundle is not read again

Seen = tuple[tuple[int, ...], ...]


class HighestRevision:
    """The highest revision used, in the file `path`, for restarts and other processes.

    If the file cannot be read or written, no policy is used. A missing file means a first start, so people who can
    write or delete the file can bring back older policies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, bundle: Bundle) -> int:
        """Return the last number used, or 0. Raises `policy_older` for an older bundle."""
        number, digest = self._read()
        if bundle.number < number or (bundle.number == number and bundle.digest != digest):
            have = f"`{self.path.name}`: revision {number} was used here before this revision {bundle.number}"
            raise ConfigError(f"{have}; raise its number", Code.POLICY_OLDER)
        return number

    def advance(self, bundle: Bundle) -> None:
        """Record the use of this revision, on disk, before returning. Raises as `check`."""
        try:
            with file_lock(self.path.with_name(self.path.name + ".lock")):
                used = self.check(bundle)  # another process may have recorded a higher one meanwhile
                if not used:
                    _log.warning("first start: %s does not exist; policy %s is the first", self.path, bundle.revision)
                if used < bundle.number:
                    this = {"v": VERSION, "number": bundle.number, "digest": bundle.digest}
                    replace_file(self.path, json.dumps(this).encode() + b"\n")
        except OSError as exc:
            raise self._unkept(exc) from exc

    def _read(self) -> tuple[int, str]:
        try:
            document = strict_json(self.path.read_bytes())
            number, digest = document["number"], document["digest"]
            if document["v"] == VERSION and type(number) is int and number > 0 and isinstance(digest, str) and digest:
                return number, digest
        except FileNotFoundError:
            return 0, ""
        except OSError as exc:
            raise self._unkept(exc) from exc
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # reported below
        raise policy_error(
            f"`{self.path.name}` does not say which revision was used last; restore it, or remove it once you "
            "have made sure that the bundle is the newest"
        )

    def _unkept(self, exc: OSError) -> ConfigError:
        why = exc.strerror or type(exc).__name__
        return policy_error(
            f"the highest revision cannot be kept in `{self.path}` ({why}); give `state=` a path that may be written"
        )


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy that decides, its signer, and whether the source holds another one.

    `refused`: why the source's bundle is refused; "" if it is used. `unconfirmed`: seconds since the source was last
    found valid.
    """

    revision: str
    signed_by: str
    unconfirmed: float
    refused: str


@dataclass(frozen=True, slots=True)
class _Live:
    bundle: Bundle
    pdp: WasmPDP | CedarPDP

    def concluded(self, body: bytes, answer: object) -> object:
        """Return a decision with this revision; deny if the request's profile differs."""
        if not isinstance(answer, Decision):
            return answer
        if self.bundle.profiles:
            request = json.loads(body)
            declared = self.bundle.profiles.get(request["resource"]["id"])
            if declared is not None and request["action"]["name"] == "tools/call":
                told = request["resource"]["properties"]
                if told.get("profiled") is True and declared.differs(told):
                    return deny(Code.POLICY_CHANGED, "pdp", self.bundle.revision)
        return replace(answer, policy_revision=self.bundle.revision)


class ReloadingPDP(InProcess):
    """Decide by the policy in a bundle (`pap.bundle`), and follow its changes.

    Replace a bundle by renaming a new one over it, or by swapping the link that leads to it, as a mounted
    ConfigMap does.

    Thread-safe, and usable in a fork's child. `RuntimeAuthz(pdp=…)` uses the bundle's profiles if it gets no
    `profiles`, and finds the bundle's grants by name.

    Args:
        source: path of a `.tar.gz`.
        keys: public keys (PEM) by key id; an unsigned bundle is then refused.
        at_least: the lowest revision that may be used, even at the start.
        state: file that keeps the highest revision that was used, for the next start and for other
            processes. By default it stands next to the source, with the source's name and `.highest`.
        poll: seconds between looks at the source.
        max_staleness: seconds for which a policy decides without a new check of its source that succeeds. Afterwards
            everything is denied with `policy_stale`. `None`: no limit.
        pool_size: evaluations that may run at the same time.
        timeout: seconds after which an evaluation is stopped (and denied).
        deadline: seconds within which the calls of one message must be answered.

    Raises `ConfigError` (`policy_invalid`, `policy_unsigned` or `policy_older`) if there is no policy to begin with, or
    if `state` cannot be read or written.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        keys: Keys | None = None,
        at_least: int = 1,
        state: str | Path | None = None,
        poll: float = 2.0,
        max_staleness: float | None = None,
        pool_size: int = 4,
        timeout: float = 1.0,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        self.deadline = checked_seconds("deadline", deadline)
        self.source = checked_path("source", source)
        self._keys = None if keys is None else trusted_keys(keys)
        self._least = checked_count("at_least", at_least)
        marked = Path(f"{os.path.abspath(self.source)}.highest")  # noqa: PTH100  (follow no link)
        self._highest = HighestRevision(marked if state is None else checked_path("state", state))
        self._seconds = checked_seconds("poll", poll)
        self._max_staleness = None if max_staleness is None else checked_seconds("max_staleness", max_staleness)
        limits = {"pool_size": checked_count("pool_size", pool_size), "timeout": checked_seconds("timeout", timeout)}
        self._limits: dict[str, Any] = limits
        self._refused, self._closed = "", False
        self._rejected: tuple[Seen, float] = (), 0.0  # the stamp of a refused source, and until when it is left alone
        self._seen: Seen = self._look()
        self._live = self._loaded(None)
        self._confirmed = time.monotonic()
        self._watch()
        in_child(self._watch)

    @property
    def name(self) -> str:
        """Return the name of the bundle's engine, `wasm` or `cedar`."""
        return self._live.pdp.name

    @property
    def revision(self) -> str:
        """Return the number and the digest of the bundle that decides."""
        return self._live.bundle.revision

    @property
    def profiles(self) -> Mapping[str, ToolProfile]:
        return self._live.bundle.profiles

    @property
    def grants(self) -> Mapping[str, Grant]:
        return self._live.bundle.grants

    @property
    def status(self) -> PolicyStatus:
        """Return what decides now, and whether it is up to date."""
        bundle = self._live.bundle
        return PolicyStatus(bundle.revision, bundle.signed_by, time.monotonic() - self._confirmed, self._refused)

    def reload(self) -> bool:
        """Check the source now. Return True if another revision decides from now on.

        Raises `ConfigError` if the source's bundle is refused; the present policy stays.
        """
        with self._lock:
            if self._closed:
                raise policy_error("the PDP was closed")
            seen, stamp = self._look(), self._stamp()
            self._rejected = (), 0.0
            try:
                known = seen == self._seen and seen and not self._refused
                new = self._live if known else self._loaded(self._live)
                self._highest.advance(new.bundle)  # another process may have advanced it; the file may be gone
            except ConfigError as exc:
                if str(exc) != self._refused:
                    # As text: the traceback of the exception would keep the refused bundle in memory.
                    _log.error("policy %s stays: %s", self.revision, printable(str(exc)))
                self._refused = str(exc)
                passes = isinstance(exc.__cause__, OSError) and not isinstance(exc.__cause__, gzip.BadGzipFile)
                if not passes:  # the same files will be refused again
                    self._rejected = stamp, time.monotonic() + _REMEMBERED
                raise
            self._seen, self._refused, self._confirmed = seen, "", time.monotonic()
            if new is self._live:
                return False
            _log.info("policy %s takes the place of %s", new.bundle.revision, self.revision)
            self._live = new
            return True

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError`: `policy_stale`, or the engine's own."""
        live = self._serving()
        return live.concluded(body, live.pdp.evaluate(body))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        live = self._serving()
        answers = live.pdp.evaluate_batch(bodies)
        if len(answers) != len(bodies):
            raise PDPError(Code.PDP_MALFORMED, "the batch is of another length")
        return [live.concluded(b, a) for b, a in zip(bodies, answers, strict=True)]

    def close(self) -> None:
        """Stop watching and free the engine; every later evaluation denies. Idempotent."""
        with self._lock:
            self._closed = True
            self._stop.set()
            self._live.pdp.close()

    def _serving(self) -> _Live:
        limit = self._max_staleness
        if limit is not None and time.monotonic() - self._confirmed > limit:
            raise PDPError(Code.POLICY_STALE)
        return self._live

    def _loaded(self, live: _Live | None) -> _Live:
        bundle = read_bundle(self.source, self._keys)
        self._highest.check(bundle)
        least = self._least if live is None else live.bundle.number
        if live is not None and bundle.digest == live.bundle.digest:
            return live
        if bundle.number < least or (live is not None and bundle.number == least):
            have = f"revision {bundle.number} comes after revision {least}"
            raise ConfigError(f"{self.source.name}: {have}; raise its number", Code.POLICY_OLDER)
        pdp = bundle.engine(self.source.name, bundle.revision, **self._limits)
        try:
            bundle.self_test(pdp)
            self._highest.advance(bundle)
        except BaseException:
            pdp.close()
            raise
        return _Live(bundle, pdp)

    def _look(self) -> Seen:
        """Return a stamp of the source, or an empty stamp without a source."""
        try:
            return (file_stamp(self.source),)
        except OSError:  # reading it reports why
            return ()

    def _stamp(self) -> Seen:
        """Return a stamp of the files by which a bundle is refused."""
        with suppress(OSError):  # the file may be gone
            return (*self._look(), file_stamp(self._highest.path))
        return self._look()

    def _poll(self) -> None:
        """Check the source, unless it was refused in the last minute and is the same."""
        stamp, until = self._rejected
        if time.monotonic() >= until or self._stamp() != stamp:
            self.reload()

    def _watch(self) -> None:
        """Start watching, also in a fork's child, which has lost the thread."""
        self._lock, self._stop = threading.Lock(), threading.Event()
        if not self._closed:
            target, arguments = _follow, (weakref.ref(self), self._stop, self._seconds)
            threading.Thread(target=target, args=arguments, name="runtime-authz-policy", daemon=True).start()


def _follow(of: weakref.ref[ReloadingPDP], stop: threading.Event, poll: float) -> None:
    while not stop.wait(poll):
        pdp = of()
        if pdp is None:
            return
        try:
            pdp._poll()  # noqa: SLF001
        except ConfigError:
            pass  # reported in `status` and in the log
        except Exception:  # noqa: BLE001  (the next look may find it in order; until then `max_staleness` runs)
            _log.exception("the policy's source could not be looked at")
        del pdp
