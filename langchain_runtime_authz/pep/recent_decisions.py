"""Keep the last decisions of one instance, and log why a step was stopped.

The log line holds codes, ids and names, but no arguments or texts. The decisions stay in this process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from langchain_runtime_authz.audit.record import Scope, decision_record
from langchain_runtime_authz.audit.sinks import AuditSink, MemorySink
from langchain_runtime_authz.errors import AuthzDenied, sentence
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.telemetry.logs import get_logger, lines_left_out

_log = get_logger("langchain_runtime_authz.decisions")

MAX_DECISIONS: Final = 512
MAX_BODY: Final = 16_384  # bytes; longer requests are dropped, so that all take at most 8 MiB
MAX_NAME: Final = 128


class RecentDecisions:
    """Keeps the last decisions, with arguments and texts, for `RuntimeAuthz.explain`."""

    __slots__ = ("_built", "failures_left_out", "left_out")

    def __init__(self, sink: AuditSink) -> None:
        self._built: deque[Any] = sink.kept if isinstance(sink, MemorySink) else deque(maxlen=MAX_DECISIONS)
        self.left_out = lines_left_out()
        self.failures_left_out = lines_left_out()  # separate, so that denials do not use up the lines for failures

    def add(self, build: Callable[[], dict[str, Any]]) -> None:
        """Store `build`, which builds a decision's record when needed. Ignore others."""
        if isinstance(build, partial) and build.func is decision_record:
            body = build.keywords.get("body")
            self._built.append(partial(build, body=None) if body is not None and len(body) > MAX_BODY else build)

    def find(self, decision_id: str) -> dict[str, Any] | None:
        """Return the record of this decision, or None."""
        return next((b(content=True) for b in reversed(self._kept()) if _id(b) == decision_id), None)

    def of_run(self, run_id: str) -> list[dict[str, Any]]:
        """Return the records of a run's decisions, oldest first."""
        return [b(content=True) for b in self._kept() if b.keywords["run_id"] == run_id]

    def refused(self, exc: AuthzDenied, scope: Scope, run_id: str) -> None:
        """Store and log a refusal without an audit record, as when the ledger failed."""
        if any(_id(b) == exc.decision_id for b in self._kept()):
            return
        decision = Decision("deny", (exc.code,), decision_id=exc.decision_id, failure="enforcement")
        about: dict[str, Any] = {"action": "run", "resource": scope[2], "scope": scope, "run_id": run_id}
        self._built.append(partial(decision_record, now=time.time(), decision=decision, pdp="", **about))
        self.stopped(decision, "run", scope[2], scope[3], run_id)

    def stopped(self, decision: Decision, action: str, resource: str, thread: str, run_id: str) -> None:
        """Log a denial or question, at most a few lines per code and minute."""
        asks = decision.outcome == "approval_required"
        level, code = logging.INFO if asks else logging.WARNING, decision.reason
        if not _log.isEnabledFor(level) or (left_out := self.left_out(code)) is None:
            return
        verb, more = "asks about" if asks else "denied", f"; {left_out} more of this code were not logged"
        ids = f"decision {decision.decision_id}, run {run_id}, thread {_name(thread)}"
        told = (verb, action, _name(resource), code, sentence(code), ids, more if left_out else "")
        known = {"decision_id": decision.decision_id, "run_id": run_id, "thread_id": thread}
        _log.log(level, "%s %s %s: %s: %s (%s)%s", *told, extra=known)

    def _kept(self) -> list[partial[dict[str, Any]]]:
        return [b for b in list(self._built) if isinstance(b, partial) and b.func is decision_record]


def _id(build: partial[dict[str, Any]]) -> str:
    return str(build.keywords["decision"].decision_id)


def _name(text: str) -> str:
    """Return an untrusted name (of a client or model) on one line, cut to `MAX_NAME`."""
    return (text if text.isprintable() else ascii(text))[:MAX_NAME]
