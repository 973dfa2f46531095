"""Count and time decisions and failures, as OpenTelemetry metrics.

Only OpenTelemetry's API is used, so nothing is counted without an SDK. No metric names a user, a thread or a tool.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from langchain_runtime_authz._flow import in_thread
from langchain_runtime_authz.evaluation import SUBJECT_TYPES, Decision, Subject
from langchain_runtime_authz.telemetry import semconv as n

_ledgers: Final[WeakKeyDictionary[Any, set[str]]] = WeakKeyDictionary()  # tenants by ledger

WAIT: Final = 1.0  # seconds that a collection waits for all ledgers
REST: Final = 30.0  # seconds without a query to a ledger that did not answer
_resting: Final[dict[tuple[int, str], float]] = {}


class Instruments:
    """The instruments of one meter. `proxy._real_meter` is `None` if no SDK records."""

    def __init__(self, meter: Meter) -> None:
        self.proxy: Any = meter if hasattr(meter, "_real_meter") else SimpleNamespace(_real_meter=True)
        self.decisions = meter.create_counter(n.DECISIONS, "{decision}", "Decisions by outcome and first reason")
        self.events = meter.create_counter(n.EVENTS, "{event}", "Events of runs, like corrections and revocations")
        self.errors = meter.create_counter(
            n.ERRORS, "{error}", "Failures of ledger, audit log, engine and identity, by code"
        )
        self.leases = meter.create_up_down_counter(n.LEASES, "{lease}", "Runs and agents that may act")
        self.deciding = meter.create_histogram(n.DECISION_DURATION, "s", "From the look-up of a step to its record")
        self.engine = meter.create_histogram(n.ENGINE_DURATION, "s", "A policy engine's answer to one batch")
        asked, doubts = partial(_counted, "asked"), partial(_counted, "doubts")
        meter.create_observable_gauge(n.QUESTIONS, [asked], "{question}", "Questions that wait for an approver")
        meter.create_observable_gauge(n.DOUBTS, [doubts], "{call}", "Calls whose outcome nobody knows")


def count_decision(decision: Decision, action: str, started: int | None, subject: Subject) -> None:
    """Count a decision, and time it from `started` (nanoseconds since the Unix epoch)."""
    with suppress(Exception):  # telemetry must not stop the call
        kind = subject.type if subject.type in SUBJECT_TYPES else "other"
        about = {n.ACTION: action, n.DECISION: decision.outcome, n.REASON: decision.reason, n.SUBJECT_TYPE: kind}
        instruments.decisions.add(1, about)
        if started is not None:
            instruments.deciding.record((time.time_ns() - started) / 1e9, {n.ACTION: action})
        if decision.failure == "pdp":
            count_metric("errors", {n.COMPONENT: "pdp", n.ERROR_TYPE: decision.reason})


def count_metric(what: str, about: Mapping[str, str] | None = None, by: int = 1) -> None:
    """Add `by` to the counter `what` of `Instruments`, with the attributes `about`."""
    if instruments.proxy._real_meter is None:  # noqa: SLF001  (cheaper than a call)
        return
    with suppress(Exception):  # telemetry must not stop the call
        getattr(instruments, what).add(by, dict(about or {}))


def time_engine(pdp: str, began: float) -> None:
    """Record how long an engine took, from `began` (monotonic seconds) until now."""
    with suppress(Exception):  # telemetry must not stop the call
        instruments.engine.record(time.monotonic() - began, {n.PDP: pdp})


def observe_ledger(ledger: Any, tenant: str) -> None:
    """Measure a tenant's open questions and calls in doubt while `ledger` exists."""
    _ledgers.setdefault(ledger, set()).add(tenant)


def _counted(listing: str, _: CallbackOptions | None = None) -> Iterable[Observation]:
    """Count by tenant what the ledgers' method `listing` lists: `asked` or `doubts`.

    Wait at most `WAIT` seconds for all ledgers. If a ledger does not answer, do not query it for `REST` seconds.
    """
    now, found, asked = time.monotonic(), dict[str, list[int | None]](), list[tuple[tuple[int, str], Any]]()
    for ledger, tenants in list(_ledgers.items()):
        for tenant in sorted(tenants) if hasattr(ledger, listing) else ():
            key = id(ledger), tenant
            answer = None
            if now >= _resting.get(key, 0.0):
                _resting[key], answer = now + REST, in_thread(partial(getattr(ledger, listing), tenant), "metrics")
            asked.append((key, answer))
    for key, answer in asked:
        figure = None
        if answer is not None:
            with suppress(Exception):
                listed = answer.result(max(now + WAIT - time.monotonic(), 0.0))
                figure = len([one for one in listed if getattr(one, "lost", True)])
                del _resting[key]
        found.setdefault(key[1], []).append(figure)
    return [Observation(sum(filter(None, f)), {n.TENANT: tenant}) for tenant, f in found.items() if None not in f]


instruments = Instruments(metrics.get_meter("langchain_runtime_authz"))
