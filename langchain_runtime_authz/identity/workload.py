"""Name agents by their path, below a base name or an attested workload.

A SPIRE selector or a service account identifies a process, not the agents in it. So an agent's id is the id of the
proven workload with a fragment: `spiffe://bank.example/payments#supervisor/payer`. A SPIFFE id itself never has a
fragment (SPIFFE-ID §2), so no agent can take the name of another workload.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn, Protocol, runtime_checkable
from urllib.parse import quote

from langchain_runtime_authz.errors import AuthzError, Code, ConfigError

_log: Final = logging.getLogger(__name__)
BASE: Final = "urn:langchain-runtime-authz:agent"


@runtime_checkable
class Identity(Protocol):
    """Names agents. Each step reads it, so its methods must not wait."""

    @property
    def attested(self) -> bool:
        """True if a party outside this process vouches for the name."""

    @property
    def expires_at(self) -> float | None:
        """Epoch seconds at which name, leases and tokens end; 0: unproven, `None`: never."""

    def agent_id(self, path: tuple[str, ...]) -> str:
        """Return the id of the agent at `path`, root first. Each path has its own id."""


class StaticIdentity:
    """Ids like `<base>:<path joined by />`, percent-encoded so that each is unique.

    `base` is a URN (RFC 8141) of your own. Raises `ConfigError` if it is a SPIFFE id, which needs an attestation.
    """

    attested = False
    expires_at = None

    def __init__(self, base: str = BASE) -> None:
        if not isinstance(base, str) or not base or base.lower().startswith("spiffe:"):
            raise ConfigError("`base` must be a URN of your own; a SPIFFE id needs an attested identity")
        self.base = base

    def agent_id(self, path: tuple[str, ...]) -> str:
        return f"{self.base}:{joined_path(path)}" if path else self.base


@lru_cache(maxsize=1024)
def joined_path(path: tuple[str, ...]) -> str:
    """Return a path as one text. Different paths give different texts."""
    return "/".join(quote(name, safe="", errors="surrogatepass") for name in path)


class Proof(NamedTuple):
    """A verified proof: the workload's id (a URI), and when it ends (epoch seconds)."""

    id: str
    expires_at: float


class WorkloadIdentity:
    """Base of attested identities. A thread renews the proof, so reading never waits.

    Without a current proof, each step is denied with `workload_unproven`. Leases and tokens end with the proof. A new
    proof of the same workload permits steps again, without a restart. The constructor waits at most `wait` seconds for
    the first proof, and returns then even if none came.
    """

    def __init__(self, *, wait: float) -> None:
        if not wait >= 0:
            raise ConfigError("`wait` is a number of seconds")
        self._proof: Proof | None = None
        self._id: str | None = None  # of the first proof; it stays for the life of the process
        self._why = "no proof has arrived yet"
        self._first, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="runtime-authz-workload", daemon=True).start()
        self._first.wait(wait)

    def _watch(self) -> None:
        """Watch for proofs until `_closed` is set: call `_accept`, `_refuse` or `_miss`."""
        raise NotImplementedError

    @property
    def workload(self) -> str | None:
        """Return the workload's id; `None` before the first proof."""
        return self._id

    @property
    def attested(self) -> bool:
        """True while the proof is current."""
        return time.time() < self.expires_at

    @property
    def expires_at(self) -> float:
        """Return when the proof ends, in epoch seconds; 0 without one."""
        proof = self._proof
        return 0.0 if proof is None else proof.expires_at

    @property
    def why(self) -> str | None:
        """Return why there is no current proof; `None` if there is one."""
        return None if self.attested else self._why

    def agent_id(self, path: tuple[str, ...]) -> str:
        base = self._id
        if base is None:
            return StaticIdentity().agent_id(path)
        return f"{base}{'/' if '#' in base else '#'}{joined_path(path)}" if path else base

    def close(self) -> None:
        """Stop renewing the proof. The present proof is valid until it expires."""
        self._closed.set()

    def _accept(self, proof: Proof) -> None:
        if self._id not in (None, proof.id):
            self._refuse("it is of another workload than before; start the process anew if that is meant")
            return
        before, self._id, self._proof = self._proof, proof.id, proof
        self._first.set()
        if before is None:
            _log.info("workload identity: %s until %.0f", proof.id, proof.expires_at)

    def _refuse(self, why: str) -> None:
        """Drop the proof, because its successor does not prove the workload."""
        self._proof = None
        self._miss(why)

    def _miss(self, why: str) -> None:
        """Record that no new proof came. The present proof is valid until it expires."""
        if why != self._why:
            self._why = why
            _log.warning("workload identity: %s", why)

    def _unproven(self) -> NoReturn:
        raise AuthzError(Code.WORKLOAD_UNPROVEN, self._why)
