"""Check an instance's parts within a deadline, and report their health over ASGI."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from langchain_runtime_authz._flow import in_thread
from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.errors import AuthzError, Code
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.workload import StaticIdentity
from langchain_runtime_authz.ledger.base import Query, Scope
from langchain_runtime_authz.ledger.thread_state import Thread, take_snapshot
from langchain_runtime_authz.pep.request_builder import request_json
from langchain_runtime_authz.pep.run import LEASE_TTL, EntryState, PepParts, Run, agent_id, new_id

DEADLINE: Final = 2.0  # seconds for all parts together
FRESH: Final = 1.0  # seconds for which an answer is cached
_LATE: Final = {
    "ledger": Code.LEDGER_TIMEOUT,
    "engine": Code.PDP_TIMEOUT,
    "audit": Code.AUDIT_UNAVAILABLE,
    "credentials": Code.KEYS_UNAVAILABLE,
    "identity": Code.WORKLOAD_UNPROVEN,
}


@dataclass(frozen=True, slots=True)
class Health:
    """The state of an instance's parts.

    Attributes:
        parts: part → "" if it is up, else the code with which steps are denied. The parts are `ledger`, `engine`,
            `audit`, `credentials` (signing keys and the workload's identity) and `kill_switch`.
        revision: the policy's revision.
        age: seconds since the policy's source was last confirmed; None if the engine does not know.
    """

    parts: dict[str, str]
    revision: str
    age: float | None

    @property
    def ready(self) -> bool:
        """True if steps can be permitted."""
        return not any(self.parts.values())


class HealthCheck:
    """Checks the parts concurrently. A part that hangs is not checked again meanwhile."""

    def __init__(self, pep: PepParts) -> None:
        self._pep = pep
        self._lock = forkable_lock()
        self._pending: dict[str, Future[str]] = {}
        self._last: tuple[float, Health] | None = None

    def look(self) -> Health:
        """Return the health, at most `FRESH` seconds old, within `DEADLINE` seconds.

        Never raises: a failed or late part is reported by its code.
        """
        pep = self._pep
        parts = dict(zip(_LATE, (self._ledger, self._evaluator, self._audit, self._keys, self._identity), strict=True))
        with self._lock:
            if self._last is not None and time.monotonic() - self._last[0] < FRESH:
                return self._last[1]
            for name, part in parts.items():
                if name not in self._pending or self._pending[name].done():
                    self._pending[name] = in_thread(part, f"health-{name}")
            asked = dict(self._pending)
        done, _ = wait(asked.values(), DEADLINE)
        found = {name: str(_LATE[name]) for name in asked}
        age = None
        for name, future in asked.items():
            error = future.exception() if future in done else None
            if isinstance(error, AuthzError):
                found[name] = str(error.code)
            elif error is not None and name == "ledger":  # raised by the application's own ledger
                found[name] = str(Code.LEDGER_UNAVAILABLE)
            elif error is None and future in done:
                found[name] = future.result()
        with suppress(Exception):
            age = pep.evaluator.pdp.status.unconfirmed  # type: ignore[attr-defined]  # only a `ReloadingPDP` has it
        found["credentials"] = found.pop("identity") or found["credentials"]
        found["kill_switch"] = str(Code.KILLED) if pep.killed else ""
        health = Health(found, pep.evaluator.revision, age)
        with self._lock:
            self._last = (time.monotonic(), health)
        return health

    def _ledger(self) -> str:
        ledger, tenant = self._pep.ledger, self._pep.tenant
        ledger.load(Scope(tenant, self._pep.issuer.issuer, "health:", ""), Query())
        if callable(check := getattr(ledger, "check", None)):
            check(tenant)
        return ""

    def _evaluator(self) -> str:
        """Ask the engine about a `run/start`. Return a code if the engine failed."""
        pep, scope = self._pep, Scope(self._pep.tenant, self._pep.issuer.issuer, "health", "")
        subject, now = Subject(type="service", id="health"), int(time.time())
        named = replace(pep, identity=StaticIdentity())  # the application's identity may hang
        entry, ends = EntryState("health", started_at=now), now + LEASE_TTL
        run = Run(named, scope, subject, new_id(), entry, ("health",), new_id(), expires_at=ends)
        resource = {"type": "run", "id": "health", "properties": {"graph": "health"}}
        body = request_json(run, take_snapshot(Thread(), Query(), now), {"name": "run/start"}, resource)
        (decision,) = pep.evaluator.evaluate([body])
        return decision.reason if decision.failure == "pdp" else ""

    def _audit(self) -> str:
        if callable(check := getattr(self._pep.audit, "check", None)):
            check()
        return ""

    def _keys(self) -> str:
        return "" if self._pep.issuer.jwks().get("keys") else str(Code.KEYS_UNAVAILABLE)

    def _identity(self) -> str:
        agent_id(self._pep.identity, ("health",))
        ends = self._pep.identity.expires_at
        return "" if ends is None or time.time() < ends else str(Code.WORKLOAD_UNPROVEN)


def health_app(ahealth: Callable[[], Awaitable[Health]]) -> Callable[..., Awaitable[None]]:
    """Return an ASGI app that answers 200, or 503 with the failed parts.

    On `…/live` it always answers 200. It does not authenticate, so anybody sees the codes and the policy's revision.
    """

    async def app(scope: dict[str, Any], _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        told: dict[str, Any] = {"live": True}
        ready = True
        if not scope["path"].rstrip("/").endswith("/live"):
            health = await ahealth()
            down = {name: code for name, code in health.parts.items() if code}
            ready, told = health.ready, {"ready": health.ready, "down": down, **asdict(health)}
        body = json.dumps(told).encode()
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200 if ready else 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
