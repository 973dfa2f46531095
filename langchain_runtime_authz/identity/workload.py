"""Name agents below a workload that proves who it is.

A selector of SPIRE, or a service account, names a process. So the proof is the workload's, and the agents in it are named
below it: `spiffe://bank.example/payments#supervisor/payer`. A SPIFFE id never has a fragment (SPIFFE-ID §2), so no agent
can take the name of another workload.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, NamedTuple, NoReturn

from langchain_runtime_authz.errors import AuthzError, Code, ConfigError
from langchain_runtime_authz.identity.static import BASE, joined

_log: Final = logging.getLogger(__name__)


class Proof(NamedTuple):
    """A verified statement: the workload's id, a URI, and when the statement ends in epoch seconds."""

    id: str
    expires_at: float


class WorkloadIdentity:
    """Base of the attested identities. A thread of its own keeps the proof current; asking it never waits.

    Without a current proof nothing starts and nothing goes on: each step is denied with `workload_unproven`, and leases
    and tokens end with the proof. The next proof of the same workload ends that, without a restart.

    Args:
        wait: seconds for which the constructor waits for the first proof. It goes on without one.
    """

    def __init__(self, *, wait: float) -> None:
        if not wait >= 0:
            raise ConfigError("`wait` is a number of seconds")
        self._proof: Proof | None = None
        self._id: str | None = None  # of the first proof: it is this process's for good
        self._why = "no proof has arrived yet"
        self._first, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="runtime-authz-workload", daemon=True).start()
        self._first.wait(wait)

    def _watch(self) -> None:
        """Call `_accept`, `_refuse` and `_miss` until `_closed` is set."""
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
            return f"{BASE}:{joined(path)}" if path else BASE
        return f"{base}{'/' if '#' in base else '#'}{joined(path)}" if path else base

    def close(self) -> None:
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
        """Drop the proof: what was shown in its place does not prove the workload."""
        self._proof = None
        self._miss(why)

    def _miss(self, why: str) -> None:
        """Note that no new proof came. The one at hand lasts until it ends."""
        if why != self._why:
            self._why = why
            _log.warning("workload identity: %s", why)

    def _unproven(self) -> NoReturn:
        raise AuthzError(Code.WORKLOAD_UNPROVEN, self._why)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id or 'unproven'}>"
