"""PDPs made of PDPs: deny overrides, a compared candidate, a circuit breaker.

Each asks its PDPs through an `Evaluator`, so that it combines only validated decisions. None of them permits by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Literal

from langchain_runtime_authz._locks import forkable_lock, in_child
from langchain_runtime_authz._validate import checked_callable, checked_count, checked_seconds
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest, Obligation, Outcome, parse_request
from langchain_runtime_authz.pdp.base import PDP, Composed, short_revision

_log = logging.getLogger(__name__)
_SEVERITY: Final[dict[Outcome, int]] = {"permit": 0, "approval_required": 1, "deny": 2, "halt": 3}


class DenyOverrides(Composed):
    """Permit only what every PDP permits; a failure denies (XACML deny-overrides).

    The gravest outcome is returned: `halt`, else `deny`, else `approval_required`, else `permit`. Its reasons and
    obligations come from all PDPs that gave this outcome, in the order of the PDPs. Every PDP is asked about every
    request: concurrently by `aevaluate`, one after another by `evaluate`.

    Args:
        pdps: two or more PDPs with distinct names.
        deadline: seconds for all PDPs together; by default the longest deadline among them. Requests without an answer
            by then are denied, and the remaining PDPs are not asked. A blocking call ends only by its PDP's `timeout`.
    """

    def __init__(self, *pdps: PDP, deadline: float | None = None) -> None:
        if len(pdps) < 2:  # noqa: PLR2004
            raise ConfigError("deny-overrides needs at least two PDPs")
        super().__init__("deny-overrides", pdps, deadline)
        if len({p.name for p in pdps}) != len(pdps):
            raise ConfigError("the PDPs' names must be distinct, or a record cannot say which of them denied")

    @property
    def revision(self) -> str:
        """Return `name=revision` of each PDP, joined; empty if a PDP has no revision."""
        revisions = [e.revision for e in self._all]
        return _joined(zip((e.pdp.name for e in self._all), revisions, strict=True)) if all(revisions) else ""

    @property
    def wrapped_pdps(self) -> tuple[PDP, ...]:
        return tuple(e.pdp for e in self._all)

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        now = time.thread_time if self.in_process else time.monotonic
        until = now() + self.deadline
        given = [e.evaluate(bodies, within=until - now()) for e in self._all]
        return [self._combined(ds) for ds in zip(*given, strict=True)]

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        given = await asyncio.gather(*(e.aevaluate(bodies) for e in self._all))
        return [self._combined(ds) for ds in zip(*given, strict=True)]

    def _combined(self, decisions: Sequence[Decision]) -> Decision:
        gravest = max(decisions, key=lambda d: _SEVERITY[d.outcome])  # the first of equals
        named = [(e.pdp.name, d) for e, d in zip(self._all, decisions, strict=True)]
        those = [(name, d) for name, d in named if d.outcome == gravest.outcome]
        return replace(
            gravest,
            reasons=tuple(dict.fromkeys(r for _, d in those for r in d.reasons)),
            obligations=_union([(name, d.obligations) for name, d in those]),
            policy_revision=_joined((name, d.policy_revision) for name, d in named),
            pdp_decision_id=",".join(d.pdp_decision_id for d in decisions if d.pdp_decision_id),
            ttl=_shortest([d.ttl for d in decisions]),
        )


MAX_WAITING: Final = 256
IDLE: Final = 5.0  # seconds without work after which the comparing thread ends
_Compared = tuple[Sequence[bytes], Sequence[Decision]]
Difference = Callable[[EvaluationRequest, Decision, Decision], None]


class CandidatePDP(Composed):
    """Decide by the real PDP, and report decisions in which a candidate differs.

    Another thread asks the candidate, so that it affects neither a decision nor its time. A difference is logged as
    `would flip` and passed to `on_difference`. After `close` nothing is compared.

    Args:
        real: the PDP that decides.
        candidate: the PDP to compare with `real`.
        on_difference: called in another thread with the request, the real decision and the candidate's decision. Its
            exceptions are logged.
        deadline: seconds for `real`, and as many for `candidate`; by default each keeps its own deadline.

    Attributes:
        counts: numbers of requests: `same` (equal outcomes), `permit>deny` and the like (the candidate's outcome is the
            second), and `skipped` (the candidate was too slow for the traffic).
    """

    _comparing: bool  # True while the comparing thread lives

    def __init__(
        self, real: PDP, candidate: PDP, *, on_difference: Difference | None = None, deadline: float | None = None
    ) -> None:
        super().__init__("candidate", [real, candidate], deadline)
        self.deadline, self.in_process = self._real.deadline, self._real.in_process
        self._told = None if on_difference is None else checked_callable("on_difference", on_difference)
        self._lock = forkable_lock()
        self._closed = False
        self._begin()
        in_child(self._begin)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        super().close()

    def _after(self, bodies: Sequence[bytes], decisions: Sequence[Decision]) -> Sequence[Decision]:
        with self._changed:
            if self._closed:
                return decisions
            if len(self._waiting) >= MAX_WAITING:
                self.counts["skipped"] += len(bodies)
                return decisions
            self._waiting.append((list(bodies), decisions))
            self._changed.notify()
            if not self._comparing:
                threading.Thread(target=self._compare, name="runtime-authz-candidate", daemon=True).start()
                self._comparing = True
        return decisions

    def _compare(self) -> None:
        while (work := self._next()) is not None:
            bodies, decisions = work
            for body, ours, theirs in zip(bodies, decisions, self._all[1].evaluate(bodies), strict=True):
                flips = ours.outcome != theirs.outcome
                with self._lock:
                    if self._closed:  # the candidate may have been closed before it answered
                        break
                    self.counts[f"{ours.outcome}>{theirs.outcome}" if flips else "same"] += 1
                if flips:
                    try:
                        self._tell(parse_request(body), ours, theirs)
                    except Exception:  # noqa: BLE001  (the next comparison does not depend on it)
                        _log.exception("a candidate's difference could not be reported")

    def _next(self) -> _Compared | None:
        """Return the next requests to compare, or `None` to end the thread."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(IDLE)
            if self._closed or not self._waiting:
                self._comparing = False
                return None
            return self._waiting.popleft()

    def _tell(self, request: EvaluationRequest, ours: Decision, theirs: Decision) -> None:
        _log.warning(
            "would flip: decision %s: %s %s: %s by %s, %s by %s (%s); candidate revision %s",
            *(ours.decision_id, request.action.name, request.resource.type, ours.outcome, self._real.pdp.name),
            *(theirs.outcome, self._all[1].pdp.name, theirs.reason, theirs.policy_revision),
        )
        if self._told is not None:
            self._told(request, ours, theirs)

    def _begin(self) -> None:
        """Start with no thread and an empty queue. A forked child does it too."""
        self._changed = threading.Condition(self._lock)
        self._waiting = deque[_Compared]()
        self._comparing = False
        self.counts = Counter[str]()


