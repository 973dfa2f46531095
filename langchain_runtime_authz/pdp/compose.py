"""PDPs made of PDPs.

All of them decide through an `Evaluator` of their own, so what they combine are decisions, never
answers that still have to be believed. None of them can permit what its real PDPs do not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from langchain_runtime_authz._validate import checked_callable, checked_count, checked_seconds
from langchain_runtime_authz.authzen import Decision, EvaluationRequest, Obligation, Outcome
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.fork import forkable_lock
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, PDP, Evaluator, bounded, close_all

__all__ = ["CandidatePDP", "CircuitBreaker", "DenyOverrides"]

_log = logging.getLogger(__name__)
_SEVERITY: Final[dict[Outcome, int]] = {"permit": 0, "approval_required": 1, "deny": 2, "halt": 3}


class _Composed:
    """One request is a batch of one."""

    def evaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request."""
        return self.evaluate_batch([request], [body])[0]

    async def aevaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request without blocking the event loop."""
        return (await self.aevaluate_batch([request], [body]))[0]

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[Decision]:
        """Answer several requests."""
        raise NotImplementedError

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[Decision]:
        """Answer several requests without blocking the event loop."""
        raise NotImplementedError


class DenyOverrides(_Composed):
    """Permits only what every PDP permits (XACML's deny-overrides, where a failure denies too).

    The gravest outcome stands: `halt` over `deny` over `approval_required` over `permit`. Its reasons
    are those of the PDPs that gave it, in their order; obligations are those of every PDP that gave
    it. All PDPs are asked about everything: side by side by `aevaluate`, one after another by `evaluate`.

    Args:
        pdps: two or more, their names distinct.
        deadline: seconds for all of them together. What is not answered by then is denied, and whose turn
            comes after it is not asked; a blocking call that is under way ends by its PDP's own `timeout`.
    """

    def __init__(self, *pdps: PDP, deadline: float = DEFAULT_DEADLINE) -> None:
        if len(pdps) < 2:  # noqa: PLR2004
            msg = "deny-overrides needs at least two PDPs"
            raise ConfigError(msg)
        self._all = [Evaluator(p, deadline=deadline) for p in pdps]
        if len({p.name for p in pdps}) != len(pdps):
            msg = "the PDPs' names must be distinct, or a record can not say which of them denied"
            raise ConfigError(msg)
        self._deadline = deadline
        self.name = f"deny-overrides({','.join(p.name for p in pdps)})"

    @property
    def revision(self) -> str:
        """Of all of them, named; empty where one does not say: then nobody could tell that it is another."""
        revisions = [e.revision for e in self._all]
        return _joined(zip((e.pdp.name for e in self._all), revisions, strict=True)) if all(revisions) else ""

    @property
    def behind(self) -> tuple[PDP, ...]:
        """The PDPs that decide."""
        return tuple(e.pdp for e in self._all)

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[Decision]:
        """Answer several requests."""
        until = time.monotonic() + self._deadline
        given = [e.evaluate(requests, bodies, until=until) for e in self._all]
        return [self._combined(ds) for ds in zip(*given, strict=True)]

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[Decision]:
        """Answer several requests."""
        given = await asyncio.gather(*(e.aevaluate(requests, bodies) for e in self._all))
        return [self._combined(ds) for ds in zip(*given, strict=True)]

    def close(self) -> None:
        """Close every PDP that can be closed."""
        close_all(*(e.pdp for e in self._all))

    def _combined(self, decisions: Sequence[Decision]) -> Decision:
        gravest = max(decisions, key=lambda d: _SEVERITY[d.outcome])  # the first of equals
        those = [(e.pdp.name, d) for e, d in zip(self._all, decisions, strict=True) if d.outcome == gravest.outcome]
        return gravest.model_copy(
            update={
                "reasons": tuple(dict.fromkeys(r for _, d in those for r in d.reasons)),
                "obligations": _union([(name, d.obligations) for name, d in those]),
                "policy_revision": _joined(
                    (e.pdp.name, d.policy_revision) for e, d in zip(self._all, decisions, strict=True)
                ),
                "pdp_decision_id": ",".join(d.pdp_decision_id for d in decisions if d.pdp_decision_id),
                "ttl": min(d.ttl for d in decisions),
            },
        )


MAX_WAITING: Final = 256
CLOSING: Final = 1.0  # seconds that `close` gives the comparison under way
_GLANCE: Final = 0.1  # seconds between looks whether the comparing thread lives
_Compared = tuple[list[EvaluationRequest], list[bytes], list[Decision]]
# What is to be compared; an event to set when it is reached; nothing to end.
_Waiting = queue.SimpleQueue[_Compared | threading.Event | None]
Difference = Callable[[EvaluationRequest, Decision, Decision], None]


class CandidatePDP(_Composed):
    """The real PDP decides; a candidate is asked the same, and where it would decide otherwise, that is told.

    The candidate changes nothing: neither a decision nor, as it is asked meanwhile and left at the
    deadline, when it comes. A difference goes to `on_difference` and to the log as `would flip`.

    Args:
        real: decides.
        candidate: is compared.
        on_difference: called with the request, the real decision and the candidate's, in another
            thread. What it raises is logged.
        deadline: seconds for the real one, and for the candidate.

    Attributes:
        counts: requests: on which the two were the `same`, on which the candidate differed (`permit>deny`),
            which were `skipped` because it is slower than the traffic, and `dropped` by `close`.
    """

    def __init__(
        self,
        real: PDP,
        candidate: PDP,
        *,
        on_difference: Difference | None = None,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        self._real = Evaluator(real, deadline=deadline)
        self._candidate = Evaluator(candidate, deadline=deadline)
        self._told = None if on_difference is None else checked_callable("on_difference", on_difference)
        self._lock = forkable_lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._begin()
        self.name = f"candidate({real.name},{candidate.name})"

    @property
    def revision(self) -> str:
        """The real policy's revision."""
        return self._real.pdp.revision

    @property
    def behind(self) -> tuple[PDP, ...]:
        """The PDPs that decide."""
        return (self._real.pdp,)

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[Decision]:
        """Answer several requests by the real PDP."""
        decisions = self._real.evaluate(requests, bodies)
        self._compare_later(requests, bodies, decisions)
        return decisions

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[Decision]:
        """Answer several requests by the real PDP."""
        decisions = await self._real.aevaluate(requests, bodies)
        self._compare_later(requests, bodies, decisions)
        return decisions

    def drain(self) -> None:
        """Wait until everything that waits has been compared."""
        reached = threading.Event()
        with self._lock:
            self._own()
            thread = self._thread
            if thread is not None and not self._closed:
                self._waiting.put(reached)
        if thread is None or thread is threading.current_thread():
            return
        while thread.is_alive() and not reached.wait(_GLANCE):
            pass

    def close(self) -> int:
        """End the comparing, and close both PDPs where they can be closed. Idempotent.

        What still waits is not compared, and no difference is told from here on; what is under way gets a
        second to end. Returns how many requests were dropped (`counts["dropped"]`).
        """
        with self._lock:
            self._own()
            first, self._closed = not self._closed, True
            thread = self._thread
            if first and self._pending:
                self._add("dropped", self._pending)
            self._waiting.put(None)
        if first and self.counts.get("dropped"):
            _log.warning("%s: closed, %d requests were not compared", self.name, self.counts["dropped"])
        close_all(self._real.pdp, self._candidate.pdp)
        if thread is not None and thread is not threading.current_thread():  # `on_difference` may close
            thread.join(CLOSING)
        return self.counts.get("dropped", 0)

    def _compare_later(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
        decisions: Sequence[Decision],
    ) -> None:
        with self._lock:
            self._own()
            if self._closed:
                return
            if self._thread is None:
                arguments = (weakref.ref(self), self._waiting)
                name = "runtime-authz-candidate"
                self._thread = threading.Thread(target=_compare, args=arguments, name=name, daemon=True)
                self._thread.start()
                # One that is forgotten ends its thread. A finaliser comes in anywhere, within this lock too, so it
                # takes none: a `SimpleQueue` may be put into from within itself.
                weakref.finalize(self, self._waiting.put, None).atexit = False
            if self._waiting.qsize() >= MAX_WAITING:
                self._add("skipped", len(requests))
                return
            self._waiting.put((list(requests), list(bodies), list(decisions)))
            self._pending += len(requests)

    def _compare(self, work: _Compared) -> None:
        if self._closed:
            return
        requests, bodies, decisions = work
        candidates = self._candidate.evaluate(requests, bodies)
        for request, ours, theirs in zip(requests, decisions, candidates, strict=True):
            try:
                self._tell(request, ours, theirs)
            except Exception:  # noqa: BLE001  (the next comparison does not depend on it)
                _log.exception("a candidate's difference could not be told")

    def _tell(self, request: EvaluationRequest, ours: Decision, theirs: Decision) -> None:
        flips = ours.outcome != theirs.outcome
        with self._lock:
            if self._closed:  # it was dropped; the candidate may say this because it is closed
                return
            self._pending -= 1
            self._add(f"{ours.outcome}>{theirs.outcome}" if flips else "same", 1)
        if not flips:
            return
        _log.warning(
            "would flip: %s %s: %s by %s, %s by %s (%s); candidate revision %s",
            request.action.name,
            request.resource.type,
            ours.outcome,
            self._real.pdp.name,
            theirs.outcome,
            self._candidate.pdp.name,
            theirs.reason,
            theirs.policy_revision,
        )
        if self._told is not None:
            self._told(request, ours, theirs)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._waiting: _Waiting = queue.SimpleQueue()
        self._thread = None
        self._pending = 0  # requests that wait or are being compared
        self.counts: dict[str, int] = {}

    def _own(self) -> None:
        """A fork's child has neither the thread nor a use for its queue. Under the lock."""
        if self._pid != os.getpid():
            self._begin()

    def _add(self, what: str, n: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + n


def _compare(of: weakref.ref[CandidatePDP], waiting: _Waiting) -> None:
    """What the comparing thread does, without keeping its PDP alive while it waits."""
    while (work := waiting.get()) is not None:
        if isinstance(work, threading.Event):
            work.set()
        elif (pdp := of()) is None:  # what still waits is nobody's
            return
        else:
            pdp._compare(work)  # noqa: SLF001  (its own thread)
            del pdp
        del work


State = Literal["closed", "open", "half-open"]


class CircuitBreaker(_Composed):
    """Stops asking a PDP that fails: while it is open everything is denied at once.

    There is no engine to fall back on: a weaker one would be what an attacker waits for. After
    `reset_after` seconds one request is let through; its success closes the breaker.

    Args:
        real: the PDP. Only its failures count (no answer, a late or malformed one), never a denial.
        failures: that many in a row open it.
        reset_after: seconds until it is tried again.
        deadline: seconds for one batch.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        real: PDP,
        *,
        failures: int = 5,
        reset_after: float = 5.0,
        deadline: float = DEFAULT_DEADLINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._real = Evaluator(real, deadline=deadline)
        self._limit = checked_count("failures", failures)
        self._reset_after = checked_seconds("reset_after", reset_after)
        self._clock = checked_callable("clock", clock)
        self._lock = forkable_lock()
        self._failed = 0
        self._until = 0.0  # when open: not asked before
        self._probing = False
        self.name = f"breaker({real.name})"

    @property
    def revision(self) -> str:
        """The real policy's revision."""
        return self._real.pdp.revision

    @property
    def behind(self) -> tuple[PDP, ...]:
        """The PDPs that decide."""
        return (self._real.pdp,)

    @property
    def state(self) -> State:
        """Whether it asks (`closed`), denies (`open`), or is about to try (`half-open`)."""
        with self._lock:
            if self._failed < self._limit:
                return "closed"
            return "open" if self._clock() < self._until else "half-open"

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[Decision]:
        """Answer several requests, or raise `pdp_circuit_open`."""
        probe = self._enter()
        decisions: list[Decision] = []
        try:
            decisions = self._real.evaluate(requests, bodies)
        finally:
            self._leave(decisions, probe=probe)
        return decisions

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[Decision]:
        """Answer several requests, or raise `pdp_circuit_open`."""
        probe = self._enter()
        decisions: list[Decision] = []
        try:
            decisions = await self._real.aevaluate(requests, bodies)
        finally:
            self._leave(decisions, probe=probe)
        return decisions

    def close(self) -> None:
        """Close the PDP if it can be closed."""
        close_all(self._real.pdp)

    def _enter(self) -> bool:
        with self._lock:
            if self._failed < self._limit:
                return False
            if self._probing or self._clock() < self._until:
                raise PDPError(Code.PDP_CIRCUIT_OPEN)
            self._probing = True
            return True

    def _leave(self, decisions: Sequence[Decision], *, probe: bool) -> None:
        with self._lock:
            if probe:
                self._probing = False
            # What was given up by its caller, or could not be asked, says nothing about the PDP.
            if any(d.failure == "pdp" for d in decisions):
                self._failed += 1
                if self._failed >= self._limit:
                    self._until = self._clock() + self._reset_after
            elif any(d.failure is None for d in decisions):
                self._failed = 0


def _union(given: Sequence[tuple[str, tuple[Obligation, ...]]]) -> tuple[Obligation, ...]:
    """Each obligation once, under an id that no other PDP gave."""
    found: dict[str, Obligation] = {}
    for name, obligations in given:
        for o in obligations:
            same = json.dumps([o.type, o.properties], sort_keys=True)
            found.setdefault(same, o if len(given) == 1 else o.model_copy(update={"id": f"{name}:{o.id}"}))
    return tuple(found.values())


def _joined(named: Iterable[tuple[str, str]]) -> str:
    """Revisions under their PDPs' names."""
    return bounded(",".join(f"{name}={revision}" for name, revision in named))