class CircuitBreaker(Composed):
    """Deny at once while a PDP fails, without asking it.

    There is no fallback engine: an attacker could make the PDP fail in order to be decided by a weaker engine. After
    `reset_after` seconds the PDP is asked once more. If the PDP answers, the breaker closes.

    Args:
        real: the PDP. A missing, late or malformed answer counts as a failure, a denial does not.
        failures: number of failures in a row that opens the breaker.
        reset_after: seconds after which an open breaker asks the PDP again.
        clock: monotonic seconds.
    """

    def __init__(
        self, real: PDP, *, failures: int = 5, reset_after: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("breaker", [real], None)
        self._limit = checked_count("failures", failures)
        self._reset_after = checked_seconds("reset_after", reset_after)
        self._clock = checked_callable("clock", clock)
        self._lock = forkable_lock()
        self._failed = 0
        self._until = 0.0  # while the breaker is open, the PDP is not asked before this time
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """Return `closed` (the PDP is asked), `open` (all is denied), `half-open` (trial)."""
        with self._lock:
            if self._failed < self._limit:
                return "closed"
            return "open" if self._clock() < self._until else "half-open"

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        with self._asking() as decisions:
            decisions.extend(self._real.evaluate(bodies))
        return decisions

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        with self._asking() as decisions:
            decisions.extend(await self._real.aevaluate(bodies))
        return decisions

    @contextmanager
    def _asking(self) -> Iterator[list[Decision]]:
        """Yield a list to fill with decisions; count its failures. `PDPError` if open."""
        with self._lock:
            probe = self._failed >= self._limit
            if probe and (self._probing or self._clock() < self._until):
                raise PDPError(Code.PDP_CIRCUIT_OPEN)
            self._probing = probe or self._probing
        decisions: list[Decision] = []
        try:
            yield decisions
        finally:
            with self._lock:
                if probe:
                    self._probing = False
                # A request that was cancelled or could not be sent says nothing about the PDP.
                if any(d.failure == "pdp" for d in decisions):
                    self._failed += 1
                    if self._failed >= self._limit:
                        self._until = self._clock() + self._reset_after
                elif any(d.failure is None for d in decisions):
                    self._failed = 0


def _union(given: Sequence[tuple[str, tuple[Obligation, ...]]]) -> tuple[Obligation, ...]:
    """Return each obligation once, under an id that is unique among the PDPs."""
    found: dict[str, Obligation] = {}
    for name, obligations in given:
        for o in obligations:
            same = json.dumps([o.type, o.properties], sort_keys=True)
            found.setdefault(same, o if len(given) == 1 else replace(o, id=f"{name}:{o.id}"))
    return tuple(found.values())


def _shortest(given: Sequence[int | None]) -> int | None:
    """Return the shortest `ttl`, or None if no PDP gave one."""
    # Without a `ttl`, a model's permit is kept and a plain node's is not. So if only some PDPs give one, keep neither.
    return None if all(ttl is None for ttl in given) else min(ttl or 0 for ttl in given)


def _joined(named: Iterable[tuple[str, str]]) -> str:
    return short_revision(",".join(f"{name}={revision}" for name, revision in named))
